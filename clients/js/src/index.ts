import { canShare, openShared } from "./shared.js";
import { openSource, written } from "./source.js";
import type { Connection, Options, Sink, Source, State, StreamError } from "./types.js";

export type { Connection, Options, Reset, State, StateDetail, StreamError, StreamEvent, Token } from "./types.js";

const STATES: State[] = ["connecting", "open", "closed"];

/** What tells one body from another, of a bounded length. */
const fingerprint = (body: Options["body"]): string => {
  const text = `${written(body)}`;
  // A form or bytes can't be read, or not at once.
  if (text.startsWith("[object")) throw text;
  let hash = 0;
  // Below 2 ** 53, where numbers are exact.
  for (const character of text) hash = (hash * 2_097_143 + character.codePointAt(0)!) % 4_294_967_291;
  return `${text.length} ${hash}`;
};

/** Calls a handler. An error of its own is nobody's but the page's: it is reported as uncaught, and the stream goes on. */
const call = <Args extends unknown[]>(handler: ((...args: Args) => void) | undefined, ...args: Args): void => {
  try {
    handler?.(...args);
  } catch (error) {
    setTimeout(() => {
      throw error;
    });
  }
};

const log = (error: StreamError): void => console[error.retrying ? "warn" : "error"](error);

/**
 * Opens an event stream and keeps it up.
 *
 * @param url - Where the stream is, relative to the page.
 * @param options - Handlers, and how to ask; see {@link Options}.
 * @returns The connection; it is being made.
 * @throws TypeError if `share` is asked for with a method other than GET.
 */
export function connect<Events = Record<string, any>>(url: string | URL, options: Options<Events> = {}): Connection {
  const all = options as Options;
  const { parse, schema = {}, resetEvent = "stream-reset", onError = log, share, method = "GET" } = all;
  const address = new URL(url, globalThis.location?.href).href;
  const handlers = new Map(Object.entries(all.on ?? {}));
  const checks = new Map(Object.entries(schema));
  const isGet = /^get$/i.test(method);
  let key: string | undefined;
  let keeps = all.position === "session";
  let readyState: 0 | 1 | 2 = 0;
  let lastEventId = all.lastEventId ?? "";
  let source: Source | undefined;
  let settle: () => void;
  const closed = new Promise<void>((resolve) => (settle = resolve));

  const report = (message: string, more: Pick<StreamError, "status" | "event" | "retrying">): StreamError => {
    const error: StreamError = Object.assign(new Error(message), more);
    call(onError, error);
    return error;
  };

  const storage = (use: (storage: Storage, key: string) => void): void => {
    if (!keeps) return;
    try {
      // Anything but a GET asks what its body says, and the position in one answer is none in another.
      key ??= isGet ? `sseflask ${address}` : `sseflask ${address} ${method} ${fingerprint(all.body)}`;
      use(sessionStorage, key);
    } catch (error) {
      keeps = false;
      queueMicrotask(() => report(`The position can't be kept: ${error}`, { retrying: true }));
    }
  };

  const moveTo = (id: string): void => {
    if (id === lastEventId) return;
    lastEventId = id;
    storage((kept, key) => (id ? kept.setItem(key, id) : kept.removeItem(key)));
  };

  const read = (data: string, type: string): unknown => {
    let value: unknown = data;
    // An event of ours may carry nothing, the end for one.
    if (parse === "json") value = data === "" ? undefined : JSON.parse(data);
    else if (typeof parse === "function") value = parse(data, type);
    const check = checks.get(type);
    return check ? check(value) : value;
  };

  const sink: Sink = {
    event(type, data, id) {
      moveTo(id);
      const handle = (handler: ((event: any) => void) | undefined, reading: typeof read): void => {
        // A handler may have closed it.
        if (!handler || readyState === 2) return;
        let value;
        try {
          value = reading(data, type);
        } catch (error) {
          return void report(`The data of an event ${type} can't be read: ${error}`, { event: type, retrying: true });
        }
        call(handler, { type, data: value, lastEventId: id });
      };
      if (type === resetEvent) handle(all.onReset, (text) => JSON.parse(text));
      handle(handlers.get(type) ?? handlers.get("*"), read);
    },
    moved: moveTo,
    state(state, { failure, ...detail }) {
      const its = (readyState = STATES.indexOf(state) as 0 | 1 | 2);
      const error = failure && report(failure.message, failure);
      if (its === 1) call(all.onOpen);
      // Closed by one of these handlers, it has said so already.
      if (readyState === its) call(all.onState, state, { ...detail, error });
      if (state === "closed") settle();
    },
  };

  storage((kept, key) => (lastEventId = kept.getItem(key) ?? lastEventId));
  if (share && !isGet) throw new TypeError(`share needs GET, not ${method}`);
  if (share && canShare()) {
    const { principal = typeof all.token === "string" ? all.token : "", timeout = 10_000 } = share === true ? {} : share;
    const name = JSON.stringify(["sseflask", address, !!all.withCredentials, principal]);
    source = openShared(name, address, all, lastEventId, timeout, sink);
  } else source = openSource(address, all, lastEventId, sink);

  return {
    get readyState() {
      return readyState;
    },
    get lastEventId() {
      return lastEventId;
    },
    closed,
    close() {
      if (readyState === 2) return;
      source?.close();
      sink.state("closed", {});
    },
  };
}

/** Connections by key, at most one for each; all are closed when the page is left. */
export class StreamManager {
  private readonly connections = new Map<string, Connection>();

  /** @param defaults - Options of all connections; each may have its own. */
  constructor(private readonly defaults: Options = {}) {
    globalThis.addEventListener?.("pagehide", (event) => {
      // A page that is kept for the way back takes its connections up again.
      if (!(event as PageTransitionEvent).persisted) this.disconnectAll();
    });
  }

  /** Opens a connection. One that the key has is closed first. */
  connect<Events = Record<string, any>>(key: string, url: string | URL, options: Options<Events> = {}): Connection {
    this.disconnect(key);
    const connection = connect(url, { ...this.defaults, ...(options as Options) });
    this.connections.set(key, connection);
    void connection.closed.then(() => {
      if (this.connections.get(key) === connection) this.connections.delete(key);
    });
    return connection;
  }

  /** The key's connection, if it isn't closed. */
  get(key: string): Connection | undefined {
    return this.connections.get(key);
  }

  /** Closes the key's connection, if there is one. */
  disconnect(key: string): void {
    const connection = this.connections.get(key);
    // First, since a handler may connect the key anew.
    this.connections.delete(key);
    connection?.close();
  }

  /** Closes all of them. */
  disconnectAll(): void {
    for (const key of [...this.connections.keys()]) this.disconnect(key);
  }
}
