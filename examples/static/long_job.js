import { Connection } from "./connection.js";
import { showOutcome } from "./outcome.js";

const element = (id) => document.getElementById(id);
const connection = new Connection();
const steps = [...element("steps").children];
const seconds = Number(element("gauge").dataset.seconds);
let source = null;
let deadline = null;
let beats = 0;

function setStep(number, state, words = state) {
  steps[number - 1].dataset.state = state;
  steps[number - 1].querySelector(".state").textContent = words;
}

function beat() {
  deadline = performance.now() + seconds * 1000;
}

// The deadline as the browser sees it; the server keeps the real one.
function drawDeadline() {
  if (deadline === null) return;
  const left = Math.max(0, (deadline - performance.now()) / 1000);
  element("gauge-fill").style.transform = `scaleX(${left / seconds})`;
  element("gauge-fill").dataset.level = left < 1 ? "low" : "";
  element("left").textContent = `${left.toFixed(1)} s`;
  requestAnimationFrame(drawDeadline);
}

function start() {
  const forget = Number(element("forget").value);
  steps.forEach((_, index) => setStep(index + 1, "waiting"));
  beats = 0;
  element("beats").textContent = "0";
  element("outcome").replaceChildren();
  source = connection.follow(new EventSource(`${element("form").dataset.url}?forget=${forget}`));
  toggle(true);

  source.addEventListener("start", () => {
    beat();
    drawDeadline();
  });
  source.addEventListener("step", (event) => {
    const { step, extended } = JSON.parse(event.data);
    setStep(step, "working", extended ? "working" : "working, no heartbeat");
    if (!extended) return;
    beat();
    beats += 1;
    element("beats").textContent = beats;
  });
  source.addEventListener("done", (event) => setStep(JSON.parse(event.data).step, "done"));
  source.addEventListener("complete", (event) => {
    const { result } = JSON.parse(event.data);
    end("closed");
    showOutcome(element("outcome"), "good", { title: "The report is ready", text: `All ${result.steps} steps are done.` });
  });
  source.addEventListener("error", (event) => {
    if (event instanceof MessageEvent) {
      const { error, error_type } = JSON.parse(event.data);
      fail("The job was given up", error, error_type);
    } else {
      // The job began anew if the browser asked again: better to say what has happened.
      fail("The connection was lost", "Nobody knows how far the job has got.", "");
    }
  });
}

function fail(title, text, code) {
  const at = steps.findIndex((step) => step.dataset.state === "working");
  if (at >= 0) setStep(at + 1, "failed");
  const timedOut = code === "timeout";
  end(timedOut ? "closed" : "failed");
  if (timedOut) element("left").textContent = "0.0 s";
  showOutcome(element("outcome"), "bad", { title, text, code: code && `error_type: ${code}` });
}

function end(state) {
  // Without this the browser would connect again as soon as the server closes its side.
  source.close();
  connection.state = state;
  deadline = null;
  element("gauge-fill").style.transform = "scaleX(0)";
  element("left").textContent = "–";
  toggle(false);
}

function toggle(running) {
  element("start").disabled = running;
  element("stop").disabled = !running;
  element("forget").disabled = running;
}

element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  start();
  element("stop").focus();
});
element("stop").addEventListener("click", () => {
  const at = steps.findIndex((step) => step.dataset.state === "working");
  if (at >= 0) setStep(at + 1, "waiting", "stopped");
  end("closed");
  showOutcome(element("outcome"), "plain", { title: "Stopped", text: "The connection is closed, and the server has let the job go." });
  element("start").focus();
});
toggle(false); // The buttons are disabled until somebody listens to them.
