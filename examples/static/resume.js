// Reads a resumable stream to its end. Its run goes on at the server while the connection is lost, or the page is loaded again.

import { Refused, streamEvents } from "./event-stream.js";

const ENDS = new Set(["complete", "error", "stream-end"]);
const FIRST_PAUSE = 500;
const LAST_PAUSE = 8000;
const PATIENCE = 120_000;
// What a server, or a proxy before it, answers while it can't: worth asking again.
const NOT_NOW = new Set([429, 502, 503, 504]);

// Yields the events after `from`, an event's id, or all of them. A request is sent again only when an id says what to go on with:
// else the server would begin a second answer. Calls `opened` and `lost` whenever that is so.
export async function* resumeEvents(url, options, { from = "", opened = () => {}, lost = () => {} } = {}) {
  let id = from;
  let pause = FIRST_PAUSE;
  let lostAt = null;
  const isOpen = () => {
    lostAt = null;
    opened();
  };
  for (;;) {
    try {
      const headers = id ? { ...options.headers, "Last-Event-ID": id } : options.headers;
      for await (const event of streamEvents(url, { ...options, headers }, isOpen)) {
        id = event.id || id;
        pause = FIRST_PAUSE;
        yield event;
        if (ENDS.has(event.event)) return;
      }
    } catch (error) {
      if (!id || error.name === "AbortError" || (error instanceof Refused && !NOT_NOW.has(error.status))) throw error;
    }
    lostAt ??= performance.now();
    if (!id || performance.now() - lostAt > PATIENCE) throw new Error("The connection was lost.");
    lost();
    // Not all at the same moment, when it was the server that went away.
    await new Promise((wake) => setTimeout(wake, pause * (0.75 + Math.random() / 2)));
    pause = Math.min(2 * pause, LAST_PAUSE);
  }
}
