import { Connection } from "./connection.js";

const element = (id) => document.getElementById(id);
const connection = new Connection();
let source = null;
let connections = 0;
let count = 0;
let milestones = 0;
let missed = 0;

function log(kind, id, data) {
  const row = element("log").insertRow(0);
  row.dataset.kind = kind;
  const time = new Date();
  const clock = `${time.toLocaleTimeString("en-GB")}.${String(time.getMilliseconds()).padStart(3, "0")}`;
  for (const text of [clock, kind, id, data]) row.insertCell().textContent = text;
  while (element("log").rows.length > 200) element("log").deleteRow(-1);
}

function counted(event) {
  const next = JSON.parse(event.data).count;
  missed += Math.max(0, next - count - 1);
  count = next;
  element("count").textContent = count;
  element("count").classList.toggle("milestone", event.type === "milestone");
  element("last-id").textContent = event.lastEventId;
  element("missed").textContent = missed;
  log(event.type, event.lastEventId, event.data);
}

function start() {
  connections = count = milestones = missed = 0;
  for (const id of ["milestones", "reconnections", "missed"]) element(id).textContent = "0";
  element("log").replaceChildren();

  source = connection.follow(new EventSource(element("rest").checked ? "events?rest=10" : "events"));
  source.addEventListener("open", () => {
    connections += 1;
    element("reconnections").textContent = connections - 1;
  });
  source.addEventListener("error", () => log("notice", "", "the connection is lost; the browser will ask again"));
  source.addEventListener("message", counted); // Events without a name.
  source.addEventListener("milestone", (event) => {
    milestones += 1;
    element("milestones").textContent = milestones;
    counted(event);
  });
  source.addEventListener("resumed", (event) => log("resumed", "", event.data));
  toggle(true);
}

function stop() {
  source.close(); // The server notices at once: the generator ends where it sleeps.
  connection.state = "closed";
  toggle(false);
}

function toggle(running) {
  element("start").disabled = running;
  element("stop").disabled = !running;
  element("rest").disabled = running;
}

element("start").addEventListener("click", () => {
  start();
  element("stop").focus();
});
element("stop").addEventListener("click", () => {
  stop();
  element("start").focus();
});
toggle(false); // The buttons are disabled until somebody listens to them.
