// How the client is used, for the compiler: what must be accepted, and (marked) what must not. Nothing runs this.
import { connect, StreamManager } from "sseflask";
import type { Connection, Options, Reset, StreamError, StreamEvent } from "sseflask";

interface Progress {
  percent: number;
}

interface Events {
  progress: Progress;
  note: string;
}

const asProgress = (value: unknown): Progress => {
  if (typeof value === "object" && value && "percent" in value && typeof value.percent === "number") {
    return { percent: value.percent };
  }
  throw new TypeError("no progress");
};

// The least.
const plain: Connection = connect("/events/news");
const state: 0 | 1 | 2 = plain.readyState;
const position: string = plain.lastEventId;
const over: Promise<void> = plain.closed;
plain.close();

// All of it.
const options: Options<Events> = {
  parse: "json",
  schema: { progress: asProgress },
  on: {
    progress: ({ data, type, lastEventId }: StreamEvent<Progress>) => console.log(data.percent.toFixed(1), type, lastEventId),
    note: (event) => event.data.toUpperCase(),
    "*": ({ type }) => console.log(type),
  },
  onReset: ({ data }: StreamEvent<Reset>) => console.log(data.reason, data.position ?? "none"),
  onOpen: () => {},
  onError: (error: StreamError) => console.log(error.message, error.status ?? 0, error.retrying, error.event),
  onState: (now, { attempt, delay, error }) => console.log(now === "connecting", attempt ?? 0, delay ?? 0, error?.status),
  method: "POST",
  body: { question: "why" },
  headers: async () => ({ "X-CSRF-Token": "t" }),
  token: async () => "t",
  withCredentials: true,
  endEvent: "report-done",
  resetEvent: "stream-reset",
  retries: 5,
  backoff: { base: 500, max: 10_000 },
  stallTimeout: 0,
  lastEventId: "5",
  position: "session",
};
connect<Events>(new URL("https://example.org/events/jobs"), options);
connect("/events/jobs", { share: true, token: "t", body: null, headers: { Accept: "text/event-stream" } });
connect("/events/jobs", { share: { principal: "ann", timeout: 5_000 }, parse: (data, type) => `${type} ${data}` });
connect("/ask", { method: "POST", body: new URLSearchParams({ q: "why" }), headers: [["A", "b"]] });
connect("/events/jobs", { on: { message: (event) => console.log(event.data.anything) } });

const streams = new StreamManager({ onError: (error) => console.log(error.status) });
const job = streams.connect<Events>("job", "/events/jobs", options);
streams.get("job")?.close();
streams.disconnect("job");
streams.disconnectAll();

// What must not compile.
// @ts-expect-error: a state can't be set
plain.readyState = 1;
// @ts-expect-error: there is no such option
connect("/events", { onClose: () => {} });
// @ts-expect-error: a schema gives what the handler takes
connect<Events>("/events", { schema: { progress: () => "no progress" } });
// @ts-expect-error: a note is text
connect<Events>("/events", { on: { note: (event) => event.data.percent } });
// @ts-expect-error: milliseconds are a number
connect("/events", { stallTimeout: "45s" });
// @ts-expect-error: data are read as text, as JSON or by a function
connect("/events", { parse: "xml" });

export { job, over, position, state };
