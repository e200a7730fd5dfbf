// A box that says what became of something: { title, text, code } and a kind, "good", "bad" or "plain".

export function showOutcome(place, kind, { title, text = "", code = "" }) {
  const box = document.createElement("div");
  box.className = `outcome ${kind}`;
  box.dataset.testid = "outcome-box";
  box.dataset.kind = kind;
  const parts = [["strong", title, ""], ["p", text, ""], ["p", code, "code"]];
  for (const [tag, content, className] of parts) {
    if (!content) continue;
    const part = document.createElement(tag);
    part.textContent = content;
    part.className = className;
    box.append(part);
  }
  place.replaceChildren(box);
}
