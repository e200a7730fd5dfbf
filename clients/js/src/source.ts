import { createParser } from "eventsource-parser";
import type { Failure, Options, Sink, Source } from "./types.js";

/** Milliseconds that a client waits at the least. */
const LEAST_WAIT = 50;
/** Milliseconds after which a stream that brought nothing was good all the same. */
const GOOD_AFTER = 5_000;
/** Milliseconds for reading what an error says. */
const READ_FOR = 5_000;
/** A timer that is to wait for longer doesn't wait at all. */
const LONGEST_TIMER = 2 ** 31 - 1;
/** Characters of one event; a stream that sends a larger one can't be read. */
const MAX_EVENT_SIZE = 2 ** 24;

const now = (): number => performance.now();

const isPlain = (body: unknown): body is object =>
  Array.isArray(body) || Object.prototype.toString.call(body) === "[object Object]";

/** Plain objects and arrays as JSON, anything else as it is. */
export const written = (body: Options["body"]): BodyInit | null | undefined => (isPlain(body) ? JSON.stringify(body) : body);

/** Milliseconds, from a number of seconds or a date. */
const retryAfter = (text: string | null): number =>
  Math.max(0, Number(text) * 1000 || Date.parse(text ?? "") - Date.now()) || 0;

/** A header carries bytes: an id of other characters goes as UTF-8, as an EventSource sends it. */
const asBytes = (id: string): string => String.fromCharCode(...new TextEncoder().encode(id));

