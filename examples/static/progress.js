import { Connection } from "./connection.js";
import { Refused, streamEvents } from "./event-stream.js";
import { showOutcome } from "./outcome.js";

const element = (id) => document.getElementById(id);
const connection = new Connection();
const number = new Intl.NumberFormat("en");
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
let running = null;

const handlers = {
  progress(report) {
    element("bar").value = report.percent;
    element("percent").textContent = `${Math.floor(report.percent)} %`;
    element("file").textContent = report.file;
    element("files").textContent = report.files.map((count) => number.format(count)).join(" of ");
    element("bytes").textContent = report.bytes.map((count) => (count / 1e6).toFixed(1)).join(" of ") + " MB";
    element("throughput").textContent = `${megabytes(report.bytes_per_second)}/s`;
    element("seconds").textContent = `${report.seconds.toFixed(1)} s`;
  },
  complete({ result }) {
    element("bar").dataset.state = "done";
    element("file").textContent = "Done.";
    showOutcome(element("outcome"), "good", {
      title: `${number.format(result.files)} files, ${megabytes(result.bytes)} in ${result.seconds.toFixed(1)} s`,
      text: result.skipped ? `${number.format(result.skipped)} could not be read.` : "",
      code: `sha256 ${result.sha256}`,
    });
  },
  error(error) {
    showOutcome(element("outcome"), "bad", { title: error.error, code: error.error_type });
  },
};

async function run() {
  running = new AbortController();
  reset();
  let ended = false;
  try {
    const query = new URLSearchParams(new FormData(element("form")));
    const opened = () => {
      connection.state = "open";
      element("file").textContent = "Looking for files…";
    };
    for await (const { event, data } of streamEvents(`events?${query}`, { signal: running.signal }, opened)) {
      handlers[event]?.(JSON.parse(data));
      ended ||= event === "complete" || event === "error";
    }
    connection.state = "closed";
    if (!ended) throw new Error("The connection was lost before the work was done.");
  } catch (error) {
    failed(error);
  }
  running = null;
  toggle();
}

function failed(error) {
  if (error.name === "AbortError") {
    element("bar").dataset.state = "cancelled";
    connection.state = "closed";
    element("file").textContent = "Cancelled.";
    showOutcome(element("outcome"), "plain", { title: "Cancelled", text: "The server has stopped hashing." });
  } else {
    connection.state = "failed";
    element("file").textContent = "Nothing is being hashed.";
    const code = error instanceof Refused ? `${error.status} ${error.type}` : "";
    showOutcome(element("outcome"), "bad", { title: error.message, code });
  }
}

function reset() {
  connection.state = "connecting";
  element("bar").value = 0;
  delete element("bar").dataset.state;
  element("percent").textContent = "0 %";
  for (const id of ["files", "bytes", "throughput", "seconds"]) element(id).textContent = "–";
  element("outcome").replaceChildren();
  toggle();
}

function toggle() {
  element("start").disabled = running !== null;
  element("cancel").disabled = running === null;
}

element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  run();
  element("cancel").focus();
});
element("cancel").addEventListener("click", () => {
  running?.abort();
  element("form").querySelector(":checked").focus();
});
toggle(); // The buttons are disabled until somebody listens to them.
