// The panel of one token: what it is, what both roles thought of it, what else they would have written.
function headline(view, t) {
  const { data } = view, delta = data.delta[t], parts = [];
  const where = el("span", "tv-place", "token " + whole(t) + ", id " + data.id[t]);
  const piece = el("span", "tv-piece"), text = written(data, t);
  if (text === "") piece.textContent = UNSEEN; else fill(piece, text, 2000);
  parts.push(where, piece);
  let said = "what the roles think of it is not known";
  if (known(delta)) {
    const times = Math.exp(Math.abs(delta)), factor = times < 1.05 ? "" : ", " + (times < 1e4 ? times.toPrecision(2).replace(/e.*/, "") : "10 000 or more") + " times as likely";
    said = Math.abs(delta) < 0.005 ? "both roles say the same" : (delta > 0 ? "the teacher" : "the student") + " says more by " + nat(Math.abs(delta)) + " nat" + (times >= 100 && times < 1e4 ? ", " + Math.round(times) + " times as likely" : factor);
  }
  parts.push(el("span", "tv-verdict " + (delta > 0 ? "tv-t" : "tv-s"), said));
  return parts;
}

function table(name, heads, rows) {
  const box = el("table", name), head = el("tr");
  for (const text of heads) head.append(Object.assign(el("th", "", text), { scope: "col" }));
  box.append(el("thead"), el("tbody"));
  box.firstChild.append(head);
  for (const cells of rows) {
    const row = el("tr");
    cells.forEach((cell, i) => {
      const node = el(i ? "td" : "th");
      if (!i) node.scope = "row";
      if (cell instanceof Node) node.append(cell); else node.textContent = cell;
      row.append(node);
    });
    box.lastChild.append(row);
  }
  return box;
}

function roles(data, t) {
  const rank = (r) => (known(r) && r >= 0 ? whole(r) : "unknown");
  return table("tv-both", ["", "student", "teacher"], [
    ["log-prob, nat", nat(data.logp_s[t]), nat(data.logp_t[t])],
    ["rank", rank(data.rank_s[t]), rank(data.rank_t[t])],
    ["entropy, nat", nat(data.ent_s[t]), nat(data.ent_t[t])],
  ]);
}

function divergences(data, t, name) {
  const box = el("div"), why = data.why[t], counted = counts(data.w[t]);
  box.append(table("tv-one-column", ["divergence at this token", "nat"], [
    ["forward KL = KL(teacher || student)", nat(data.fkl[t])],
    ["reverse KL = KL(student || teacher)", nat(data.rkl[t])],
    ["JSD, equal weights", nat(data.jsd[t])],
    ["the loss takes: " + name.split(" = ")[0], nat(data.div[t])],
  ]));
  const line = el("p", "tv-why", "weight " + (known(data.w[t]) ? Number(data.w[t].toPrecision(4)) : "unknown") + ", ");
  fill(line.appendChild(el("span")), why, 300);
  if (!counted) line.prepend(el("span", "tv-swatch tv-off"), " not in the loss: ");
  box.append(line);
  return box;
}

function bar(logp, name) {
  const cell = el("span", "tv-share"), track = el("span", "tv-track"), full = el("span", "tv-fill " + name);
  full.style.width = (known(logp) ? Math.min(100, 100 * Math.exp(logp)) : 0).toFixed(1) + "%";
  track.append(full);
  cell.append(track, el("span", "tv-share-text", percent(logp)));
  return cell;
}

// Every term of the loss at this token, where there are several.
function terms(more) {
  const said = (x) => (known(number(x)) ? Number(number(x).toPrecision(4)).toString().replace("-", "−") : "unknown");
  const rows = (more.terms || []).map((term) => [fill(el("span"), term.name, 60), said(term.value), said(term.weight)]);
  return rows.length > 1 ? [table("tv-terms", ["term of the loss", "value", "counts for"], rows)] : [];
}

