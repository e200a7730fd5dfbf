// Shows the bytes of a stream as they arrive: nothing is parsed here.

import { Connection } from "./connection.js";

const bytes = document.getElementById("bytes");
const again = document.getElementById("again");
const connection = new Connection();

function write(text, className) {
  const piece = document.createElement("span");
  piece.className = className;
  piece.textContent = text;
  bytes.append(piece);
  bytes.scrollTop = bytes.scrollHeight;
}

async function listen() {
  again.disabled = true;
  bytes.replaceChildren();
  connection.state = "connecting";
  try {
    const response = await fetch(bytes.dataset.url, { cache: "no-store" });
    connection.state = "open";
    write(`HTTP ${response.status}\ncontent-type: ${response.headers.get("Content-Type")}\n\n`, "head");
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let piece = await reader.read(); !piece.done; piece = await reader.read()) write(piece.value, "fresh");
    write("(the generator has returned, and the stream ends)\n", "head");
    connection.state = "closed";
  } catch {
    write("(the connection was lost)\n", "head");
    connection.state = "failed";
  }
  again.disabled = false;
}

again.addEventListener("click", listen);
listen();
