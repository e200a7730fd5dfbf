// Follows a task of the server's from where it stands to its end. Its id is in the page's address, so that a reload, or another tab, finds it.

const ENDS = ["task_completed", "task_failed", "task_cancelled"];

export function taskInAddress() {
  return /^#[0-9a-f]{32}$/.test(location.hash) ? location.hash.slice(1) : null;
}

export function keepInAddress(task) {
  history.replaceState(null, "", task ? `#${task}` : location.pathname);
}

// Somebody has put another task's id into the address.
addEventListener("hashchange", () => location.reload());

// Calls handlers by the names of events, and `ended(name, data)` once: with the event that ended it, or "unknown".
export function followTask(connection, url, handlers, ended) {
  const source = connection.follow(new EventSource(url));
  const end = (state, name, data) => {
    // Without this the browser would ask again, only to be told that it is over.
    source.close();
    connection.state = state;
    ended(name, data);
  };
  for (const [name, handle] of Object.entries(handlers)) source.addEventListener(name, (event) => handle(JSON.parse(event.data)));
  for (const name of ENDS) source.addEventListener(name, (event) => end("closed", name, JSON.parse(event.data)));
  source.addEventListener("error", () => {
    // When it is CONNECTING it asks again by itself, and goes on where it was. CLOSED: the answer was no stream.
    if (source.readyState === EventSource.CLOSED) end("failed", "unknown", {});
  });
}
