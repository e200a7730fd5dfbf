import { Chart, SHOWN_SECONDS } from "./chart.js";
import { Connection } from "./connection.js";

const element = (id) => document.getElementById(id);
const connection = new Connection();

const percent = (value) => `${Math.round(value)} %`;
const load = (value) => value.toFixed(value < 10 ? 2 : 1);
const size = (value) => {
  const power = value < 1000 ? 0 : Math.min(4, Math.floor(Math.log10(value) / 3));
  const scaled = value / 1000 ** power;
  return `${scaled.toFixed(power === 0 || scaled >= 100 || Number.isInteger(scaled) ? 0 : 1)} ${["B", "kB", "MB", "GB", "TB"][power]}`;
};

const charts = {
  cpu: new Chart(element("cpu"), {
    series: [{ key: "user", label: "user" }, { key: "system", label: "system" }, { key: "waiting", label: "waiting" }],
    format: percent,
    stacked: true,
    limit: () => 100,
  }),
  load: new Chart(element("load"), {
    series: [{ key: "one", label: "1 min" }, { key: "five", label: "5 min" }, { key: "fifteen", label: "15 min" }],
    format: load,
  }),
  memory: new Chart(element("memory"), {
    series: [{ key: "used", label: "used" }, { key: "cache", label: "cache" }],
    format: size,
    stacked: true,
    limit: (samples) => samples.at(-1)?.total ?? null,
    floor: 1e9,
  }),
  network: new Chart(element("network"), {
    series: [{ key: "received", label: "received" }, { key: "sent", label: "sent" }],
    format: (value) => `${size(value)}/s`,
    floor: 1000,
  }),
};

let samples = [];
let hoveredTime = null;

// All charts have the same time axis, so they share the crosshair too.
function show() {
  const hovered = hoveredTime === null ? -1 : samples.findIndex((sample) => sample.time === hoveredTime);
  for (const [name, chart] of Object.entries(charts)) {
    chart.show(samples.map((sample) => ({ time: sample.time, ...sample[name] })), hovered < 0 ? null : hovered);
  }
}

for (const [name, chart] of Object.entries(charts)) {
  const hover = (index) => {
    hoveredTime = index === null ? null : samples[index]?.time ?? null;
    show();
  };
  chart.plot.addEventListener("pointermove", (event) => hover(chart.sampleAt(event.clientX)));
  chart.plot.addEventListener("pointerleave", () => hover(null));
  chart.plot.addEventListener("blur", () => hover(null));
  chart.plot.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") hover(null);
    if (!step || samples.length === 0) return;
    event.preventDefault();
    const from = chart.hovered ?? samples.length;
    const index = Math.max(0, Math.min(samples.length - 1, from + step));
    hover(index);
    element("reading").textContent = chart.describe(samples[index][name]);
  });
}

let source = null;

function start() {
  source = connection.follow(new EventSource("events"));
  source.addEventListener("machine", (event) => {
    const machine = JSON.parse(event.data);
    element("machine").textContent = `${machine.name}: ${machine.processors} processors, Linux ${machine.kernel}`;
    charts.load.mark = { value: machine.processors, label: "all processors busy" };
  });
  source.addEventListener("sample", (event) => {
    const sample = JSON.parse(event.data);
    charts.memory.mark = { value: sample.memory.total, label: `all memory, ${size(sample.memory.total)}` };
    samples = [...samples, sample].filter(({ time }) => sample.time - time <= SHOWN_SECONDS);
    show();
  });
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) element("machine").textContent = "These metrics come from /proc, which only Linux has.";
  });
  element("toggle").textContent = "Pause";
}

element("toggle").addEventListener("click", () => {
  if (source.readyState === EventSource.CLOSED) {
    start();
    return;
  }
  source.close();
  connection.state = "closed";
  element("toggle").textContent = "Go on";
});

start();
element("toggle").disabled = false;
