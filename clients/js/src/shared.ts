import { openSource } from "./source.js";
import type { Change, Options, Sink, Source, State } from "./types.js";

/** Milliseconds for which a new leader waits for the others' positions. */
const ASK = 200;

/** From a leader: where it is, or an event. `leader` grows from one leader to the next, `n` with each event of one. */
interface Led {
  leader: number;
  n: number;
  /** The leader's position. */
  at: string;
  state: State;
  /** With a change of state, what is known of it. */
  change?: Change;
  /** The event's own id, if it has one. */
  id?: string;
  event?: [type: string, data: string];
}

type Message =
  | Led
  | { ask: string } // A new leader wants to know where the others are.
  | { to: string; at: string; leader: number } // Where a tab is.
  | { join: 1 }; // Where is the leader, and is it there?

const OURS = /^([0-9a-f]{12}|[0-9a-f]{32})-(\d+)(-end)?$/;

/** Whether a position is at or behind another, as far as that can be said. */
const reaches = (position: string, other: string): boolean => {
  if (position === other) return true;
  const [, epoch, seq = "", end = ""] = OURS.exec(position) ?? [];
  const [, otherEpoch, otherSeq = "", otherEnd = ""] = OURS.exec(other) ?? [];
  if (!epoch || epoch !== otherEpoch) return false;
  if (seq.length !== otherSeq.length) return seq.length > otherSeq.length;
  return seq === otherSeq ? end >= otherEnd : seq > otherSeq;
};

export const canShare = (): boolean => !!globalThis.navigator?.locks && !!globalThis.BroadcastChannel;

/**
 * Opens a source that all tabs which use the same name have in common.
 *
 * One tab leads: it holds the lock, and its connection is everybody's. Each tab has a position of its own and takes what
 * lies after it, so that it doesn't matter who leads, or where that one began.
 */
