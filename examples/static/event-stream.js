// Reads an event stream from a fetch() response: what EventSource does, for a POST, with errors that say why, and one that can be stopped.

// Takes text in any pieces and returns the events that are whole (WHATWG HTML, 9.2.6).
export class EventStreamParser {
  #rest = "";
  #afterReturn = false;
  #event = "";
  #data = [];
  #id = "";
  lastEventId = "";
  retry = null;

  feed(text) {
    const events = [];
    // A line ends with CR LF, LF or CR. When a piece ends with CR, the LF that may come next belongs to it.
    const lines = (this.#rest + (this.#afterReturn ? text.replace(/^\n/, "") : text)).split(/\r\n|\n|\r/);
    if (text) this.#afterReturn = text.endsWith("\r");
    this.#rest = lines.pop();
    for (const line of lines) this.#take(line, events);
    return events;
  }

  #take(line, events) {
    if (line === "") {
      this.lastEventId = this.#id;
      if (this.#data.length > 0) {
        events.push({ event: this.#event || "message", data: this.#data.join("\n"), id: this.lastEventId });
      }
      this.#event = "";
      this.#data = [];
      return;
    }
    const colon = line.indexOf(":");
    if (colon === 0) return; // A comment: a keepalive, most of the time.
    const field = colon < 0 ? line : line.slice(0, colon);
    // One space after the colon belongs to the colon, a second one to the value.
    const value = colon < 0 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
    if (field === "event") this.#event = value;
    else if (field === "data") this.#data.push(value);
    else if (field === "id" && !value.includes("\0")) this.#id = value;
    // A browser's timer that is to wait for more than this doesn't wait at all.
    else if (field === "retry" && /^[0-9]+$/.test(value)) this.retry = Math.min(Number(value), 2 ** 31 - 1);
  }
}

// What the server said instead of a stream.
export class Refused extends Error {
  constructor(status, body) {
    super(body.error ?? `The server answered ${status}.`);
    this.status = status;
    this.type = body.error_type ?? "";
  }
}

// Asks for a stream and yields its events one by one. Abort `options.signal` to end it, on both sides.
export async function* streamEvents(url, options = {}, onOpen = () => {}) {
  const response = await fetch(url, { cache: "no-store", ...options, headers: { Accept: "text/event-stream", ...options.headers } });
  const type = response.headers.get("Content-Type") ?? "";
  if (!response.ok || !type.startsWith("text/event-stream")) {
    throw new Refused(response.status, await response.json().catch(() => ({})));
  }
  onOpen();
  // The decoder holds back the first bytes of a character until the others have come.
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const parser = new EventStreamParser();
  try {
    for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
      yield* parser.feed(piece.value);
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}
