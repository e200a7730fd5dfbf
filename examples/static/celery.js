import { Connection } from "./connection.js";
import { showOutcome } from "./outcome.js";
import { postJson } from "./post.js";

const element = (id) => document.getElementById(id);
const connection = new Connection();
const number = new Intl.NumberFormat("en");
const ready = element("form").dataset.ready === "yes";
let source = null;
let reports = 0;

function show({ percent, primes, largest }) {
  element("bar").value = percent;
  element("percent").textContent = `${Math.floor(percent)} %`;
  element("primes").textContent = number.format(primes);
  element("largest").textContent = number.format(largest);
}

function toggle() {
  element("start").disabled = !ready || source !== null;
}

function reset(job) {
  show({ percent: 0, primes: 0, largest: 0 });
  reports = 0;
  element("reports").textContent = "0";
  element("job").textContent = job;
  element("now").textContent = "Waiting for the worker…";
  element("outcome").replaceChildren();
}

function end(state, words) {
  source.close();
  source = null;
  connection.state = state;
  element("now").textContent = words;
  // The next page that is loaded begins anew.
  history.replaceState(null, "", location.pathname);
  toggle();
}

function follow(job, url) {
  reset(job);
  source = connection.follow(new EventSource(url));
  // A page that is loaded again finds the job by this.
  history.replaceState(null, "", `#${job}`);
  toggle();
  source.addEventListener("progress", (event) => {
    show(JSON.parse(event.data));
    reports += 1;
    element("reports").textContent = reports;
    element("now").textContent = "The worker counts.";
  });
  source.addEventListener("complete", (event) => {
    const { primes, largest, limit, seconds } = JSON.parse(event.data);
    show({ percent: 100, primes, largest });
    end("closed", "Done.");
    showOutcome(element("outcome"), "good", {
      title: `${number.format(primes)} prime numbers below ${number.format(limit)}`,
      text: `Counted by the worker in ${seconds.toFixed(1)} s.`,
    });
  });
  source.addEventListener("failed", (event) => {
    end("closed", "The job has ended.");
    showOutcome(element("outcome"), "bad", { title: JSON.parse(event.data).error });
  });
  source.addEventListener("error", () => {
    // It tries again by itself, unless the answer was no stream.
    if (source?.readyState !== EventSource.CLOSED) return;
    end("failed", "The job can't be followed.");
    showOutcome(element("outcome"), "bad", { title: "The server can't follow this job now." });
  });
}

async function start() {
  element("start").disabled = true;
  element("outcome").replaceChildren();
  try {
    const { job, events } = await postJson(element("form").dataset.url, { limit: element("limit").value });
    follow(job, events);
  } catch (error) {
    showOutcome(element("outcome"), "bad", { title: error.message });
    toggle();
  }
}

element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  start();
});
if (ready && /^#[0-9a-f]{32}$/.test(location.hash)) {
  const job = location.hash.slice(1);
  follow(job, `${element("form").dataset.url}/${job}/events`);
}
toggle(); // The button is disabled until somebody listens to it.
