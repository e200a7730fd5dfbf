import { Connection } from "./connection.js";
import { Refused, streamEvents } from "./event-stream.js";

const element = (id) => document.getElementById(id);
const connection = new Connection();
const messages = element("messages");
const conversation = [];
let running = null;

function addMessage(role, text = "") {
  const item = document.createElement("div");
  item.className = "message";
  item.dataset.role = role;
  item.dataset.testid = `message-${role}`;
  const paragraph = document.createElement("p");
  paragraph.textContent = text;
  item.append(paragraph);
  messages.append(item);
  messages.scrollTop = messages.scrollHeight;
  return item;
}

function addToken(item, text) {
  const atEnd = messages.scrollHeight - messages.scrollTop - messages.clientHeight < 60;
  const token = document.createElement("span");
  token.className = "token";
  token.textContent = text;
  item.querySelector("p").append(token);
  // Whoever has scrolled up to read stays there.
  if (atEnd) messages.scrollTop = messages.scrollHeight;
}

function finish(item, state, text) {
  item.dataset.state = state;
  const meta = document.createElement("p");
  meta.className = state === "failed" ? "meta bad" : "meta";
  meta.dataset.testid = "meta";
  meta.textContent = text;
  item.append(meta);
  messages.scrollTop = messages.scrollHeight;
}

async function ask(question) {
  running = new AbortController();
  toggle();
  addMessage("user", question);
  conversation.push({ role: "user", content: question });
  const item = addMessage("assistant");
  item.dataset.state = "speaking";
  messages.setAttribute("aria-busy", "true");
  connection.state = "connecting";

  let answer = "";
  let ended = false;
  const handlers = {
    start({ model }) {
      element("model").textContent = model;
    },
    content({ text }) {
      answer += text;
      addToken(item, text);
    },
    complete({ result }) {
      ended = true;
      finish(item, "complete", `${result.tokens} tokens in ${result.seconds.toFixed(1)} s`);
    },
    error({ error, error_type }) {
      ended = true;
      finish(item, "failed", `${error} (${error_type})`);
    },
  };
  try {
    const options = {
      method: "POST",
      signal: running.signal,
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ messages: conversation.slice(-21) }),
    };
    const opened = () => {
      connection.state = "open";
    };
    for await (const { event, data } of streamEvents(messages.dataset.url, options, opened)) handlers[event]?.(JSON.parse(data));
    connection.state = "closed";
    if (!ended) finish(item, "failed", "The connection was lost in the middle of the answer.");
  } catch (error) {
    if (error.name === "AbortError") {
      connection.state = "closed";
      finish(item, "stopped", "Stopped.");
    } else {
      connection.state = "failed";
      finish(item, "failed", error instanceof Refused ? `${error.message} (${error.status})` : "The connection was lost.");
    }
  }
  messages.removeAttribute("aria-busy");
  // What wasn't answered isn't part of the conversation: the next question must not follow another one.
  if (answer) conversation.push({ role: "assistant", content: answer });
  else conversation.pop();
  running = null;
  toggle();
  element("prompt").focus();
}

function toggle() {
  element("send").disabled = running !== null;
  element("stop").disabled = running === null;
  for (const chip of element("suggestions").children) chip.disabled = running !== null;
}

function send() {
  const question = element("prompt").value.trim();
  if (!question || running) return;
  element("prompt").value = "";
  ask(question);
}

element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
element("prompt").addEventListener("keydown", (event) => {
  // Enter sends, with Shift it is a new line; while an input method is composing, it is the input method's.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
element("stop").addEventListener("click", () => running?.abort());
for (const chip of element("suggestions").children) chip.addEventListener("click", () => ask(chip.textContent));
toggle(); // The buttons are disabled until somebody listens to them.
