// What the token view draws with: text made visible, scales, the strip, the panel of one token. No state, no network.
// Text reaches the page through textContent alone, so nothing a model wrote can become markup.
const MODES = {
  delta: { name: "who says more", legend: "teacher minus student log-prob, nat", diverging: true },
  div: { name: "divergence", legend: "divergence, nat" },
  ent_s: { name: "student entropy", legend: "entropy of the student, nat" },
  ent_t: { name: "teacher entropy", legend: "entropy of the teacher, nat" },
  rank_s: { name: "student rank", legend: "rank of the token for the student, 0 is the likeliest", ranks: true },
  rank_t: { name: "teacher rank", legend: "rank of the token for the teacher, 0 is the likeliest", ranks: true },
  w: { name: "weight", legend: "weight in the loss beside the other tokens", weights: true },
  none: { name: "none", legend: "no colour" },
};
const FIXED = 3; // nat: the scale that is the same for every picture
const SHARE = 80; // percent: what is said of the divergence while nothing is dimmed
const WINDOW = 4096; // tokens drawn at once
const LONGEST = 200; // characters of one token that stand in the text; the panel shows more
const STEPS = 24; // shades: few enough to be compared, many enough to look smooth
const HIDDEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/u;
const MARK = /\p{M}/u;
const SHORT = { "\n": "\\n", "\t": "\\t", "\r": "\\r" };

function escaped(c) {
  if (SHORT[c]) return SHORT[c];
  const code = c.codePointAt(0), hex = code.toString(16);
  if (code < 0x100) return "\\x" + hex.padStart(2, "0");
  return code < 0x10000 ? "\\u" + hex.padStart(4, "0") : "\\U" + hex.padStart(8, "0");
}

// The pieces [text, class] of a string: what cannot be seen or would move its neighbours becomes an escape.
function visible(text, most) {
  const parts = [];
  let plain = "", marks = 0, n = 0;
  const flush = () => { if (plain) parts.push([plain, ""]); plain = ""; };
  for (const c of text) {
    if (++n > most) { flush(); parts.push(["…", "tv-esc"]); break; }
    marks = MARK.test(c) ? marks + 1 : 0;
    if (c === "\n") { flush(); parts.push(["↵", "tv-ret"], ["\n", ""]); }
    else if (HIDDEN.test(c) || marks > 3) { flush(); parts.push([escaped(c), "tv-esc"]); }
    else plain += (marks && !plain ? "◌" : "") + c;
  }
  flush();
  return parts;
}

function el(tag, name, text) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
}

function fill(node, text, most) {
  const parts = visible(text, most);
  if (parts.every((p) => !p[1])) { node.textContent = parts.map((p) => p[0]).join(""); return node; }
  for (const [piece, name] of parts) node.append(name ? el("span", name, piece) : piece);
  return node;
}

function button(text, title, act) {
  const node = el("button", "tv-button", text);
  node.type = "button";
  node.title = title;
  node.addEventListener("click", act);
  return node;
}

const known = (x) => typeof x === "number" && !Number.isNaN(x);
const number = (x) => (typeof x === "string" ? Number(x) : x === null || x === undefined ? NaN : x);
const nat = (x) => (known(x) ? (Number.isFinite(x) ? x.toFixed(3) : x > 0 ? "∞" : "−∞").replace("-", "−") : "unknown");
const whole = (x) => x.toLocaleString("en");

function percent(logp) {
  if (!known(logp)) return "unknown";
  const p = 100 * Math.exp(logp);
  if (p >= 99.95 && p < 100) return "> 99.9 %";
  return (p >= 10 ? p.toFixed(1) : p >= 0.01 ? p.toFixed(2) : p > 0 ? "< 0.01" : "0") + " %";
}

function percentile(values, share) {
  const sorted = values.filter(Number.isFinite).map(Math.abs).sort((a, b) => a - b);
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.ceil(share * sorted.length) - 1)] : 0;
}

// 0..1 for the shade, with its sign; NaN where the number is not known.
function shade(mode, value, limit) {
  if (!known(value)) return NaN;
  if (MODES[mode].ranks) return value < 0 ? NaN : Math.min(1, Math.log10(value + 1) / limit);
  return Math.max(-1, Math.min(1, (MODES[mode].weights ? Math.abs(value) : value) / limit));
}

const counts = (w) => Number.isFinite(w) && w !== 0;

// What a token adds to the divergence: its weight in the loss times its own.
const adds = (div, w) => (counts(w) && Number.isFinite(div) ? w * div : 0);

// The fewest tokens that carry `share` percent of the divergence, as diagnostics/where.py counts them.
function carriers(div, weight, share) {
  const sizes = div.map((d, t) => Math.abs(adds(d, weight[t]))), order = [...sizes.keys()].sort((a, b) => sizes[b] - sizes[a]);
  const total = sizes.reduce((a, b) => a + b, 0), kept = new Set();
  let sum = 0;
  for (const t of order) {
    if (!(sum < (total * share * (1 - 1e-12)) / 100)) break;
    sum += sizes[t];
    kept.add(t);
  }
  return { kept, counted: weight.filter(counts).length, total: div.reduce((a, d, t) => a + adds(d, weight[t]), 0) };
}

function sentence(found, share, all) {
  if (!found.counted) return "no token is in the loss";
  const of = found.counted === all ? whole(all) + " tokens" : "the " + whole(found.counted) + " tokens in the loss";
  return whole(found.kept.size) + " of " + of + " carry " + share + " % of the divergence";
}

