// The page of a file: every section's data stand in it, nothing is asked of anybody.
function unpacked(packed, t) {
  const terms = packed.terms.map((name, k) => ({ name, value: packed.values[k][t], weight: packed.weights[k][t] }));
  if (!packed.tops) return { alternatives: [], rest: {}, terms };
  const flat = packed.tops[t], id = packed.value.id[t], alternatives = [];
  for (let i = 0; i < flat.length; i += 3) {
    alternatives.push({ token: flat[i], text: packed.pieces[flat[i]] || "", student: flat[i + 1], teacher: flat[i + 2], written: flat[i] === id });
  }
  return { alternatives, rest: { student: packed.rest[t][0], teacher: packed.rest[t][1] }, terms };
}

function showFile(group) {
  const began = performance.now(), views = [];
  for (const sheet of document.querySelectorAll(".tv-sheet")) {
    const packed = JSON.parse(sheet.firstElementChild.textContent), { value } = packed, facts = value.facts || {};
    sheet.firstElementChild.remove();
    const head = el("h2"), root = el("div");
    fill(head, "Rollout " + (value.rollout || "") + ", " + whole(value.text.length) + " tokens", 300);
    sheet.append(head);
    if (facts.question) sheet.append(fill(el("p", "tv-question"), facts.question, 4000));
    sheet.append(root);
    const view = new TokenView(root, { group, system: true, emit() {}, detail: (run, rollout, t) => Promise.resolve(unpacked(packed, t)) });
    view.take(JSON.stringify(value));
    views.push(view);
  }
  const theme = document.getElementById("theme");
  const kept = (...chosen) => {
    try { return chosen.length ? localStorage.setItem("opsd-theme", chosen[0]) : localStorage.getItem("opsd-theme"); } catch { return ""; }
  };
  if (["light", "dark"].includes(kept())) theme.value = kept();
  const change = () => {
    if (theme.value) document.documentElement.dataset.theme = theme.value; else delete document.documentElement.dataset.theme;
    for (const view of views) view.theme();
    document.body.classList.toggle("dark", views.length ? views[0].root.dataset.theme === "dark" : false);
  };
  theme.addEventListener("change", () => { kept(theme.value); change(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", change);
  matchMedia("print").addEventListener("change", () => views.forEach((view) => strip(view.canvas, view)));
  change();
  document.body.dataset.drawn = Math.round(performance.now() - began);
}
