// Runs each JavaScript client on both streams, all at the same time, and prints what they report: {client: {stream: [[type, data, id], …]}}.

import { fetchEventSource } from "@microsoft/fetch-event-source";
import { EventSource } from "eventsource";
import { createEventSource } from "eventsource-client";

const [origin, names] = [process.argv[2], process.argv[3].split(",")];
const LAST = new Set(["done", "stream-end"]);

// Made for pages, it asks the window for its timers and whether anyone looks.
globalThis.window = globalThis;
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };

const clients = {
  "eventsource": (url) =>
    new Promise((resolve) => {
      const report = [];
      const source = new EventSource(url);
      for (const name of names) {
        source.addEventListener(name, (event) => {
          report.push([event.type, event.data, event.lastEventId]);
          if (LAST.has(event.type)) {
            source.close();
            resolve(report);
          }
        });
      }
    }),

  "eventsource-client": async (url) => {
    const report = [];
    const source = createEventSource(url);
    for await (const { event, data, id } of source) {
      report.push([event ?? "message", data, id ?? ""]);
      if (LAST.has(event)) break;
    }
    source.close();
    return report;
  },

  "fetch-event-source": async (url) => {
    const report = [];
    const ended = new AbortController();
    await fetchEventSource(url, {
      signal: ended.signal,
      onmessage({ event, data, id }) {
        report.push([event || "message", data, id]);
        if (LAST.has(event)) ended.abort();
      },
      // By itself it takes a stream's clean end for the end of all.
      onclose() {
        throw new Error("come back");
      },
      onerror() {},
    });
    return report;
  },
};

const told = {};
await Promise.all(
  Object.entries(clients).map(async ([name, run]) => {
    const [all, live] = await Promise.all([run(`${origin}/all`), run(`${origin}/live/${name}`)]);
    told[name] = { all, live };
  }),
);
process.stdout.write(JSON.stringify(told), () => process.exit(0));
