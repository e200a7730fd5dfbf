import { Connection } from "./connection.js";
import { Refused } from "./event-stream.js";
import { postJson } from "./post.js";
import { resumeEvents } from "./resume.js";

const element = (id) => document.getElementById(id);
const connection = new Connection();
const messages = element("messages");
const STORE = "sseflask-chat";
const KEPT_TURNS = 20;
const REASONS = {
  cancelled: "Stopped.",
  run_gone: "The server doesn't have this answer any more.",
  abandoned: "Nobody read it, so the model has stopped.",
};
// The conversation, which outlives a reload of the page: { question, answer, state, meta }; one that is being answered also has the
// id of its stream's beginning, `start`.
let turns = JSON.parse(sessionStorage.getItem(STORE) ?? "[]");
let running = null;

function save() {
  turns = turns.slice(-KEPT_TURNS);
  sessionStorage.setItem(STORE, JSON.stringify(turns));
}

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

function show(turn) {
  addMessage("user", turn.question);
  const item = addMessage("assistant", turn.state === "speaking" ? "" : turn.answer);
  if (turn.state === "speaking") item.dataset.state = "speaking";
  else finish(item, turn.state, turn.meta);
  return item;
}

// What has been said, and the question. What wasn't answered isn't part of it: no question must follow another.
function conversation(turn) {
  const said = turns.filter(({ answer }) => answer).slice(-10);
  return [
    ...said.flatMap(({ question, answer }) => [{ role: "user", content: question }, { role: "assistant", content: answer }]),
    { role: "user", content: turn.question },
  ];
}

function ask(question) {
  const turn = { question, answer: "", state: "speaking", meta: "", start: "" };
  const body = JSON.stringify({ messages: conversation(turn) });
  turns.push(turn);
  save();
  hear(turn, show(turn), body);
}

// Reads a turn's answer from its beginning, be it new or under way.
async function hear(turn, item, body) {
  const aborting = new AbortController();
  running = { turn, aborting, stopping: false };
  toggle();
  messages.setAttribute("aria-busy", "true");
  connection.state = "connecting";
  turn.answer = "";
  const conclude = (state, meta) => Object.assign(turn, { state, meta });
  const handlers = {
    "stream-open"(_, id) {
      // Again at each reconnection, with the position that it goes on from.
      if (turn.start) return;
      turn.start = id;
      save();
      if (running.stopping) stop();
    },
    content(text) {
      turn.answer += text;
      addToken(item, text);
    },
    complete(data) {
      const { result } = JSON.parse(data);
      conclude("complete", `${result.tokens} tokens in ${result.seconds.toFixed(1)} s`);
    },
    error(data) {
      const { error, error_type } = JSON.parse(data);
      conclude("failed", `${error} (${error_type})`);
    },
    "stream-end"(data) {
      const { reason } = JSON.parse(data);
      // Who was away when it was stopped finds it gone.
      if (reason === "cancelled" || running.stopping) conclude("stopped", REASONS.cancelled);
      else conclude("failed", REASONS[reason] ?? "The answer has ended.");
    },
  };
  const options = { method: "POST", signal: aborting.signal, headers: { "Content-Type": "application/json" }, body };
  const states = {
    from: turn.start,
    opened: () => {
      connection.state = "open";
    },
    lost: () => {
      connection.state = "reconnecting";
    },
  };
  try {
    for await (const { event, data, id } of resumeEvents(messages.dataset.url, options, states)) handlers[event]?.(data, id);
    connection.state = "closed";
  } catch (error) {
    connection.state = error.name === "AbortError" ? "closed" : "failed";
    if (error.name === "AbortError") conclude("stopped", "Stopped.");
    else conclude("failed", error instanceof Refused ? `${error.message} (${error.status})` : "The connection was lost.");
  }
  finish(item, turn.state, turn.meta);
  messages.removeAttribute("aria-busy");
  running = null;
  save();
  toggle();
  element("prompt").focus();
}

async function stop() {
  running.stopping = true;
  element("stop").disabled = true;
  const { turn, aborting } = running;
  // Without an id there is nothing yet to name it by: then when it comes.
  if (!turn.start) return;
  // Where the server can't be reached it learns in its own time that nobody reads.
  await postJson(messages.dataset.stop, { run: turn.start }).catch(() => aborting.abort());
}

function toggle() {
  element("send").disabled = running !== null;
  element("stop").disabled = running === null;
  element("anew").disabled = running !== null || turns.length === 0;
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
element("stop").addEventListener("click", stop);
element("anew").addEventListener("click", () => {
  turns = [];
  save();
  messages.replaceChildren();
  toggle();
  element("prompt").focus();
});
for (const chip of element("suggestions").children) chip.addEventListener("click", () => ask(chip.textContent));

// What was said before this page was loaded again.
for (const turn of turns) {
  if (turn.state === "speaking" && !turn.start) {
    Object.assign(turn, { state: "failed", meta: "The page was left before the answer began." });
  }
  const item = show(turn);
  if (turn.state === "speaking") hear(turn, item, "{}");
}
toggle(); // The buttons are disabled until somebody listens to them.