function alternatives(view, t, more) {
  const list = more.alternatives || [], box = el("div", "tv-others");
  if (!list.length) { box.append(el("p", "tv-note", "Only the numbers of the written token were recorded.")); return box; }
  const rows = list.map((a) => {
    const cell = el("span", "tv-alt");
    const piece = el("span", "tv-piece");
    if (a.text === "") piece.textContent = UNSEEN; else fill(piece, a.text, 60);
    cell.append(piece);
    if (a.written) cell.append(el("span", "tv-mark", "written"));
    const row = [cell, bar(number(a.student), "tv-s"), bar(number(a.teacher), "tv-t")];
    if (view.host.branch) row.push(a.written ? "" : button("continue", "keep the text before token " + whole(t) + ", write this, continue from here", () => view.branch(a)));
    return row;
  });
  const rest = ["rest of the vocabulary", bar(number(more.rest.student), "tv-s"), bar(number(more.rest.teacher), "tv-t")];
  if (view.host.branch) rest.push("");
  box.append(table("tv-tops" + (view.host.branch ? " tv-branching" : ""), ["token", "student", "teacher", ...(view.host.branch ? ["from here"] : [])], [...rows, rest]));
  return box;
}

// What `c` copies: one line a number, hostile characters as escapes.
function plain(data, t) {
  const clean = (s) => visible(s, 2000).map((p) => (p[1] === "tv-ret" ? "\\n" : p[0])).join("").replaceAll("\n", "");
  return ["token " + t + " (id " + data.id[t] + "): " + clean(written(data, t)),
    "log-prob, nat: student " + nat(data.logp_s[t]) + ", teacher " + nat(data.logp_t[t]),
    "rank: student " + data.rank_s[t] + ", teacher " + data.rank_t[t],
    "entropy, nat: student " + nat(data.ent_s[t]) + ", teacher " + nat(data.ent_t[t]),
    "forward KL = KL(teacher || student) " + nat(data.fkl[t]) + ", reverse KL = KL(student || teacher) " + nat(data.rkl[t]) + ", JSD " + nat(data.jsd[t]) + " nat",
    "weight " + data.w[t] + ", " + clean(data.why[t])].join("\n");
}

function copied(text) {
  const box = el("textarea", "tv-away", text);
  document.body.append(box);
  box.select();
  const done = document.execCommand("copy");
  box.remove();
  return done;
}

// Both prompts, what only one of them says highlighted. `parts` are [text, differs].
function prompts(about) {
  const box = el("div", "tv-prompts");
  for (const role of ["student", "teacher"]) {
    const found = (about.prompts || {})[role];
    if (!found || !found.parts.length) continue;
    const fold = el("details", "tv-prompt"), pre = el("div", "tv-prompt-text");
    fold.append(el("summary", "", role[0].toUpperCase() + role.slice(1) + " sees, " + whole(found.tokens) + " tokens"), pre);
    for (const [k, v] of [["tabindex", "0"], ["role", "region"], ["aria-label", "the " + role + "'s prompt"]]) pre.setAttribute(k, v);
    for (const [text, differs] of found.parts) {
      const node = el(differs ? "mark" : "span", differs ? "tv-differs" : "");
      pre.append(fill(node, text, 200000));
    }
    box.append(fold);
  }
  return box;
}

// What is known of the rollout beside its tokens, as small facts.
function facts(about) {
  const box = el("dl", "tv-facts");
  const add = (name, value, special) => {
    if (value === null || value === undefined || value === "") return;
    const item = el("div", "tv-fact" + (special || ""));
    item.append(el("dt", "", name), fill(el("dd"), String(value), 400));
    box.append(item);
  };
  const v = about.verdict;
  if (v) add("verdict", v.status.replace("_", " "), v.status === "correct" ? " tv-right" : "");
  if (v) add("extracted", v.extracted === null ? "nothing" : v.extracted);
  add("gold", about.answer);
  if (v) add("reason", v.reason);
  add("written by", about.author);
  add("ended", about.stop === "length" ? "truncated" : about.stop);
  add("recipe", about.recipe);
  add("numbers", { recorded: "recorded by the step", recomputed: "recomputed now", live: "live" }[about.source] || about.source);
  return box;
}
