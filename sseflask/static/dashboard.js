// The dashboard. What it shows comes over one stream and one list that is asked for now and then; it keeps two minutes of it for the charts.

import { connect } from "./client.js";

const CHART_SECONDS = 120;
const CHART_WIDTH = 240;
const CHART_HEIGHT = 60;
const CHANNELS_EVERY = 2000;
const SEARCH_AFTER = 200;
const PER_PAGE = 25;
const MOST_EVENTS = 200;
const MOST_CHARACTERS = 2000;
const KINDS = {
  completed: "good",
  concluded: "good",
  disconnected: "good",
  max_age: "good",
  shutdown: "good",
  error: "bad",
  lost: "bad",
  slow: "bad",
};

const pageToken = new URLSearchParams(location.search).get("token") ?? "";
const here = (path) => new URL(path, location.href.split(/[?#]/)[0]);
const byId = (id) => document.getElementById(id);

// Numbers and times as people read them.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const fine = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const small = new Intl.NumberFormat("en", { maximumSignificantDigits: 2 });
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const quantity = (number) => (number < 10 ? small : whole).format(number);
const milliseconds = (seconds) => `${quantity(seconds * 1000)} ms`;
const total = (counts) => Object.values(counts ?? {}).reduce((sum, count) => sum + count, 0);

function bytes(number) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; number >= 1024 && unit < units.length - 1; unit++) number /= 1024;
  return `${quantity(number)} ${units[unit]}`;
}

function duration(seconds) {
  if (seconds < 60) return `${fine.format(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}

// Parts of the page.

/** Writes text only where it differs: nothing that reads the page is told of what hasn't changed. */
function write(node, text) {
  if (node.textContent !== String(text)) node.textContent = text;
}

function make(name, className = "", text = "") {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== "") node.textContent = text;
  return node;
}

function drawn(name, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

/** Rows by key, each made once and then written to, so that what is focused stays. */
class Rows {
  constructor(body, create, update) {
    this.body = body;
    this.create = create;
    this.update = update;
    this.rows = new Map();
  }

  show(items) {
    const keys = new Set(items.map(([key]) => key));
    for (const [key, row] of this.rows) {
      if (!keys.has(key)) {
        row.remove();
        this.rows.delete(key);
      }
    }
    for (const child of [...this.body.children]) if (!child.dataset.key) child.remove();
    items.forEach(([key, item], index) => {
      let row = this.rows.get(key);
      if (!row) {
        row = this.create(item, key);
        row.dataset.key = key;
        this.rows.set(key, row);
      }
      if (this.body.children[index] !== row) this.body.insertBefore(row, this.body.children[index] ?? null);
      this.update(row, item, key);
    });
  }
}

class Chart {
  constructor(figure, label, format) {
    this.label = label;
    this.format = format;
    this.points = [];
    this.output = figure.querySelector(".value [data-testid]");
    this.peak = figure.querySelector(".peak");
    this.svg = figure.querySelector("svg");
    this.area = drawn("path", { class: "area" });
    this.curve = drawn("path", { class: "curve" });
    this.svg.append(this.area, this.curve);
  }

  add(at, value) {
    this.points.push([at, value]);
    while (this.points[0][0] < at - CHART_SECONDS - 2) this.points.shift();
    const values = this.points.map((point) => point[1]);
    const most = Math.max(...values);
    const top = most > 0 ? most * 1.1 : 1;
    const place = ([then, number]) => [
      (CHART_WIDTH * (1 - (at - then) / CHART_SECONDS)).toFixed(1),
      (CHART_HEIGHT * (1 - number / top)).toFixed(1),
    ];
    const path = this.points.map((point) => place(point).join(" ")).join(" L");
    this.curve.setAttribute("d", `M${path}`);
    this.area.setAttribute("d", `M${place(this.points[0])[0]} ${CHART_HEIGHT} L${path} L${CHART_WIDTH} ${CHART_HEIGHT} Z`);
    write(this.output, this.format(value));
    write(this.peak, `peak ${this.format(most)}`);
    const text = `${this.label}: now ${this.format(value)}, at least ${this.format(Math.min(...values))} and at most ${this.format(most)} in the last two minutes`;
    this.svg.setAttribute("aria-label", text);
  }
}

// The numbers of all workers.

const chart = (name, label, format) => new Chart(document.querySelector(`[data-chart=${name}]`), label, format);
const charts = {
  streams: chart("streams", "Open streams", (number) => whole.format(number)),
  delivered: chart("delivered", "Events delivered a second", quantity),
  published: chart("published", "Events published a second", quantity),
  lag: chart("lag", "Hub lag in milliseconds", quantity),
};
const facts = {
  subscriptions: whole.format,
  detached: whole.format,
  streams_opened: whole.format,
  streams_refused: (counts) => whole.format(total(counts)),
  slow_clients: whole.format,
  resets: whole.format,
  bytes_sent: bytes,
  history_bytes: bytes,
  broker_up: (up) => (up ? "up" : "can't be followed"),
};
let before;

/** How much a sum has grown a second; 0 where that isn't known. */
const rate = (now, then, seconds) => (now === undefined || then === undefined ? 0 : Math.max(now - then, 0) / seconds);

const workers = new Rows(
  byId("workers"),
  (_, pid) => {
    const row = make("tr");
    const head = make("th", "", pid);
    head.scope = "row";
    row.append(head, make("td", "plain"));
    for (let column = 0; column < 5; column++) row.append(make("td", "number"));
    return row;
  },
  (row, { now, then, seconds }) => {
    const cells = row.children;
    write(cells[1], now.draining ? "stopping" : now.broker_up ? "running" : "without its broker");
    write(cells[2], whole.format(now.streams));
    write(cells[3], quantity(rate(now.events_sent, then?.events_sent, seconds)));
    write(cells[4], quantity(rate(now.events_published, then?.events_published, seconds)));
    write(cells[5], milliseconds(now.lag_seconds));
    write(cells[6], milliseconds(now.max_lag_seconds));
  },
);

function showNumbers(numbers) {
  const { at, all } = numbers;
  byId("problem").hidden = true;
  const seconds = before ? at - before.at : 0;
  if (before && seconds <= 0) return;
  charts.streams.add(at, all.streams);
  charts.lag.add(at, all.lag_seconds * 1000);
  if (before) {
    charts.delivered.add(at, rate(all.events_sent, before.all.events_sent, seconds));
    charts.published.add(at, rate(all.events_published, before.all.events_published, seconds));
  }
  for (const [name, format] of Object.entries(facts)) {
    write(document.querySelector(`[data-fact=${name}]`), format(all[name] ?? 0));
  }
  document.querySelector("[data-fact=broker_up]").classList.toggle("bad", !all.broker_up);
  workers.show(
    Object.entries(numbers.workers).map(([pid, now]) => [pid, { now, then: before?.workers[pid], seconds: seconds || 1 }]),
  );
  const closed = Object.entries(all.streams_closed ?? {}).sort((one, other) => other[1] - one[1]);
  const text = closed.map(([reason, count]) => `${reason} ${whole.format(count)}`).join(", ");
  write(byId("closed"), text && `All that were closed, by reason: ${text}.`);
  before = numbers;
}

function showCloses(closes) {
  if (!closes.length) return;
  byId("closes").replaceChildren(
    ...closes.toReversed().map((close) => {
      const row = make("tr");
      const reason = make("td");
      const badge = make("span", "reason", close.reason);
      badge.dataset.kind = KINDS[close.reason] ?? "wait";
      reason.append(badge);
      row.append(make("td", "plain", clock.format(close.at * 1000)), reason, make("td", "name", close.path));
      row.append(make("td", "number", duration(close.seconds)), make("td", "number", whole.format(close.events)));
      row.append(make("td", "number", close.worker));
      return row;
    }),
  );
}

function showConnection(state, { error } = {}) {
  const badge = byId("connection");
  badge.dataset.state = state;
  write(badge, state === "open" ? "Live" : state === "connecting" ? "Connecting" : "Disconnected");
  if (state === "closed") showProblem(error?.message ?? "The stream has ended. Load the page again.");
  else if (state === "open") byId("problem").hidden = true;
}

function showProblem(text) {
  byId("problem").hidden = false;
  write(byId("problem"), text);
}

connect(here("dashboard/events"), {
  parse: "json",
  token: pageToken,
  on: {
    numbers: ({ data }) => showNumbers(data),
    closes: ({ data }) => showCloses(data),
    problem: ({ data }) => showProblem(data.problem),
  },
  // What it says is on the page.
  onError: () => {},
  onState: showConnection,
});

// Channels.

let pageNumber = 1;
let pages = 1;
let asked = 0;
let isSearching = true;
let channelsTimer;
let searchTimer;
// A worker that doesn't read a channel knows no rate of it, and another one may answer each time.
let rates = new Map();

const channels = new Rows(
  byId("channels"),
  (_, name) => {
    const row = make("tr");
    const head = make("th", "name", name);
    head.scope = "row";
    const button = make("button", "", "Tail");
    button.type = "button";
    button.setAttribute("aria-label", `Tail ${name}`);
    button.addEventListener("click", () => {
      byId("tail").elements.channel.value = name;
      startTail();
      byId("tail-button").focus();
    });
    const spark = make("td");
    spark.append(drawn("svg", { class: "spark", viewBox: "0 0 96 22", preserveAspectRatio: "none", "aria-hidden": "true" }));
    const action = make("td");
    action.append(button);
    row.append(head, make("td", "number"), make("td", "number"), spark, action);
    return row;
  },
  (row, channel, name) => {
    if (channel.recent) rates.set(name, channel);
    const known = rates.get(name);
    write(row.children[1], whole.format(channel.streams));
    write(row.children[2], known ? quantity(known.rate) : "–");
    const recent = known?.recent ?? [];
    const text = recent.join();
    if (row.dataset.recent === text) return;
    row.dataset.recent = text;
    const most = Math.max(1, ...recent);
    const width = 96 / Math.max(recent.length, 1);
    const bars = recent.map((count, index) => {
      const height = count ? Math.max((22 * count) / most, 3) : 1;
      return drawn("rect", { x: index * width, y: 22 - height, width: width - 2, height });
    });
    row.children[3].firstChild.replaceChildren(...bars);
  },
);

async function showChannels() {
  clearTimeout(channelsTimer);
  const turn = ++asked;
  const search = byId("search").elements.search.value;
  const url = here("channels");
  url.search = new URLSearchParams({ search, page: pageNumber, per_page: PER_PAGE });
  try {
    const headers = pageToken ? { Authorization: `Bearer ${pageToken}` } : {};
    const response = await fetch(url, { headers, cache: "no-store" });
    const answer = await response.json();
    if (turn !== asked) return;
    if (response.ok) listChannels(answer);
    else write(byId("found"), `The channels can't be listed: ${answer.error}`);
  } catch (error) {
    if (turn !== asked) return;
    write(byId("found"), `The channels can't be listed: ${error.message}`);
  }
  channelsTimer = setTimeout(showChannels, CHANNELS_EVERY);
}

