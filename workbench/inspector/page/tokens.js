// The token view: a completion as text that both roles tinted. `host` is what differs between the app and a file:
// detail(t) and span(since) bring stored numbers, emit(name, what) tells the page, `branch` says that it can go on.
const COLUMNS = ["text", "id", "delta", "div", "w", "why", "ent_s", "ent_t", "rank_s", "rank_t", "fkl", "rkl", "jsd", "logp_s", "logp_t"];
const WORDS = new Set(["text", "why"]);
const groups = (globalThis.workbenchTokenViews ??= new Map()); // views of one page that move together

class TokenView extends TokenFrame {
  constructor(root, host) {
    super(root, host);
    this.name = "tv" + (globalThis.workbenchTokenSerial = (globalThis.workbenchTokenSerial || 0) + 1);
    this.at = -1;
    this.first = 0;
    this.mode = "delta";
    this.scale = "fixed";
    this.share = 100;
    this.hits = new Set();
    this.asking = false;
    this.clear();
    this.build();
    this.join(host.group || this.name);
    this.theme();
  }

  clear() {
    this.data = { special: {}, n: 0 };
    for (const name of COLUMNS) this.data[name] = [];
    this.spans = [];
    this.about = {};
    this.details = new Map();
  }

  theme() {
    const own = document.documentElement.dataset.theme;
    const dark = own ? own === "dark" : document.body.classList.contains("dark") || (this.host.system && matchMedia("(prefers-color-scheme: dark)").matches);
    this.root.dataset.theme = dark ? "dark" : "light";
    this.later();
  }

  join(name) {
    if (!groups.has(name)) groups.set(name, new Set());
    this.group = groups.get(name);
    this.group.add(this);
    for (const old of this.group) if (!old.root.isConnected && old !== this) this.group.delete(old);
    const first = this.group.values().next().value;
    Object.assign(this, { mode: first.mode, scale: first.scale, share: first.share });
  }

  shared(what) {
    for (const view of this.group) { Object.assign(view, what); view.recount(); view.paint(); }
  }

  // A value of the component: a JSON string. Columns from `off` on replace what is there; a gap asks for the range.
  take(value, answered) {
    if (!value) { this.clear(); this.forget(); this.draw(); return; }
    const news = JSON.parse(value), same = news.run === this.about.run && news.rollout === this.about.rollout;
    if (news.off > 0 && (!same || news.off > this.data.n)) {
      if (!answered) this.ask(news, same ? this.data.n : 0);
      return;
    }
    const top = same ? this.list.scrollTop : 0;
    if (news.off === 0) { this.clear(); this.about = news; if (!same) this.forget(); }
    const kept = Math.min(news.off, this.data.n);
    for (const name of COLUMNS) {
      const more = news[name] || [];
      this.data[name].length = kept;
      for (const x of more) this.data[name].push(WORDS.has(name) ? x : number(x));
    }
    Object.assign(this.data.special, news.special);
    this.data.n = this.data.text.length;
    for (const t of [...this.details.keys()]) if (t >= kept) this.details.delete(t);
    if (news.off === 0) { this.draw(); this.list.scrollTop = top; if (this.at >= 0) this.show(); } else this.append(kept);
    if (this.search.value) this.find();
    if (Number.isInteger(news.at) && news.at < this.data.n) this.select(news.at, true);
  }

  async ask(news, since) {
    if (this.asking || !this.host.span) return;
    this.asking = true;
    try {
      const value = await this.host.span(news.run, news.rollout, since);
      this.asking = false;
      if (value) this.take(value, true);
    } catch (error) {
      this.asking = false;
      this.line.textContent = "The tokens in between could not be read.";
    }
  }

  draw() {
    const n = this.data.n;
    this.first = n > WINDOW && this.at >= 0 ? Math.min(Math.max(0, this.at - WINDOW / 2), n - WINDOW) : Math.min(this.first, Math.max(0, n - WINDOW));
    this.list.replaceChildren();
    this.spans = [];
    this.root.classList.toggle("tv-live", this.about.source === "live");
    this.append(this.first);
    this.head.replaceChildren(facts(this.about.facts || {}));
    this.foot.replaceChildren(prompts(this.about));
    if (this.at >= n) this.at = -1;
    this.mark();
  }

