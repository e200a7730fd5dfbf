/** An event as its handlers get it. The names are those of the browser's own `EventSource`. */
export interface StreamEvent<T = string> {
  /** The event's name, `message` where the server gave none. */
  readonly type: string;
  /** The text; with `parse`, what that made of it. */
  readonly data: T;
  /** The position after this event. */
  readonly lastEventId: string;
}

/** What a reset says: from here on something may be missing. */
export interface Reset {
  readonly reason: string;
  readonly position: string | null;
}

/** What `onError` gets. */
export interface StreamError extends Error {
  /** The answer's status; undefined where there was none. */
  readonly status?: number;
  /** The name of the event whose data couldn't be read. */
  readonly event?: string;
  /** Whether the connection goes on, or is made again. */
  readonly retrying: boolean;
}

export type State = "connecting" | "open" | "closed";

/** What is known of a change of state. */
export interface StateDetail {
  /** How many attempts in a row have failed. */
  readonly attempt?: number;
  /** Milliseconds until the next one. */
  readonly delay?: number;
  /** Why, where something went wrong. */
  readonly error?: StreamError;
}

export type Token = string | null | undefined;

/** `Events`: the names of a stream's events, and what their data are, as in `connect<{progress: Progress}>(…)`. */
export interface Options<Events = Record<string, any>> {
  /** Named handlers; `message` gets events without a name, `*` those that have no other handler. */
  on?: { [Name in keyof Events]?: (event: StreamEvent<Events[Name]>) => void } & { "*"?: (event: StreamEvent<any>) => void };
  /** Something is gone: also `on["stream-reset"]`, with its data read. */
  onReset?: (event: StreamEvent<Reset>) => void;
  /** The stream is there, for the first time or again. */
  onOpen?: () => void;
  /** Something went wrong; without this handler it is written to the console. */
  onError?: (error: StreamError) => void;
  onState?: (state: State, detail: StateDetail) => void;

  /** `json`: the data are JSON; or a function that reads them. An error that it throws goes to `onError`. */
  parse?: "text" | "json" | ((data: string, type: string) => unknown);
  /** For each name, what checks or converts the read data; what it throws goes to `onError`. */
  schema?: { [Name in keyof Events]?: (value: unknown) => Events[Name] };

  method?: string;
  /** A plain object or an array is sent as JSON, anything else as `fetch` does. */
  body?: BodyInit | object | null;
  /** A function is called for each attempt. */
  headers?: HeadersInit | (() => HeadersInit | Promise<HeadersInit>);
  /** Sent as `Authorization: Bearer`. A function is called for the first attempt, and once more after a 401 or 403. */
  token?: Token | (() => Token | Promise<Token>);
  /** Sends cookies to another origin as well. */
  withCredentials?: boolean;

  /** The event that ends it, `stream-end` unless said. */
  endEvent?: string;
  /** The event that says that something is gone, `stream-reset` unless said. */
  resetEvent?: string;
  /** How often in a row it comes back in vain before it gives up; for ever unless said. */
  retries?: number;
  /** Milliseconds: the greatest wait before the first attempt (2,000), and before any (30,000). */
  backoff?: { base?: number; max?: number };
  /** Milliseconds for which nothing is heard before it is made again: 45,000; 0 for never. */
  stallTimeout?: number;

  /** Where to begin: the id of the last event that is known. */
  lastEventId?: string;
  /**
   * `session`: the position survives a load of the page, in this tab's `sessionStorage`, under the URL; for another method
   * than GET under the method and the body too, which is then a plain object, an array, a text or `URLSearchParams`.
   */
  position?: "session";
  /**
   * One connection for all tabs of this browser that ask for the same URL, as the same `principal` (who is signed in;
   * a fixed `token` counts). `timeout`: milliseconds after which a leading tab that doesn't answer is replaced (10,000).
   */
  share?: boolean | { principal?: string; timeout?: number };
}

/** A connection that keeps itself up. */
export interface Connection {
  /** 0 while connecting or waiting to, 1 open, 2 closed. */
  readonly readyState: 0 | 1 | 2;
  /** The position: the id of the last event that had one. */
  readonly lastEventId: string;
  /** Resolves when it is closed, by whom or what ever. */
  readonly closed: Promise<void>;
  /** Closes it, for good. */
  close(): void;
}

/** Why an attempt or a stream failed; plain, since it travels between tabs. */
export interface Failure {
  message: string;
  status?: number;
  retrying: boolean;
}

export interface Change {
  attempt?: number;
  delay?: number;
  failure?: Failure;
}

/** Where a source puts what it gets. */
export interface Sink {
  /** An event; `id` if it has one of its own. */
  event(type: string, data: string, lastEventId: string, id: string | undefined): void;
  /** The position has moved without an event. */
  moved(id: string): void;
  state(state: State, change: Change): void;
}

/** What brings events: a connection of one's own, or one that tabs share. */
export interface Source {
  close(): void;
}