function listChannels(answer) {
  ({ page: pageNumber, pages } = answer);
  const search = byId("search").elements.search.value;
  const noun = answer.total === 1 ? "channel" : "channels";
  const all = `${whole.format(answer.total)} ${noun}`;
  write(byId("found"), search ? `${whole.format(answer.found)} of ${all}` : all);
  write(byId("page"), `Page ${whole.format(pageNumber)} of ${whole.format(pages)}`);
  byId("previous").disabled = pageNumber <= 1;
  byId("next").disabled = pageNumber >= pages;
  const listed = answer.channels.map((channel) => [channel.name, channel]);
  const table = byId("channels");
  if (!isSearching && table.contains(document.activeElement)) {
    // Nothing moves away from under somebody's fingers.
    const place = new Map([...table.children].map((row, index) => [row.dataset.key, index]));
    const kept = new Map(listed);
    for (const key of place.keys()) if (key && !kept.has(key)) listed.push([key, { streams: 0 }]);
    listed.sort(([one], [other]) => (place.get(one) ?? PER_PAGE) - (place.get(other) ?? PER_PAGE));
  }
  channels.show(listed);
  const names = new Set(listed.map(([name]) => name));
  rates = new Map([...rates].filter(([name]) => names.has(name)));
  if (!listed.length) {
    const row = make("tr");
    const cell = make("td", "soft", search ? "No channel's name has this in it." : "No channel has streams.");
    cell.colSpan = 5;
    row.append(cell);
    table.replaceChildren(row);
  }
  if (isSearching) {
    isSearching = false;
    write(byId("found-said"), `${byId("found").textContent}, ${byId("page").textContent}`);
  }
}

