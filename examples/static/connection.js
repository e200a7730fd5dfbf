// The badge that says how a page's stream is doing.

const WORDS = {
  idle: "Not connected",
  connecting: "Connecting…",
  open: "Open",
  reconnecting: "Reconnecting…",
  closed: "Closed",
  failed: "Failed",
};

export class Connection {
  constructor(badge = document.getElementById("connection")) {
    this.badge = badge;
    this.words = badge.querySelector(".words");
  }

  get state() {
    return this.badge.dataset.state;
  }

  set state(state) {
    if (state === this.state) return;
    this.badge.dataset.state = state;
    this.words.textContent = WORDS[state];
  }

  // Shows the states that an EventSource goes through. Say `connection.state = "closed"` after closing it: it has no event for that.
  follow(source) {
    this.state = "connecting";
    source.addEventListener("open", () => {
      this.state = "open";
    });
    source.addEventListener("error", (event) => {
      // An event of the server's may be called "error" too, and comes to the same listeners. That one has data.
      if (event instanceof MessageEvent) return;
      // CONNECTING: it will try again by itself. CLOSED: it never will, for the answer wasn't a stream.
      this.state = source.readyState === EventSource.CONNECTING ? "reconnecting" : "failed";
    });
    return source;
  }
}