export function openShared(name: string, url: string, options: Options, from: string, timeout: number, sink: Sink): Source {
  const { endEvent = "stream-end" } = options;
  const me = `${Math.random()}`;
  const channel = new BroadcastChannel(name);
  const post = (message: Message): void => channel.postMessage(message);
  let position = from;
  let state: State = "connecting";

  /** The newest leader that is known, and where it was when it was last heard. */
  let leader = 0;
  let known: Led | undefined;
  let heardAt = 0;
  let askedAt = 0;
  /** Whether what the leader sends is what we take; else there may be a hole before it. */
  let following = false;
  /** A connection of our own, until we have what the leader had. */
  let alone: Source | undefined;

  /** What we lead with. */
  let leading: Source | undefined;
  let n = 0;
  let answers: { at: string; leader: number }[] = [];
  let release: (() => void) | undefined;
  let request: AbortController | undefined;
  let watch: ReturnType<typeof setInterval> | undefined;
  let closed = false;

  const change = (next: State, what?: Change): void => {
    if (closed || (next === state && (!what || next === "open"))) return;
    state = next;
    if (next === "closed") close();
    sink.state(next, what ?? {});
  };

  const deliver = (id: string | undefined, event?: [string, string]): void => {
    // A new leader begins at the oldest position: what we have had comes again. A publisher's own id may be that of several events.
    if (closed || (id !== undefined && OURS.test(id) && reaches(position, id))) return;
    if (id !== undefined) position = id;
    if (!event) return sink.moved(position);
    sink.event(event[0], event[1], position, id);
    if (event[0] === endEvent) change("closed", {});
  };

  const goAlone = (): void => {
    following = false;
    alone ??= openSource(url, options, position, {
      event(type, data, _, id) {
        deliver(id, [type, data]);
        join();
      },
      moved(id) {
        deliver(id);
        join();
      },
      state: change,
    });
  };

  /** Follows the leader if we have what it had. */
  const join = (): void => {
    if (!known || following || release || closed) return;
    // Without ids that can be compared, one that has nothing yet begins where the others are.
    if (!reaches(position, known.at) && (position || OURS.test(known.at))) return goAlone();
    alone?.close();
    alone = undefined;
    following = true;
    change(known.state, known.change);
  };

  const follow = (message: Led): void => {
    if (message.leader < leader) return;
    heardAt = performance.now();
    if (message.leader > leader) {
      // The lock was taken from us while we couldn't answer; the others don't listen to us any more.
      if (leading) resign();
      leader = message.leader;
      following = false;
    }
    const brings = message.id !== undefined || !!message.event;
    const expected = (known?.n ?? 0) + (brings ? 1 : 0);
    known = message;
    if (following && message.n !== expected) goAlone();
    if (!following) return join();
    if (brings) deliver(message.id, message.event);
    change(message.state, message.change);
  };

  const tell = (more?: Partial<Led>): void => {
    known = { leader, n, at: known?.at ?? "", state, ...more };
    post(known);
  };

  const lead = async (): Promise<void> => {
    const term = release;
    alone?.close();
    alone = undefined;
    following = false;
    answers = [];
    // Those that are there wait for the lock.
    const { pending } = await navigator.locks.query();
    if (pending?.some((lock) => lock.name === name)) {
      post({ ask: me });
      await new Promise((resolve) => setTimeout(resolve, ASK));
    }
    if (release !== term) return;
    leader = Math.max(Date.now(), leader + 1, ...answers.map((answer) => answer.leader + 1));
    // The oldest of those that can be compared; the others see by themselves that it isn't theirs.
    let oldest = position || answers.find((answer) => answer.at)?.at || "";
    for (const { at } of answers) if (reaches(oldest, at)) oldest = at;
    n = 0;
    known = undefined;
    change("connecting");
    tell({ at: oldest });
    const bring = (at: string, id: string | undefined, event?: [string, string]): void => {
      n++;
      tell({ at, id, event });
      deliver(id, event);
    };
    leading = openSource(url, options, oldest, {
      event: (type, data, at, id) => bring(at, id, [type, data]),
      moved: (id) => bring(id, id),
      state(next, what) {
        tell({ state: next, change: what });
        change(next, what);
      },
    });
  };

  const resign = (): void => {
    leading?.close();
    leading = undefined;
    release?.();
    release = undefined;
  };

  const seek = (steal: boolean): void => {
    request?.abort();
    const mine = (request = new AbortController());
    const again = (): void => {
      if (request !== mine) return;
      resign();
      start();
    };
    navigator.locks
      .request(name, steal ? { steal } : { signal: mine.signal }, () => {
        if (request !== mine) return undefined;
        return new Promise<void>((resolve) => {
          release = resolve;
          void lead();
        });
      })
      // Given back, or taken from us; any other error: a page that may not use locks.
      .then(again, (error) => (error.name === "AbortError" ? again() : goAlone()));
  };

  /** Asks a leader that isn't heard whether it is there, and takes its place if it doesn't say so. */
  const look = (): void => {
    if (release) return;
    const time = performance.now();
    // By the clock alone a timer that comes once a minute, as in a hidden tab, never sees an answer that has just come.
    if (time - heardAt < timeout / 2 || (askedAt && heardAt >= askedAt)) askedAt = 0;
    else if (!askedAt) {
      askedAt = time;
      post({ join: 1 });
    } else if (time - askedAt > timeout / 2) {
      askedAt = 0;
      heardAt = time;
      seek(true);
    }
  };

  const start = (): void => {
    if (closed) return;
    clearInterval(watch);
    heardAt = performance.now();
    askedAt = 0;
    watch = setInterval(look, timeout / 8);
    post({ join: 1 });
    seek(false);
  };

  /** Takes no part: the page is away or frozen. */
  const leave = (): void => {
    clearInterval(watch);
    const pending = request;
    request = undefined;
    pending?.abort();
    resign();
    alone?.close();
    alone = undefined;
    following = false;
  };
  const back = (): void => {
    if (!request) start();
  };
  // A worker has no document.
  const page = globalThis.document ?? globalThis;
  const targets: [EventTarget, string, () => void][] = [
    [globalThis, "pagehide", leave],
    [globalThis, "pageshow", back],
    [page, "freeze", leave],
    [page, "resume", back],
  ];

  const close = (): void => {
    if (closed) return;
    closed = true;
    leave();
    for (const [target, type, listener] of targets) target.removeEventListener(type, listener);
    channel.close();
  };

  channel.onmessage = ({ data }: MessageEvent<Message>): void => {
    if ("event" in data || "n" in data) follow(data);
    else if ("ask" in data) {
      heardAt = performance.now();
      if (request) post({ to: data.ask, at: position, leader });
    } else if ("to" in data) {
      if (data.to === me) answers.push(data);
    } else if (leading) tell({ change: undefined });
  };
  for (const [target, type, listener] of targets) target.addEventListener(type, listener);
  start();
  return { close };
}