function turnTo(number) {
  pageNumber = Math.min(Math.max(number, 1), pages);
  isSearching = true;
  void showChannels();
}

byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(searchTimer);
  turnTo(1);
});
byId("search").addEventListener("input", () => {
  clearTimeout(searchTimer);
  searchTimer = setTimeout(turnTo, SEARCH_AFTER, 1);
});
byId("previous").addEventListener("click", () => turnTo(pageNumber - 1));
byId("next").addEventListener("click", () => turnTo(pageNumber + 1));
document.addEventListener("visibilitychange", () => {
  // Nobody looks: nothing is asked.
  if (document.hidden) clearTimeout(channelsTimer);
  else void showChannels();
});
void showChannels();

// By hand.

const tailForm = byId("tail");
const publishForm = byId("publish");
const log = document.querySelector(".log");
let tail;

const token = () => tailForm.elements.token.value || pageToken;

function startTail() {
  stopTail();
  const channel = tailForm.elements.channel.value.trim();
  if (!channel) return;
  byId("events").replaceChildren();
  log.hidden = false;
  const url = here("../");
  url.search = new URLSearchParams({ channel });
  const say = (text) => write(byId("tail-state"), text);
  say(`Opening ${channel}…`);
  write(byId("tail-button"), "Stop");
  let count = 0;
  tail = connect(url, {
    token: token(),
    on: {
      "*": (event) => {
        if (event.type === "stream-open") return;
        addEvent(event);
        count++;
        // Said once: each event is in the table, for who wants to read it.
        if (count === 1) say(`Tailing ${channel}; events are coming.`);
      },
    },
    onError: () => {},
    onState: (state, { error } = {}) => {
      if (state === "open") say(`Tailing ${channel}.`);
      else if (state === "connecting") say(`Opening ${channel} again…${error ? ` ${error.message}.` : ""}`);
      else {
        write(byId("tail-button"), "Tail");
        const refused = error?.status === 401 || error?.status === 403;
        const hint = refused ? " Sign in with the app, or enter a token for this channel (sse.sign)." : "";
        say(error ? `${channel} can't be tailed. ${error.message}.${hint}` : `${channel} is no longer tailed.`);
        tail = undefined;
      }
    },
  });
}

