// What a token view is made of: its controls, its text, its panel. Every key has a button that does the same.
class TokenFrame {
  constructor(root, host) {
    this.root = root;
    this.host = host;
  }

  build() {
    this.root.classList.add("tv");
    this.root.replaceChildren();
    this.head = el("div");
    this.foot = el("div", "tv-foot");
    const bar = el("div", "tv-bar");
    this.modes = this.choice(bar, "Colour", Object.entries(MODES).map(([k, v]) => [k, v.name]), (v) => this.shared({ mode: v }));
    this.scales = this.choice(bar, "Scale", [["fixed", FIXED + " nat"], ["p99", "99th percentile"]], (v) => this.shared({ scale: v }));
    const found = this.field(bar, "Search");
    this.search = el("input", "tv-search");
    this.search.type = "search";
    this.search.addEventListener("input", () => this.find());
    this.search.addEventListener("keydown", (e) => this.searching(e));
    this.found = el("output", "tv-found");
    found.append(this.search, this.found);
    const limit = this.field(bar, "Threshold");
    this.slider = Object.assign(el("input", "tv-slider"), { type: "range", min: 10, max: 100, step: 5, value: 100 });
    this.slider.addEventListener("input", () => this.shared({ share: Number(this.slider.value) }));
    limit.append(this.slider);
    this.share_name = limit.firstChild;
    this.said = el("p", "tv-said");
    const acts = bar.appendChild(el("div", "tv-acts"));
    acts.append(
      button("Previous", "previous token above the threshold (p)", () => this.step(-1)),
      button("Next", "next token above the threshold (n)", () => this.step(1)),
      button("Detail", "go to the numbers of the selected token (Enter)", () => this.open()),
      button("Copy", "copy the numbers of the selected token (c)", () => this.copy()),
    );
    acts.append(button("Save strip", "the strip below the text as an image", () => this.save()));
    if (this.host.branch) acts.append((this.branching = button("Branch", "continue with the teacher's choice (b)", () => this.branch())));
    acts.append(this.helped());
    this.legend = el("div", "tv-legends");
    this.pages = el("div", "tv-pages");
    this.list = el("div", "tv-tokens");
    for (const [k, v] of [["role", "listbox"], ["tabindex", "0"], ["aria-label", "tokens of the completion"], ["dir", "ltr"]]) this.list.setAttribute(k, v);
    this.list.addEventListener("click", (e) => { const s = e.target.closest("[role=option]"); if (s) this.select(Number(s.dataset.t)); });
    this.list.addEventListener("keydown", (e) => this.key(e));
    this.list.addEventListener("scroll", () => this.scrolled());
    this.panel = el("section", "tv-detail");
    this.panel.tabIndex = 0; // it scrolls, so keys must reach it
    this.panel.setAttribute("aria-label", "the selected token");
    this.panel.addEventListener("keydown", (e) => { if (e.key === "Escape") this.list.focus(); });
    this.line = el("p", "tv-line", "Select a token to see what both roles thought of it.");
    this.line.setAttribute("aria-live", "polite");
    this.rows = el("div", "tv-rows");
    this.panel.append(this.line, this.rows);
    this.canvas = el("canvas", "tv-strip");
    this.canvas.setAttribute("role", "img");
    this.canvas.addEventListener("click", (e) => {
      const box = this.canvas.getBoundingClientRect();
      this.select(Math.floor(((e.clientX - box.left) / box.width) * this.data.n));
    });
    const left = el("div", "tv-left");
    left.append(this.pages, this.list, el("p", "tv-strip-name", "cumulative divergence; bars are tokens, ticks below the line are tokens out of the loss or cut"), this.canvas);
    const main = el("div", "tv-main");
    main.append(left, this.panel, this.foot);
    this.root.append(this.head, bar, this.said, this.legend, main);
    new ResizeObserver(() => this.later()).observe(this.canvas);
  }

  field(bar, name) {
    const label = el("label", "tv-field");
    label.append(el("span", "tv-label", name));
    bar.append(label);
    return label;
  }

  choice(bar, name, options, act) {
    const box = el("select", "tv-select");
    for (const [value, text] of options) box.append(Object.assign(el("option", "", text), { value }));
    box.addEventListener("change", () => act(box.value));
    this.field(bar, name).append(box);
    return box;
  }

  helped() {
    const help = el("details", "tv-help"), list = el("dl", "tv-keys");
    help.append(el("summary", "tv-button", "Keys"), list);
    const keys = [["← → ↑ ↓, Home, End", "move"], ["n, p", "next and previous above the threshold"], ["[ ]", "threshold"],
      ["/", "search"], ["Enter", "numbers of the token"], ["c", "copy them"], ["Esc", "back, or nothing selected"]];
    if (this.host.branch) keys.push(["b", "continue with the teacher's choice"]);
    for (const [k, v] of keys) list.append(el("dt", "", k), el("dd", "", v));
    return help;
  }
}
