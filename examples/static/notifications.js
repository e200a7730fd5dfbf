import { Connection } from "./connection.js";
import { showOutcome } from "./outcome.js";
import { postJson } from "./post.js";
import { readReset } from "./reset.js";

const element = (id) => document.getElementById(id);
const connection = new Connection();
const KEPT = 100;
// Which notices are this page's own. (crypto.randomUUID exists only on HTTPS and localhost.)
const page = Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
let unread = 0;
let connections = 0;
let resets = 0;

function setUnread(count) {
  unread = count;
  element("unread").textContent = count;
  element("badge").dataset.count = count;
  element("read").disabled = count === 0;
  const title = document.title.replace(/^\(\d+\) /, "");
  document.title = count ? `(${count}) ${title}` : title;
}

function add(item) {
  element("notices").prepend(item);
  while (element("notices").children.length > KEPT) element("notices").lastChild.remove();
}

function part(tag, className, text) {
  const node = document.createElement(tag);
  node.className = className;
  node.textContent = text;
  return node;
}

function addNotice({ text, kind, page: from, at }) {
  const own = from === page;
  const item = part("li", "notice", "");
  item.dataset.kind = kind;
  item.dataset.own = own;
  item.dataset.testid = "notice";
  const time = new Date(at * 1000).toLocaleTimeString("en-GB");
  const title = document.querySelector(`.kind[data-kind="${kind}"]`)?.textContent.trim() ?? kind;
  item.append(part("p", "text", text), part("p", "meta", `${title} · ${time}${own ? " · from this page" : ""}`));
  add(item);
  if (!own) {
    item.dataset.unread = "true";
    setUnread(unread + 1);
  }
}

const source = connection.follow(new EventSource("events"));

source.addEventListener("open", () => {
  connections += 1;
  element("reconnections").textContent = connections - 1;
});

// The first event of every stream. Its id is the position from which this page would go on if it lost the connection right now.
source.addEventListener("stream-open", (event) => {
  element("opened-at").textContent = element("last-id").textContent = event.lastEventId;
});

// Something may be missing. What this page shows is still true, so it keeps it, and marks the place.
source.addEventListener("stream-reset", (event) => {
  const { why, code } = readReset(event);
  resets += 1;
  element("resets").textContent = resets;
  showOutcome(element("reset"), "wait", { title: why, text: "What was published while this page was away may be missing at the line in the list.", code });
  const line = part("li", "gap", "Something may be missing here");
  line.dataset.testid = "gap";
  add(line);
});

source.addEventListener("notice", (event) => {
  element("last-id").textContent = event.lastEventId;
  addNotice(JSON.parse(event.data));
});

source.addEventListener("pages", (event) => {
  element("last-id").textContent = event.lastEventId;
  element("pages").textContent = JSON.parse(event.data).pages;
});

async function publish() {
  const box = element("text");
  const text = box.value.trim();
  const kind = element("form").querySelector(":checked").value;
  if (!text) return;
  // At once, not when it is published: by then there may be the next one in it.
  box.value = "";
  box.focus();
  try {
    await postJson(element("form").dataset.url, { text, kind, page });
    element("problem").replaceChildren();
  } catch (error) {
    if (!box.value) box.value = text;
    showOutcome(element("problem"), "bad", { title: error.message });
  }
}

element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  publish();
});
element("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    publish();
  }
});
element("read").addEventListener("click", () => {
  for (const item of element("notices").querySelectorAll("[data-unread]")) delete item.dataset.unread;
  setUnread(0);
  element("text").focus();
});
element("publish").disabled = false; // Disabled until somebody listens to it.
