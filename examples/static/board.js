import { Connection } from "./connection.js";
import { showOutcome } from "./outcome.js";
import { postJson } from "./post.js";
import { readReset } from "./reset.js";

const element = (id) => document.getElementById(id);
const connection = new Connection();
const board = element("board");
const columns = [...board.querySelectorAll(".column")];
const calm = matchMedia("(prefers-reduced-motion: reduce)");
// The cards as this page knows them, by id: { id, title, column, version, node }.
const cards = new Map();
let connections = 0;
let snapshots = 0;
let moves = 0;

const titleOf = (column) => column.querySelector("h2").textContent;

function makeNode({ id, title }) {
  const node = document.createElement("li");
  node.className = "ticket";
  node.dataset.testid = `card-${id}`;
  node.draggable = true;
  const name = document.createElement("p");
  name.textContent = title;
  const arrows = document.createElement("div");
  arrows.className = "arrows";
  for (const [step, sign] of [[-1, "←"], [1, "→"]]) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "quiet";
    button.dataset.step = step;
    button.dataset.testid = `${step < 0 ? "back" : "on"}-${id}`;
    button.textContent = sign;
    button.addEventListener("click", () => move(id, columns[columnIndex(cards.get(id)) + step]));
    arrows.append(button);
  }
  node.append(name, arrows);
  node.addEventListener("dragstart", (event) => {
    event.dataTransfer.setData("text/plain", id);
    event.dataTransfer.effectAllowed = "move";
    node.dataset.dragged = "true";
  });
  node.addEventListener("dragend", () => delete node.dataset.dragged);
  return node;
}

const columnIndex = (card) => columns.findIndex((column) => column.dataset.column === card.column);

// Puts a card where it belongs: a column is in the order of the moves that filled it.
function place(card) {
  const index = columnIndex(card);
  const list = columns[index].querySelector(".tickets");
  const focused = card.node.contains(document.activeElement) ? document.activeElement : null;
  const before = card.node.isConnected ? card.node.getBoundingClientRect() : null;
  const next = [...list.children].find((other) => other !== card.node && cards.get(other.dataset.id).version > card.version);
  card.node.dataset.id = card.id;
  list.insertBefore(card.node, next ?? null);

  for (const button of card.node.querySelectorAll("button")) {
    const target = columns[index + Number(button.dataset.step)];
    button.disabled = !target;
    button.setAttribute("aria-label", target ? `Move “${card.title}” to ${titleOf(target)}` : `“${card.title}” is in the outermost column`);
  }
  // A node that is put elsewhere loses the focus, and so does a button that is disabled.
  if (focused) (focused.disabled ? card.node.querySelector("button:enabled") : focused).focus();
  if (before && !calm.matches) slide(card.node, before);
}

function slide(node, before) {
  const after = node.getBoundingClientRect();
  const from = `translate(${before.left - after.left}px, ${before.top - after.top}px)`;
  node.animate([{ transform: from }, { transform: "none" }], { duration: 280, easing: "cubic-bezier(0.2, 0.8, 0.2, 1)" });
}

function count() {
  for (const column of columns) column.querySelector(".count").textContent = column.querySelector(".tickets").children.length;
}

const source = connection.follow(new EventSource("events"));

source.addEventListener("open", () => {
  connections += 1;
  element("reconnections").textContent = connections - 1;
});

source.addEventListener("error", () => {
  board.setAttribute("aria-busy", "true");
});

source.addEventListener("stream-open", () => board.setAttribute("aria-busy", "false"));

// A snapshot follows it: nothing that this page shows is to be trusted any more.
source.addEventListener("stream-reset", (event) => {
  const { why, code } = readReset(event);
  showOutcome(element("outcome"), "wait", { title: why, text: "This is the board as the server has it now.", code });
});

source.addEventListener("board", (event) => {
  const known = new Map(cards);
  cards.clear();
  for (const card of JSON.parse(event.data).cards) {
    cards.set(card.id, { ...card, node: known.get(card.id)?.node ?? makeNode(card) });
    known.delete(card.id);
  }
  for (const { node } of known.values()) node.remove();
  for (const card of cards.values()) place(card);
  count();
  snapshots += 1;
  moves = 0;
  tell(event);
});

source.addEventListener("moved", (event) => {
  const moved = JSON.parse(event.data);
  const card = cards.get(moved.id);
  moves += 1;
  tell(event);
  // The snapshot may show this move already, or a later one.
  if (moved.version <= card.version) return;
  Object.assign(card, moved);
  place(card);
  count();
  card.node.dataset.fresh = "true";
  element("said").textContent = `“${card.title}” is in ${titleOf(columns[columnIndex(card)])} now.`;
});

function tell(event) {
  element("position").textContent = event.lastEventId;
  element("snapshots").textContent = snapshots;
  element("moves").textContent = moves;
}

// Asks the server; the card moves when the stream says so, here as in every other page.
async function move(id, column) {
  try {
    await postJson(board.dataset.url + encodeURIComponent(id), { column: column.dataset.column });
  } catch (error) {
    showOutcome(element("outcome"), "bad", { title: `The card stays where it is: ${error.message}` });
  }
}

board.addEventListener("animationend", (event) => delete event.target.dataset.fresh);

for (const column of columns) {
  column.addEventListener("dragover", (event) => {
    event.preventDefault();
    column.dataset.over = "true";
  });
  column.addEventListener("dragleave", (event) => {
    if (!column.contains(event.relatedTarget)) delete column.dataset.over;
  });
  column.addEventListener("drop", (event) => {
    event.preventDefault();
    delete column.dataset.over;
    const id = event.dataTransfer.getData("text/plain");
    if (cards.has(id)) move(id, column);
  });
}