function legendOf(mode, limit, what) {
  const about = MODES[mode], box = el("div", "tv-legend");
  box.append(el("span", "tv-legend-name", mode === "div" ? what + ", nat" : about.legend));
  if (mode !== "none") {
    const ramp = el("span", "tv-ramp " + (about.diverging ? "tv-two" : "tv-one"));
    const ends = about.diverging ? ["−" + limit.toFixed(1), "0", "+" + limit.toFixed(1)]
      : about.ranks ? ["0", "9", "99", "999"] : ["0", (limit / 2).toFixed(1), limit.toFixed(1)];
    if (about.diverging) box.append(el("span", "tv-end", "student says more: bar over"));
    const scale = el("span", "tv-scale");
    scale.append(ramp, Object.assign(el("span", "tv-numbers")));
    for (const end of ends) scale.lastChild.append(el("span", "", end));
    box.append(scale);
    box.append(el("span", "tv-end", about.diverging ? "teacher says more: bar under" : "longer bar: more"));
  }
  const hatch = el("span", "tv-key");
  hatch.append(el("span", "tv-swatch tv-off"), "not in the loss");
  box.append(hatch);
  return box;
}

// The whole completion as one line: bars are tokens, the curve is what they add up to.
function strip(canvas, view) {
  const box = canvas.getBoundingClientRect(), ratio = window.devicePixelRatio || 1;
  if (!box.width) return;
  const width = Math.round(box.width * ratio), height = Math.round(box.height * ratio);
  if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
  const pen = canvas.getContext("2d"), style = getComputedStyle(canvas), colour = (name) => style.getPropertyValue(name).trim();
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, box.width, box.height);
  const { div, w, text, why } = view.data, n = div.length, top = 18, base = box.height - 18, tall = base - top;
  if (!n) return;
  const x = (t) => (t / n) * box.width, sums = new Float64Array(n + 1);
  for (let t = 0; t < n; t++) sums[t + 1] = sums[t] + adds(div[t], w[t]);
  const most = Math.max(1e-9, percentile(div.map((d, t) => adds(d, w[t])).filter((x) => x), 0.995)), total = sums[n];
  const peak = Math.max(1e-9, sums.reduce((a, b) => Math.max(a, Math.abs(b)), 0));
  const bars = new Float64Array(Math.ceil(box.width)), shut = new Uint8Array(bars.length);
  for (let t = 0; t < n; t++) {
    const from = Math.floor(x(t)), to = Math.max(from + 1, Math.floor(x(t + 1)));
    for (let p = from; p < to && p < bars.length; p++) {
      if (counts(w[t])) bars[p] = Math.max(bars[p], Math.min(1, Math.abs(adds(div[t], w[t])) / most)); else shut[p] = 1;
    }
  }
  pen.fillStyle = colour("--tv-strip");
  bars.forEach((v, p) => pen.fillRect(p, base - v * tall, 1, v * tall));
  pen.fillStyle = colour("--tv-muted");
  shut.forEach((v, p) => { if (v && p % 4 < 2) pen.fillRect(p, base, 1, 4); });
  why.forEach((v, t) => { if (counts(w[t]) && v !== "counted") pen.fillRect(x(t), base, Math.max(2, x(1)), 4); });
  if (n > WINDOW) { pen.fillStyle = colour("--tv-shadow"); pen.fillRect(x(view.first), 0, x(WINDOW), box.height); }
  pen.beginPath();
  for (let p = 0; p <= box.width; p++) {
    const t = Math.min(n, Math.round((p / box.width) * n)), y = base - (Math.abs(sums[t]) / peak) * tall;
    if (p) pen.lineTo(p, y); else pen.moveTo(p, y);
  }
  pen.strokeStyle = colour("--tv-text");
  pen.lineWidth = 1.5;
  pen.stroke();
  pen.fillStyle = colour("--tv-text");
  pen.font = "12px " + style.fontFamily;
  thoughts(text).forEach((t) => { pen.fillRect(x(t), top - 4, 1, tall + 4); pen.fillText("</think>", Math.min(x(t) + 4, box.width - 52), top + 6); });
  pen.textBaseline = "top";
  const label = total.toFixed(total < 10 ? 2 : 0) + " nat";
  pen.fillText("0", 0, base + 5);
  pen.fillText(whole(n - 1), box.width - pen.measureText(whole(n - 1)).width, base + 5);
  pen.fillText(label, box.width - pen.measureText(label).width, 0);
  if (view.at >= 0) { pen.fillRect(x(view.at + 0.5) - 1, top - 6, 2, tall + 6); }
}

// Where a thought ends: the token that completes the mark, which may be spread over several.
function thoughts(text) {
  const ends = [], joined = text.join("");
  let from = joined.indexOf("</think>"), at = 0, t = 0;
  while (from >= 0 && ends.length < 20) {
    while (t < text.length && at + text[t].length < from + 8) at += text[t++].length;
    ends.push(t);
    from = joined.indexOf("</think>", from + 8);
  }
  return ends;
}

const UNSEEN = "part of a character";

// What stands for token t, which adds nothing of its own where it only begins a character or is a special token.
function written(data, t) {
  const text = data.text[t];
  return text !== "" ? text : data.special[t] || "";
}
