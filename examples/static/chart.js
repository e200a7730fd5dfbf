// A line or stacked area chart of the last minute, drawn as SVG by hand.

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { top: 8, right: 12, bottom: 20, left: 52 };
const SECONDS = 60;
// Samples further apart than this aren't joined: nobody knows what was in between.
const GAP_SECONDS = 2.5;

function draw(tag, attributes, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

// The values for about four lines of a grid up to `max`: round steps.
function ticks(max) {
  const rough = max / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough * 0.9);
  const values = [];
  for (let value = 0; value <= max * 1.0001; value += step) values.push(value);
  return { values, step };
}

export class Chart {
  // series: [{ key, label }], bottom first when stacked; limit(samples): the top of the axis, or null to fit;
  // mark: { value, label } for a line across.
  constructor(figure, { series, format, stacked = false, limit = () => null, floor = 1 }) {
    Object.assign(this, { series, format, stacked, limit, floor, mark: null, samples: [], hovered: null });
    this.title = figure.querySelector("h2").textContent;
    this.values = series.map(({ label }, index) => this.#legend(figure, label, index));
    this.plot = document.createElement("div");
    this.plot.className = "plot";
    this.plot.tabIndex = 0;
    this.plot.setAttribute("role", "img");
    this.plot.setAttribute("aria-label", `${this.title}, the last minute; the arrow keys read it`);
    figure.append(this.plot);
    this.svg = draw("svg", { "aria-hidden": "true" });
    this.plot.append(this.svg);
    new ResizeObserver(() => this.render()).observe(this.plot);
  }

  #legend(figure, label, index) {
    const caption = figure.querySelector("figcaption");
    let list = caption.querySelector(".legend");
    if (!list) {
      list = document.createElement("ul");
      list.className = "legend";
      caption.append(list);
    }
    const item = document.createElement("li");
    const swatch = document.createElement("span");
    swatch.className = `swatch series-${index + 1}`;
    const value = document.createElement("b");
    value.textContent = "–";
    item.append(swatch, label, value);
    list.append(item);
    return value;
  }

  // samples: [{ time, … }], oldest first; hovered: the index that the pointer is on, or null.
  show(samples, hovered = null) {
    this.samples = samples;
    this.hovered = hovered;
    this.render();
  }

  // What the chart says at one sample, in words.
  describe(sample) {
    return `${this.title}: ${this.series.map(({ key, label }) => `${label} ${this.format(sample[key])}`).join(", ")}`;
  }

  // The index of the sample nearest to a place on the screen.
  sampleAt(clientX) {
    const box = this.plot.getBoundingClientRect();
    const time = this.now - (1 - (clientX - box.left - MARGIN.left) / (box.width - MARGIN.left - MARGIN.right)) * SECONDS;
    let nearest = null;
    this.samples.forEach((sample, index) => {
      if (nearest === null || Math.abs(sample.time - time) < Math.abs(this.samples[nearest].time - time)) nearest = index;
    });
    return nearest;
  }

  render() {
    const { clientWidth: width, clientHeight: height } = this.plot;
    if (width === 0) return;
    const { samples } = this;
    this.now = samples.at(-1)?.time ?? 0;
    const highest = Math.max(this.floor, this.mark?.value ?? 0, ...samples.map((sample) => this.#sum(sample, this.series.length)));
    const limit = this.limit(samples);
    const { values, step } = ticks(limit ?? highest * 1.05);
    const top = limit ?? (values.at(-1) < highest ? values.at(-1) + step : values.at(-1));
    if (top > values.at(-1) && limit === null) values.push(top);

    const right = width - MARGIN.right;
    const bottom = height - MARGIN.bottom;
    const x = (time) => right - ((this.now - time) / SECONDS) * (right - MARGIN.left);
    const y = (value) => bottom - (Math.min(value, top) / top) * (bottom - MARGIN.top);

    const nodes = [];
    for (const value of values) {
      nodes.push(draw("line", { class: value === 0 ? "axis" : "grid", x1: MARGIN.left, x2: right, y1: y(value), y2: y(value) }));
      nodes.push(draw("text", { x: MARGIN.left - 8, y: y(value) + 4, "text-anchor": "end" }, this.format(value)));
    }
    for (let ago = SECONDS; ago >= 0; ago -= 15) {
      const place = x(this.now - ago);
      nodes.push(draw("line", { class: "axis", x1: place, x2: place, y1: bottom, y2: bottom + 4 }));
      const anchor = ago === 0 ? "end" : "middle";
      nodes.push(draw("text", { x: place, y: height - 3, "text-anchor": anchor }, ago === 0 ? "now" : `${ago} s ago`));
    }

    const runs = this.#runs();
    this.series.forEach((series, index) => {
      const level = (sample) => (this.stacked ? this.#sum(sample, index + 1) : sample[series.key]);
      for (const run of runs) {
        const edge = run.map((sample) => `${x(sample.time).toFixed(1)},${y(level(sample)).toFixed(1)}`);
        if (this.stacked) {
          const below = run.map((sample) => `${x(sample.time).toFixed(1)},${y(this.#sum(sample, index)).toFixed(1)}`).reverse();
          nodes.push(draw("path", { class: `area series-${index + 1}`, d: `M${edge.join("L")}L${below.join("L")}Z` }));
        }
        nodes.push(draw("path", { class: `line series-${index + 1}`, d: `M${edge.join("L")}` }));
      }
    });

    if (this.mark) {
      nodes.push(draw("line", { class: "mark", x1: MARGIN.left, x2: right, y1: y(this.mark.value), y2: y(this.mark.value) }));
      const line = y(this.mark.value);
      nodes.push(draw("text", { x: MARGIN.left + 6, y: line - MARGIN.top < 14 ? line + 14 : line - 5 }, this.mark.label));
    }

    const hovered = this.hovered === null ? undefined : samples[this.hovered];
    if (hovered) {
      const place = x(hovered.time);
      nodes.push(draw("line", { class: "cross", x1: place, x2: place, y1: MARGIN.top, y2: bottom }));
      this.series.forEach((series, index) => {
        const level = this.stacked ? this.#sum(hovered, index + 1) : hovered[series.key];
        nodes.push(draw("circle", { class: `point series-${index + 1}`, cx: place, cy: y(level), r: 4.5 }));
      });
      const side = place > width / 2 ? { x: place - 7, "text-anchor": "end" } : { x: place + 7, "text-anchor": "start" };
      nodes.push(draw("text", { y: bottom - 6, ...side }, `${(this.now - hovered.time).toFixed(1)} s ago`));
    }

    const told = hovered ?? samples.at(-1);
    if (told) this.values.forEach((value, index) => (value.textContent = this.format(told[this.series[index].key])));
    this.svg.replaceChildren(...nodes);
  }

  #sum(sample, count) {
    const values = this.series.slice(0, count).map(({ key }) => sample[key]);
    return this.stacked ? values.reduce((sum, value) => sum + value, 0) : Math.max(0, ...values);
  }

  #runs() {
    const runs = [];
    let last = null;
    for (const sample of this.samples) {
      if (last === null || sample.time - last.time > GAP_SECONDS) runs.push([]);
      runs.at(-1).push(sample);
      last = sample;
    }
    return runs;
  }
}

export const SHOWN_SECONDS = SECONDS;