/** Opens a connection that comes back by itself, from the position `from`. */
export function openSource(url: string, options: Options, from: string, sink: Sink): Source {
  const { method = "GET", body, token, endEvent = "stream-end", retries = Infinity, stallTimeout = 45_000 } = options;
  const { base = 2_000, max = 30_000 } = options.backoff ?? {};
  let position = from;
  let retry: number | undefined;
  let failures = 0;
  let bearer: unknown;
  let refreshed = false;
  // Whether the request may have reached the server: then only one that can be repeated is.
  let sent = false;
  let repeatable = /^get$/i.test(method);
  let current: AbortController | undefined;
  let timer: ReturnType<typeof setTimeout> | undefined;
  /** What the current attempt's silence, or its reading of what an error says, ends with. */
  let watch: ReturnType<typeof setTimeout> | undefined;
  let earliest = 0;
  let suspended = false;

  const stop = (): void => {
    clearTimeout(timer);
    clearTimeout(watch);
    timer = undefined;
    const attempt = current;
    current = undefined;
    attempt?.abort();
  };

  const mayRepeat = (): boolean => repeatable || !sent || position !== "";

  const finish = (failure?: Failure): void => {
    close();
    sink.state("closed", { failure });
  };

  const run = async (): Promise<void> => {
    timer = undefined;
    const attempt = (current = new AbortController());
    let status: number | undefined;
    let openedAt = 0;
    let good = false;
    let heardAt = now();

    // Every way in which an attempt ends comes by here, once: what comes later is of an attempt that isn't the current one.
    const end = (message?: string, isFatal?: boolean, wait = 0): void => {
      if (current !== attempt) return;
      stop();
      if (good || (openedAt && now() - openedAt >= GOOD_AFTER)) failures = 0;
      const mayTry = failures < retries;
      const retrying = !isFatal && mayTry && mayRepeat();
      if (!retrying && !isFatal) {
        message ??= "The stream has ended";
        message += mayTry ? `; a ${method} is sent again only if it can be resumed` : `; it has been tried often enough`;
      }
      const failure = message ? { message, status, retrying } : undefined;
      if (!retrying) return finish(failure);
      const jitter = Math.random() * Math.min(max, Math.max(LEAST_WAIT, retry ?? base) * 2 ** failures);
      const delay = Math.max(LEAST_WAIT, Math.max(retry ?? 0, wait) + jitter);
      failures++;
      earliest = now() + wait;
      timer = setTimeout(run, Math.min(delay, LONGEST_TIMER));
      sink.state("connecting", { attempt: failures, delay, failure });
    };

    // By the clock: timers of a tab in the background come late, and those of one that slept much later.
    let graced = false;
    const check = (): void => {
      const left = heardAt + stallTimeout - now();
      if (left <= 0 && (graced || left > -1_000)) return end(`Nothing was heard for ${stallTimeout} ms`);
      // After a sleep, what has come meanwhile is read first; once, since the next check may be as late.
      graced = left <= 0;
      watch = setTimeout(check, graced ? 500 : left);
    };

    try {
      if (stallTimeout > 0) watch = setTimeout(check, stallTimeout);
      // Nobody is told anything before they have the connection.
      await null;
      if (current !== attempt) return;
      if (typeof token !== "function") bearer = token;
      else bearer ??= await token();
      const given = typeof options.headers === "function" ? await options.headers() : options.headers;
      if (current !== attempt) return;
      let init: RequestInit;
      try {
        const headers = new Headers(given);
        headers.set("Accept", "text/event-stream");
        if (bearer) headers.set("Authorization", `Bearer ${bearer}`);
        if (position) headers.set("Last-Event-ID", asBytes(position));
        if (isPlain(body) && !headers.has("Content-Type")) headers.set("Content-Type", "application/json");
        repeatable ||= headers.has("Idempotency-Key");
        init = {
          method,
          headers,
          body: written(body),
          credentials: options.withCredentials ? "include" : "same-origin",
          cache: "no-store",
          signal: attempt.signal,
        };
      } catch {
        // What the error says may hold a token.
        return end("The request is invalid", true);
      }
      sent = true;
      const response = await fetch(url, init);
      if (current !== attempt) return;
      heardAt = now();
      status = response.status;
      if (status === 204) return finish();
      if (status !== 200) {
        if ([401, 403].includes(status) && typeof token === "function" && !refreshed) {
          // It wasn't let in, so nothing was done.
          refreshed = true;
          sent = false;
          bearer = undefined;
          stop();
          return void run();
        }
        // The status says what to do; for the reason there is little time.
        clearTimeout(watch);
        const answer = await Promise.race([
          response.json().catch(() => undefined),
          new Promise<undefined>((resolve) => (watch = setTimeout(resolve, READ_FOR))),
        ]);
        const reason = answer?.error ? `: ${answer.error}` : "";
        const passes = status >= 500 || [408, 425, 429].includes(status);
        return end(`The server answered ${status}${reason}`, !passes, retryAfter(response.headers.get("Retry-After")));
      }
      const type = response.headers.get("Content-Type");
      if (!/^text\/event-stream\s*(;|$)/i.test(`${type}`)) return end(`The answer is ${type}, not an event stream`, true);

      refreshed = false;
      openedAt = now();
      status = undefined;
      sink.state("open", {});
      let told = position;
      const parser = createParser({
        maxBufferSize: MAX_EVENT_SIZE,
        onRetry: (ms) => (retry = ms),
        onId(id) {
          if (current === attempt) position = id;
        },
        onEvent({ event = "message", data, id }) {
          if (current !== attempt) return;
          good = true;
          told = position;
          sink.event(event, data, position, id);
          if (event === endEvent && current === attempt) finish();
        },
        onError(error) {
          if (error.type === "max-buffer-size-exceeded") end(`An event has more than ${MAX_EVENT_SIZE} characters`, true);
        },
      });
      // The parser knows of the byte order mark.
      const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
      const reader = response.body!.getReader();
      for (;;) {
        const { done, value } = await reader.read();
        if (current !== attempt) return;
        if (done) return end();
        heardAt = now();
        parser.feed(decoder.decode(value, { stream: true }));
        if (current !== attempt) return;
        if (told !== position) sink.moved((told = position));
      }
    } catch (error) {
      end(`The connection failed: ${error instanceof Error ? error.message : error}`);
    }
  };

  // While the page is away (closed, or kept for the way back) nothing is held open.
  const hide = (): void => {
    suspended = true;
    stop();
  };
  const show = (): void => {
    if (!suspended) return;
    suspended = false;
    if (mayRepeat()) void run();
    else finish({ message: `The page was away; a ${method} is sent again only if it can be resumed`, retrying: false });
  };
  const online = (): void => {
    if (timer === undefined) return;
    clearTimeout(timer);
    timer = setTimeout(run, Math.max(0, earliest - now()));
  };
  const listeners = Object.entries({ pagehide: hide, pageshow: show, online });

  const close = (): void => {
    stop();
    for (const [name, listener] of listeners) globalThis.removeEventListener?.(name, listener);
  };

  for (const [name, listener] of listeners) globalThis.addEventListener?.(name, listener);
  void run();
  return { close };
}
