// Draws panels of lines or bars as SVG. Every text is set as text; tags stand in the code, never in the data.
const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 168, LEFT = 52, RIGHT = 12, TOP = 8, BOTTOM = 26;

function make(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) { made.setAttribute(name, String(value)); }
  made.append(...children);
  return made;
}
function block(tag, kind, ...children) {
  const made = document.createElement(tag);
  if (kind) { made.className = kind; }
  made.append(...children);
  return made;
}
function number(value) {
  if (value === 0) { return "0"; }
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) { return value.toExponential(1); }
  return String(Number(value.toPrecision(3)));
}
function ticks(low, high, most) {
  const raw = (high - low) / most, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) { found.push(Number(at.toPrecision(12))); }
  return found;
}
function range(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) { if (value < low) { low = value; } if (value > high) { high = value; } }
  if (!(low <= high)) { return [0, 1]; }
  const room = low === high ? Math.max(Math.abs(low) * 0.1, 0.5) : (high - low) * 0.06;
  return [low >= 0 && low - room < 0 ? 0 : low - room, high + room];
}

function axes(svg, x, y, [x0, x1], [y0, y1], width, whole) {
  for (const at of ticks(y0, y1, 4)) {
    svg.append(make("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(at), y2: y(at) }));
    svg.append(make("text", { class: "tick", x: LEFT - 6, y: y(at) + 4, "text-anchor": "end" }, number(at)));
  }
  for (const at of ticks(x0, x1, Math.max(2, Math.floor(width / 90))).filter((at) => !whole || Number.isInteger(at))) {
    svg.append(make("text", { class: "tick", x: x(at), y: HEIGHT - 8, "text-anchor": "middle" }, number(at)));
  }
  svg.append(make("line", { class: "axis", x1: LEFT, x2: width - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM }));
}

function lines(panel, svg, width, read) {
  const points = panel.lines.flatMap((line) => line.points);
  let [x0, x1] = [Math.min(...points.map((p) => p[0])), Math.max(...points.map((p) => p[0]))];
  if (x0 === x1) { [x0, x1] = [x0 - 1, x1 + 1]; }
  const [y0, y1] = range(points.map((p) => p[1]));
  const x = (at) => LEFT + (at - x0) / (x1 - x0) * (width - LEFT - RIGHT);
  const y = (at) => HEIGHT - BOTTOM - (at - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM);
  axes(svg, x, y, [x0, x1], [y0, y1], width, true);
  for (const line of panel.lines) {
    if (!line.points.length) { continue; }
    const path = line.points.map((p, i) => `${i ? "L" : "M"}${x(p[0]).toFixed(1)} ${y(p[1]).toFixed(1)}`).join("");
    svg.append(make("path", { class: `curve c${line.place}`, d: path }));
    const last = line.points[line.points.length - 1];
    svg.append(make("circle", { class: `end c${line.place}`, cx: x(last[0]), cy: y(last[1]), r: 3 }));
  }
  const cursor = make("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  svg.append(cursor);
  svg.addEventListener("pointermove", (event) => {
    const at = x0 + (event.offsetX - LEFT) / (width - LEFT - RIGHT) * (x1 - x0);
    const near = (line) => line.points.reduce((a, b) => Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a);
    const step = Math.min(x1, Math.max(x0, near(panel.lines.find((line) => line.points.length))[0]));
    cursor.setAttribute("x1", x(step)); cursor.setAttribute("x2", x(step)); cursor.setAttribute("visibility", "visible");
    read((line) => near(line), `step ${step}`);
  });
  svg.addEventListener("pointerleave", () => { cursor.setAttribute("visibility", "hidden"); read(null, ""); });
}

function legend(panel) {
  const where = block("span", "where"), values = [];
  const list = block("ul", "legend", ...panel.lines.map((line) => {
    const sample = make("svg", { width: 22, height: 8, "aria-hidden": "true" },
      make("path", { class: `curve c${line.place}`, d: "M0 4L22 4" }));
    const value = block("span", "value");
    values.push([line, value]);
    return block("li", "", sample, block("span", "name", line.name), value);
  }));
  const read = (pick, text) => {
    for (const [line, value] of values) {
      const point = line.points.length ? (pick ? pick(line) : line.points[line.points.length - 1]) : null;
      value.textContent = point ? number(point[1]) : "none";
    }
    where.textContent = text || "last step";
  };
  read(null, "");
  return [block("div", "foot", where, list), read];
}

function bars(panel, width) {
  const most = Math.max(1, ...panel.bars.map((bar) => bar.count));
  return block("ul", "bars", ...panel.bars.map((bar) => {
    const fill = block("span", `fill c${bar.place}${bar.mark ? " marked" : ""}`);
    fill.style.width = `${100 * bar.count / most}%`;
    const parts = [block("span", "label", bar.label), block("span", "track", fill), block("span", "count", String(bar.count))];
    if (!bar.key) { return block("li", "", block("div", "bar", ...parts)); }
    const button = block("button", "bar", ...parts);
    button.type = "button";
    button.dataset.pick = bar.key;
    button.setAttribute("aria-pressed", String(bar.mark));
    return block("li", "", button);
  }));
}

function draw() {
  const root = element.querySelector(".plots");
  const focused = root.contains(document.activeElement) ? document.activeElement.dataset.pick : null;
  const panels = JSON.parse(props.value || "[]");
  const wide = root.clientWidth || 600, columns = Math.max(1, Math.min(panels.length, Math.floor(wide / 300)));
  const width = Math.floor((wide - (columns - 1) * 16) / columns) - 26;
  root.style.setProperty("--columns", columns);
  root.replaceChildren(...panels.map((panel) => {
    const made = block("section", "panel", block("h3", "", panel.title));
    if (panel.note) { made.append(block("p", "note", panel.note)); }
    if (panel.bars.length) { made.append(bars(panel, width)); return made; }
    if (!panel.lines.some((line) => line.points.length)) { made.append(block("p", "none", "nothing measured yet")); return made; }
    const said = panel.lines.filter((line) => line.points.length).map((line) => {
      const [first, last] = [line.points[0], line.points[line.points.length - 1]];
      return `${line.name}: ${number(first[1])} at step ${first[0]}, ${number(last[1])} at step ${last[0]}`;
    }).join("; ");
    const svg = make("svg", { width, height: HEIGHT, role: "img", "aria-label": `${panel.title}. ${said}` });
    const [foot, read] = legend(panel);
    lines(panel, svg, width, read);
    made.append(svg, foot);
    return made;
  }));
  if (focused) { [...root.querySelectorAll("[data-pick]")].find((bar) => bar.dataset.pick === focused)?.focus(); }
}

element.addEventListener("click", (event) => {
  const bar = event.target.closest("[data-pick]");
  if (bar) { trigger("pick", { pick: bar.dataset.pick }); }
});
let width = 0;
new ResizeObserver((entries) => {
  const now = Math.round(entries[0].contentRect.width);
  if (now && now !== width) { width = now; draw(); }
}).observe(element.querySelector(".plots"));
watch("value", draw);
draw();