  // Adds the spans of tokens from `from` on; what stands before them does not move.
  append(from) {
    const end = Math.min(this.data.n, this.first + WINDOW), list = this.list;
    const bottom = list.scrollHeight - list.scrollTop - list.clientHeight < 24;
    while (this.spans.length > Math.max(0, from - this.first)) this.spans.pop().remove();
    const rows = document.createDocumentFragment(), began = this.spans.length;
    for (let t = this.first + began; t < end; t++) { const s = this.span(t); this.spans.push(s); rows.append(s); }
    list.append(rows);
    this.recount();
    this.paint(this.scale === "fixed" && this.share === 100 && !MODES[this.mode].weights ? began : 0);
    if (bottom && began) list.scrollTop = list.scrollHeight;
    this.turn();
  }

  span(t) {
    const s = el("span"), text = written(this.data, t);
    s.id = this.name + "-" + t;
    s.dataset.t = t;
    s.setAttribute("role", "option");
    s.setAttribute("aria-selected", "false");
    if (text === "") s.textContent = "▹"; else fill(s, text, LONGEST);
    if (text === "") s.setAttribute("aria-label", UNSEEN);
    return s;
  }

  recount() {
    const { div, w, n } = this.data, share = this.share < 100 ? this.share : SHARE;
    const found = carriers(div, w, share);
    this.kept = found.kept;
    this.total = found.total;
    this.said.textContent = n ? sentence(found, share, n) : "No tokens yet.";
    this.share_name.textContent = this.share < 100 ? "Threshold: " + share + " %" : "Threshold: none";
  }

  limit() {
    if (MODES[this.mode].ranks) return 3;
    if (MODES[this.mode].weights) return Math.max(1, ...[...this.group].map((v) => v.data.w.reduce((a, b) => Math.max(a, Math.abs(b) || 0), 0)));
    if (this.scale === "fixed") return FIXED;
    const column = (v) => (v.data[this.mode] || []).filter((x, t) => counts(v.data.w[t]));
    return Math.max(0.05, ...[...this.group].map((v) => percentile(column(v), 0.99)));
  }

  // Classes and shades of the spans from `from` on.
  paint(from = 0) {
    const limit = this.limit(), column = this.data[this.mode], dims = this.share < 100;
    for (let i = from; i < this.spans.length; i++) {
      const t = this.first + i, s = this.spans[i], v = column ? shade(this.mode, column[t], limit) : NaN;
      const some = Math.round(Math.abs(v) * STEPS) / STEPS || 0;
      s.className = "tv-k" + this.dress(t, v, dims);
      s.style.cssText = some ? "--a:" + (some * 0.6).toFixed(3) + ";--b:" + (some > 0.08 ? 1 + Math.round(some * 2) : 0) : "";
    }
    if (this.modes.value !== this.mode) this.modes.value = this.mode;
    if (this.scales.value !== this.scale) this.scales.value = this.scale;
    if (Number(this.slider.value) !== this.share) this.slider.value = this.share;
    this.legend.replaceChildren(legendOf(this.mode, limit, this.about.div_name || "divergence"));
    this.later();
  }

  dress(t, v, dims) {
    const { w, text, special } = this.data;
    let name = MODES[this.mode].diverging ? (v > 0 ? " tv-t" : " tv-s") : " tv-q";
    if (!counts(w[t])) name += " tv-off";
    if (dims && !this.kept.has(t)) name += " tv-dim";
    if (t === this.at) name += " tv-on";
    if (this.hits.has(t)) name += " tv-hit";
    if (text[t] === "") name += special[t] ? " tv-special" : " tv-part";
    else if (t && text[t - 1] === "" && !special[t - 1]) name += " tv-whole";
    return name;
  }

