// Draws a tree of [tag, attributes, child, ...] and texts. Tags and attributes stand in the lists below; text is only
// ever text, so nothing that a model wrote can become an element, an attribute or a script.
const TAGS = new Set(("div span p h3 h4 table caption thead tbody tr th td button ul ol li dl dt dd details summary " +
  "section").split(" "));
const ATTRIBUTES = new Set(("class title role scope colspan aria-label aria-hidden aria-pressed disabled open tabindex").split(" "));

function build(node) {
  if (typeof node === "string") { return document.createTextNode(node); }
  const [tag, attributes, ...children] = node;
  if (!TAGS.has(tag)) { throw new Error("no such tag in a sheet: " + tag); }
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "act") { made.dataset.act = String(value); made.type = "button"; }
    else if (name === "share") { made.style.setProperty("--share", String(Math.max(0, Math.min(1, Number(value) || 0)))); }
    else if (ATTRIBUTES.has(name)) { made.setAttribute(name, String(value)); }
    else { throw new Error("no such attribute in a sheet: " + name); }
  }
  for (const child of children) { made.append(build(child)); }
  return made;
}

function draw() {
  const root = element.querySelector(".sheet");
  const focused = root.contains(document.activeElement) ? document.activeElement.dataset.act : null;
  const opened = [...root.querySelectorAll("details")].map((part) => part.open);
  const scrolled = root.scrollTop;
  root.replaceChildren(...JSON.parse(props.value || "[]").map(build));
  [...root.querySelectorAll("details")].forEach((part, i) => { if (opened[i] !== undefined) { part.open = opened[i]; } });
  root.scrollTop = scrolled;
  if (focused) {
    const same = [...root.querySelectorAll("[data-act]")].find((button) => button.dataset.act === focused);
    if (same) { same.focus(); }
  }
}

element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-act]");
  if (button && !button.disabled) { trigger("act", { act: button.dataset.act }); }
});
watch("value", draw);
draw();
