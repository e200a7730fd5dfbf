import { Connection } from "./connection.js";
import { showOutcome } from "./outcome.js";
import { postJson } from "./post.js";
import { followTask, keepInAddress, taskInAddress } from "./task.js";

const element = (id) => document.getElementById(id);
const connection = new Connection();
const reports = element("leave").dataset.url;
const number = new Intl.NumberFormat("en");
let room = null;
let newest = 0;
let task = null;

function toggle() {
  for (const id of ["author", "text", "say"]) element(id).disabled = room === null;
  element("leave").disabled = room === null || element("leave").dataset.ready === "no";
  element("cancel").disabled = task === null;
  element("enter").hidden = room !== null || task !== null;
}

function part(tag, className, text) {
  const node = document.createElement(tag);
  node.className = className;
  node.textContent = text;
  return node;
}

// The room

function addMessage({ number, author, text, at }) {
  // The room as it was may have told of it already.
  if (number <= newest) return;
  newest = number;
  const item = part("li", "notice", "");
  item.dataset.kind = "info";
  item.dataset.testid = "message";
  const time = new Date(at * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", timeZone: "UTC" });
  item.append(part("p", "text", text), part("p", "meta", `${author} · ${time} UTC`));
  element("said").append(item);
  element("said").scrollTop = element("said").scrollHeight;
  element("count").textContent = element("said").children.length;
}

function enter() {
  room = connection.follow(new EventSource("events"));
  room.addEventListener("room", (event) => {
    newest = 0;
    element("said").replaceChildren();
    for (const message of JSON.parse(event.data).messages) addMessage(message);
  });
  room.addEventListener("message", (event) => {
    // Without data it isn't the server's.
    if (event.data) addMessage(JSON.parse(event.data));
  });
  toggle();
}

async function say() {
  const box = element("text");
  const text = box.value.trim();
  if (!text || room === null) return;
  box.value = "";
  box.focus();
  try {
    await postJson(element("form").dataset.url, { author: element("author").value, text });
    element("problem").replaceChildren();
  } catch (error) {
    if (!box.value) box.value = text;
    showOutcome(element("problem"), "bad", { title: error.message });
  }
}

async function leave() {
  element("leave").disabled = true;
  try {
    const { job } = await postJson(reports, {});
    room.close();
    room = null;
    follow(job);
    element("cancel").focus();
  } catch (error) {
    showOutcome(element("problem"), "bad", { title: error.message });
    toggle();
  }
}

// The report

function addStatus(text) {
  const item = part("li", "", text);
  item.dataset.testid = "status";
  element("statuses").append(item);
}

function follow(job) {
  task = job;
  keepInAddress(job);
  element("statuses").replaceChildren();
  element("outcome").replaceChildren();
  element("download").replaceChildren();
  delete element("bar").dataset.state;
  element("bar").value = 0;
  element("now").textContent = "Looking for the report…";
  toggle();
  const handlers = {
    task_progress({ progress, message }) {
      element("bar").value = progress;
      element("percent").textContent = `${Math.floor(progress)} %`;
      element("now").textContent = message;
    },
    EXCEL_STATUS: ({ message }) => addStatus(message),
    EXCEL_STATUS_END: ({ file, bytes }) => addStatus(`${file}: ${number.format(bytes)} bytes`),
  };
  followTask(connection, `${reports}/${job}/events`, handlers, (name, data) => ended(job, name, data));
}

function ended(job, name, { result, error, details }) {
  task = null;
  element("now").textContent = name === "task_completed" ? "Done." : "No report is being written.";
  if (name === "task_completed") {
    element("bar").dataset.state = "done";
    showReport(job, result);
  } else if (name === "task_cancelled") {
    element("bar").dataset.state = "cancelled";
    showOutcome(element("outcome"), "plain", { title: "Cancelled", text: "There is no file: what was written of it is deleted." });
  } else if (name === "task_failed") {
    showOutcome(element("outcome"), "bad", { title: error, code: details?.error_type ?? "" });
  } else {
    keepInAddress(null);
    showOutcome(element("outcome"), "bad", { title: "Nobody knows of this report any more.", text: "Reports are forgotten some minutes after their end." });
  }
  toggle();
}

function showReport(job, { messages, authors, busiest_hour, in_busiest_hour, words, file }) {
  const hour = busiest_hour === null ? "" : `Most of them, ${in_busiest_hour}, between ${busiest_hour}:00 and ${busiest_hour + 1}:00 UTC. `;
  showOutcome(element("outcome"), "good", {
    title: `${number.format(messages)} messages by ${authors.map(({ author, messages: count }) => `${author} (${count})`).join(", ")}`,
    text: `${hour}The words of the night: ${words.slice(0, 5).map(({ word }) => word).join(", ")}.`,
  });
  const link = part("a", "button", "Download the report");
  link.href = `${reports}/${job}/${file}`;
  link.download = file;
  link.dataset.testid = "download-link";
  element("download").replaceChildren(link);
}

element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  say();
});
element("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    say();
  }
});
element("leave").addEventListener("click", leave);
element("cancel").addEventListener("click", async () => {
  // The button says that it was heard; the page says that it is so when the stream does.
  element("cancel").disabled = true;
  await postJson(`${reports}/${task}/cancel`, {}).catch(toggle);
});
element("enter").addEventListener("click", () => {
  keepInAddress(null);
  enter();
  element("text").focus();
});
// Who comes with a report's address has left the room.
if (taskInAddress()) follow(taskInAddress());
else enter();