  later() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; strip(this.canvas, this); this.canvas.setAttribute("aria-label", "cumulative divergence, " + nat(this.total) + " nat over " + whole(this.data.n) + " tokens"); });
  }

  turn() {
    const n = this.data.n;
    this.pages.hidden = n <= WINDOW;
    if (n <= WINDOW) return;
    const to = (first) => () => { this.first = Math.max(0, Math.min(first, n - WINDOW)); this.at = -1; this.draw(); };
    this.pages.replaceChildren(button("Earlier", "the tokens before", to(this.first - WINDOW)), button("Later", "the tokens after", to(this.first + WINDOW)),
      el("span", "", "tokens " + whole(this.first) + " to " + whole(Math.min(n, this.first + WINDOW) - 1) + " of " + whole(n) + "; the strip below shows all"));
  }

  select(t, quiet) {
    if (!this.data.n) return;
    t = Math.max(0, Math.min(this.data.n - 1, t));
    for (const view of this.group) view.move(t);
    if (quiet) return;
    clearTimeout(this.telling); // holding an arrow key is one selection, not fifty
    this.telling = setTimeout(() => this.host.emit("token", this.where()), 100);
  }

  where() {
    return { run: this.about.run, rollout: this.about.rollout, t: this.at };
  }

  move(t) {
    if (t >= this.data.n) return;
    const before = this.at;
    this.at = t;
    if (t < this.first || t >= this.first + this.spans.length) this.draw();
    else { this.mark(before); this.mark(); }
    const s = this.spans[t - this.first], box = this.list;
    if (s.offsetTop < box.scrollTop || s.offsetTop + s.offsetHeight > box.scrollTop + box.clientHeight) box.scrollTop = s.offsetTop - box.clientHeight / 3;
    this.show();
  }

  mark(t = this.at) {
    const s = this.spans[t - this.first], on = t === this.at && t >= 0;
    if (s) { s.classList.toggle("tv-on", on); s.setAttribute("aria-selected", String(on)); }
    if (on && s) this.list.setAttribute("aria-activedescendant", s.id);
    if (this.at < 0) this.list.removeAttribute("aria-activedescendant");
    this.later();
  }

  unselect() {
    for (const view of this.group) {
      const before = view.at;
      view.forget();
      view.mark(before);
    }
  }

  forget() {
    this.at = -1;
    this.rows.replaceChildren();
    this.line.textContent = "Select a token to see what both roles thought of it.";
  }

  scrolled() {
    if (this.pushed) { this.pushed = false; return; }
    const far = this.list.scrollTop / Math.max(1, this.list.scrollHeight - this.list.clientHeight);
    for (const view of this.group) {
      const top = Math.round(far * (view.list.scrollHeight - view.list.clientHeight));
      if (view !== this && Math.abs(top - view.list.scrollTop) > 1) { view.pushed = true; view.list.scrollTop = top; }
    }
  }

  step(by) {
    let t = this.at + by;
    while (t >= 0 && t < this.data.n && !this.kept.has(t)) t += by;
    if (t >= 0 && t < this.data.n) this.select(t);
  }

  find() {
    const wanted = this.search.value.toLowerCase(), { n } = this.data;
    this.hits = new Set();
    let count = 0;
    if (wanted) {
      const words = Array.from({ length: n }, (_, t) => written(this.data, t).toLowerCase()), joined = words.join("");
      let end = 0, t = 0;
      for (let from = joined.indexOf(wanted); from >= 0; from = joined.indexOf(wanted, from + wanted.length)) {
        count++;
        while (t < n && end + words[t].length <= from) end += words[t++].length;
        for (let u = t, to = end; u < n && to < from + wanted.length; to += words[u++].length) this.hits.add(u);
      }
    }
    this.found.textContent = wanted ? whole(count) + (count === 1 ? " hit" : " hits") : "";
    this.paint();
  }

  searching(e) {
    if (e.key === "Escape") { this.search.value = ""; this.find(); this.list.focus(); }
    if (e.key !== "Enter") return;
    const hits = [...this.hits].sort((a, b) => a - b);
    const next = hits.filter((t) => t > this.at && !this.hits.has(t - 1))[0];
    if (hits.length) this.select(next === undefined ? hits[0] : next);
    e.preventDefault();
  }

  key(e) {
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    const keys = {
      ArrowRight: () => this.select(this.at + 1), ArrowLeft: () => this.select(this.at < 0 ? 0 : this.at - 1),
      ArrowDown: () => this.line_by(1), ArrowUp: () => this.line_by(-1),
      Home: () => this.select(0), End: () => this.select(this.data.n - 1),
      n: () => this.step(1), p: () => this.step(-1), "/": () => this.search.focus(),
      "[": () => this.shared({ share: Math.max(10, this.share - 5) }), "]": () => this.shared({ share: Math.min(100, this.share + 5) }),
      Enter: () => this.open(), b: () => this.branch(), c: () => this.copy(), Escape: () => this.unselect(),
    };
    if (!keys[e.key]) return;
    e.preventDefault();
    keys[e.key]();
  }

  // The token under or over the selected one, as the text is laid out now.
  line_by(by) {
    const here = this.spans[Math.max(0, this.at) - this.first];
    if (!here || this.at < 0) { this.select(this.first); return; }
    const box = here.getBoundingClientRect(), middle = box.left + box.width / 2;
    let best = -1, near = Infinity, line = null;
    for (let i = this.at - this.first + by; i >= 0 && i < this.spans.length; i += by) {
      const other = this.spans[i].getBoundingClientRect();
      if (Math.abs(other.top - box.top) < 4) continue;
      line ??= other.top;
      if (Math.abs(other.top - line) > 4 && best >= 0) break;
      const away = Math.abs(other.left + other.width / 2 - middle);
      if (away < near) { near = away; best = i; }
    }
    if (best >= 0) this.select(this.first + best);
  }

  open() {
    if (this.at < 0) this.select(0);
    this.panel.focus();
    this.panel.scrollIntoView({ block: "nearest" });
  }

  // What else the roles would have written at t, asked for once.
  async more(t) {
    if (!this.details.has(t) && this.host.detail) {
      const { run, rollout } = this.about, more = await this.host.detail(run, rollout, t);
      if (more && run === this.about.run && rollout === this.about.rollout) this.details.set(t, more);
    }
    return this.details.get(t);
  }

  async show() {
    const t = this.at, about = this.about;
    const fill_in = (more) => this.rows.replaceChildren(roles(this.data, t), ...(more ? [alternatives(this, t, more)] : []),
      divergences(this.data, t, about.div_name), ...(more ? terms(more) : []));
    this.line.replaceChildren(...headline(this, t));
    if (this.details.has(t)) { fill_in(this.details.get(t)); return; }
    fill_in();
    try {
      const more = await this.more(t);
      if (more && this.at === t && this.about === about) fill_in(more);
    } catch (error) {
      if (this.at === t) this.rows.append(el("p", "tv-note", "What else the roles would have written could not be read."));
    }
  }

  // Keeps the prefix and forces a token: the one given, or what the teacher would rather have written.
  async branch(token) {
    const t = this.at, where = this.where();
    if (!this.host.branch || t < 0) return;
    const other = token || (((await this.more(t)) || {}).alternatives || []).find((a) => !a.written);
    if (other) this.host.emit("branch", { ...where, token: other.token, text: other.text });
  }

  // The strip as a PNG on the ground it is seen on.
  save() {
    const image = document.createElement("canvas"), pen = image.getContext("2d");
    Object.assign(image, { width: this.canvas.width, height: this.canvas.height });
    pen.fillStyle = getComputedStyle(this.root).getPropertyValue("--tv-ground");
    pen.fillRect(0, 0, image.width, image.height);
    pen.drawImage(this.canvas, 0, 0);
    const link = Object.assign(document.createElement("a"), { href: image.toDataURL("image/png"), download: "divergence.png" });
    link.click();
  }

  async copy() {
    if (this.at < 0) return;
    const text = plain(this.data, this.at);
    let done = true;
    try { await navigator.clipboard.writeText(text); } catch (error) { done = copied(text); }
    const before = [...this.line.childNodes];
    this.line.textContent = done ? "Copied." : "The browser did not let us copy.";
    setTimeout(() => { if (this.line.textContent === "Copied.") this.line.replaceChildren(...before); }, 1200);
  }
}