function stopTail() {
  tail?.close();
}

const shortened = (text) => (text.length > MOST_CHARACTERS ? `${text.slice(0, MOST_CHARACTERS)}…` : text);

function addEvent({ type, data, lastEventId }) {
  const row = make("tr");
  row.append(make("td", "plain", clock.format(Date.now())), make("td", "plain", type));
  row.append(make("td", "data", shortened(data)), make("td", "name", lastEventId));
  const body = byId("events");
  body.prepend(row);
  while (body.children.length > MOST_EVENTS) body.lastChild.remove();
}

/** What was typed as JSON, or as text where it is none. */
function typed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

tailForm.addEventListener("submit", (event) => {
  event.preventDefault();
  if (tail) stopTail();
  else startTail();
});

publishForm.addEventListener("submit", async (event) => {
  event.preventDefault();
  const outcome = byId("outcome");
  const say = (text, kind) => {
    write(outcome, text);
    outcome.className = `note ${kind}`;
  };
  const channel = tailForm.elements.channel.value.trim();
  if (!channel) {
    say("Name a channel first.", "bad");
    tailForm.elements.channel.focus();
    return;
  }
  if (channel.split("/").some((part) => ["", ".", ".."].includes(part))) {
    // The path would become another one.
    say("A browser can't publish to a channel of this name.", "bad");
    return;
  }
  const fields = { data: typed(publishForm.elements.data.value) };
  if (publishForm.elements.event.value) fields.event = publishForm.elements.event.value;
  const headers = { "Content-Type": "application/json", "Idempotency-Key": crypto.randomUUID?.() ?? String(Math.random()) };
  if (token()) headers.Authorization = `Bearer ${token()}`;
  try {
    const path = channel.split("/").map(encodeURIComponent).join("/");
    const response = await fetch(here(`../${path}`), { method: "POST", headers, body: JSON.stringify(fields) });
    const answer = await response.json();
    if (response.ok) say(`Published to ${channel} as ${answer.id}.`, "good");
    else say(`Not published: ${answer.error}`, "bad");
  } catch (error) {
    say(`Nobody knows whether it was published: ${error.message}`, "bad");
  }
});
