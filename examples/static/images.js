import { Connection } from "./connection.js";
import { showOutcome } from "./outcome.js";
import { followTask, keepInAddress, taskInAddress } from "./task.js";

const element = (id) => document.getElementById(id);
const connection = new Connection();
const form = element("form");
const ready = form.dataset.ready === "yes";
const tiles = new Map();
const WORDS = { waiting: "Waiting", running: "Being developed", done: "Done", failed: "Failed" };
let task = null;
let sending = false;

function toggle() {
  element("start").disabled = !ready || sending || task !== null;
  element("cancel").disabled = task === null;
}

function part(tag, className, testId) {
  const node = document.createElement(tag);
  node.className = className;
  if (testId) node.dataset.testid = testId;
  return node;
}

function tileOf(fileId) {
  if (tiles.has(fileId)) return tiles.get(fileId);
  const item = part("li", "tile", `tile-${fileId}`);
  const pictures = part("div", "developed");
  const name = part("p", "name");
  const state = part("p", "state", `state-${fileId}`);
  item.append(pictures, name, state);
  const tile = { item, pictures, name, state };
  tiles.set(fileId, tile);
  // They come in the order of their newest words; the grid has them in that of the upload.
  const next = [...element("tiles").children].find((other) => Number(other.dataset.number) > Number(fileId));
  item.dataset.number = fileId;
  element("tiles").insertBefore(item, next ?? null);
  return tile;
}

function showPicture(tile, url, alt, kind) {
  if (tile.pictures.querySelector(`.${kind}`)) return;
  const image = part("img", kind);
  image.alt = alt;
  image.src = url;
  tile.pictures.append(image);
}

function follow(job) {
  const url = `${form.dataset.url}/${job}`;
  task = job;
  keepInAddress(job);
  tiles.clear();
  element("tiles").replaceChildren();
  element("outcome").replaceChildren();
  delete element("bar").dataset.state;
  element("bar").value = 0;
  element("now").textContent = "Looking for the job…";
  toggle();
  const handlers = {
    task_progress({ progress, message, current, total }) {
      element("bar").value = progress;
      element("percent").textContent = `${Math.floor(progress)} %`;
      element("now").textContent = current < total ? `${current} of ${total} are done. In hand: ${message}` : message;
    },
    file_update({ file_id, filename, status, progress, message }) {
      const tile = tileOf(file_id);
      tile.item.dataset.state = status;
      tile.name.textContent = filename;
      tile.state.textContent = status === "failed" ? message : WORDS[status];
      if (progress >= 50) showPicture(tile, `${url}/${file_id}/thumbnail`, `Thumbnail of ${filename}`, "thumbnail");
      if (progress === 100) showPicture(tile, `${url}/${file_id}/contour`, `Contours of ${filename}`, "contour");
    },
  };
  followTask(connection, `${url}/events`, handlers, ended);
}

function ended(name, { result, error, details }) {
  task = null;
  element("now").textContent = name === "task_completed" ? "Done." : "Nothing is being developed.";
  if (name === "task_completed") {
    element("bar").dataset.state = "done";
    const title = `${result.done} ${result.done === 1 ? "picture is" : "pictures are"} developed`;
    const text = result.failed ? `${result.failed} could not be read: the tile says why.` : "";
    showOutcome(element("outcome"), result.done ? "good" : "bad", { title, text });
  } else if (name === "task_cancelled") {
    element("bar").dataset.state = "cancelled";
    showOutcome(element("outcome"), "plain", { title: "Cancelled", text: "What was done stays; the rest is deleted." });
  } else if (name === "task_failed") {
    showOutcome(element("outcome"), "bad", { title: error, code: details?.error_type ?? "" });
  } else {
    keepInAddress(null);
    showOutcome(element("outcome"), "bad", { title: "Nobody knows of this job any more.", text: "Jobs are forgotten some minutes after their end." });
  }
  toggle();
}

function showRefused(refused) {
  const list = part("ul", "refusals");
  for (const { filename, error } of refused) {
    const item = part("li", "", "refusal");
    item.textContent = `${filename}: ${error}`;
    list.append(item);
  }
  element("refused").replaceChildren(...(refused.length ? [list] : []));
}

// What the server would refuse anyway isn't sent.
function sort(files) {
  const most = Number(form.dataset.bytes);
  const refused = files.filter((file) => file.size > most).map(({ name }) => ({ filename: name, error: `The file has more than ${most / 1e6} MB.` }));
  return { taken: files.filter((file) => file.size <= most), refused };
}

async function start() {
  const { taken, refused } = sort([...element("pictures").files]);
  element("outcome").replaceChildren();
  showRefused(refused);
  if (taken.length === 0) return;
  if (taken.length > Number(form.dataset.files)) {
    showOutcome(element("outcome"), "bad", { title: `${form.dataset.files} pictures are the most, and these are ${taken.length}.` });
    return;
  }
  sending = true;
  toggle();
  element("now").textContent = "Sending…";
  const body = new FormData();
  for (const file of taken) body.append("pictures", file);
  try {
    const response = await fetch(form.dataset.url, { method: "POST", body }).catch(() => {
      throw new Error("The server can't be reached.");
    });
    const answer = await response.json().catch(() => ({}));
    showRefused([...refused, ...(answer.refused ?? [])]);
    if (!response.ok) throw new Error(answer.error ?? `The server answered ${response.status}.`);
    follow(answer.job);
    element("cancel").focus();
  } catch (error) {
    element("now").textContent = "Nothing is being developed.";
    showOutcome(element("outcome"), "bad", { title: error.message });
  }
  sending = false;
  toggle();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  start();
});
element("cancel").addEventListener("click", async () => {
  // The button says that it was heard; the page says that it is so when the stream does.
  element("cancel").disabled = true;
  element("pictures").focus();
  await fetch(`${form.dataset.url}/${task}/cancel`, { method: "POST" }).catch(toggle);
});
if (ready && taskInAddress()) follow(taskInAddress());
toggle(); // The buttons are disabled until somebody listens to them.
