// Which classes are kept, how many particles that leaves, undo and redo, and the file that `ralib select` takes.

const kept = new Set();
const limits = { classes: {}, particles: {} }; // thresholds by the key of the figure; absent: none
const listeners = [];
const onSelection = (listener) => listeners.push(listener);
const memory = `ralib-selection-${run.fingerprint}`;
const everyClass = () => [...Array(K).keys()];

// ---- changes, each of which can be undone -----------------------------------------------------------------------
const past = [], future = [];
let lastGroup = null;
const snapshot = () => JSON.stringify({ kept: [...kept], limits });
function restore(text) {
  const state = JSON.parse(text);
  kept.clear();
  for (const k of state.kept) kept.add(k);
  limits.classes = state.limits.classes;
  limits.particles = state.limits.particles;
}
// Changes of one `group` in a row (the digits of a number being typed) are undone together.
function change(action, group = null) {
  const before = snapshot();
  action();
  if (snapshot() === before) return;
  if (!group || group !== lastGroup) past.push(before);
  lastGroup = group;
  future.length = 0;
  changed();
}
function step(from, to) {
  if (!from.length) return;
  to.push(snapshot());
  restore(from.pop());
  lastGroup = null;
  changed();
}
const undo = () => step(past, future);
const redo = () => step(future, past);

function changed() {
  remember(memory, snapshot());
  document.body.classList.toggle("selecting", kept.size > 0);
  for (const listener of listeners) listener();
}
const setKept = (classes, group) => change(() => {
  const list = [...classes];
  kept.clear();
  for (const k of list) kept.add(k);
}, group);
const toggle = (k, on = !kept.has(k)) => change(() => { if (on) kept.add(k); else kept.delete(k); });
const keepAlso = (classes, on = true) => change(() => { for (const k of classes) if (on) kept.add(k); else kept.delete(k); });
const invert = () => setKept(everyClass().filter((k) => !kept.has(k)));

// ---- thresholds -------------------------------------------------------------------------------------------------
function meets(k) {
  return members[k] > 0 && Object.entries(limits.classes).every(([key, limit]) => {
    const value = run.classes[k][key];
    return known(value) && (figureOf(key).better < 0 ? value <= limit : value >= limit);
  });
}
function setLimit(kind, key, value) {
  change(() => {
    if (value === null || !Number.isFinite(value)) delete limits[kind][key]; else limits[kind][key] = value;
    if (kind === "classes" && Object.keys(limits.classes).length) {
      kept.clear();
      for (const k of everyClass().filter(meets)) kept.add(k);
    }
  }, `${kind}-${key}`);
}

// Members of class k that meet every particle threshold. The figures are float32, as `ralib select` compares them.
function remaining(k) {
  const rules = particleLimits.filter(({ key }) => limits.particles[key] !== undefined)
    .map(({ key, sense }) => [particleFigures[key][k], Math.fround(limits.particles[key]), sense === "≤"]);
  if (!rules.length) return members[k];
  let left = 0;
  for (let i = 0; i < members[k]; i++) if (rules.every(([values, limit, below]) => (below ? values[i] <= limit : values[i] >= limit))) left++;
  return left;
}
// "97 of 120 kept" where the thresholds leave out some of a ticked class.
function partly(k) {
  const left = kept.has(k) ? remaining(k) : members[k];
  return left < members[k] ? `${count(left)} of ${count(members[k])} kept` : "";
}
// Whether the thresholds leave member m of the pictures of class k out.
const leftOut = (k, m) => particleLimits.some(({ key, sense }) => {
  const value = run.members.figures?.[key]?.[k][m], limit = limits.particles[key];
  return limit !== undefined && known(value) && (sense === "≤" ? Math.fround(value) > Math.fround(limit) : Math.fround(value) < Math.fround(limit));
});
const particlesKept = () => [...kept].reduce((sum, k) => sum + remaining(k), 0);

// "1,4-9" for the kept classes, numbered from 1.
function asRanges(classes) {
  const sorted = [...classes].map((k) => k + 1).sort((a, b) => a - b), parts = [];
  for (let i = 0; i < sorted.length; i++) {
    let last = i;
    while (sorted[last + 1] === sorted[last] + 1) last++;
    parts.push(last === i ? `${sorted[i]}` : `${sorted[i]}-${sorted[last]}`);
    i = last;
  }
  return parts.join(",");
}

function selectionFile() {
  return {
    format: "ralib-selection", version: 1,
    run: { title: run.title, fingerprint: run.fingerprint, n_classes: K },
    classes: [...kept].map((k) => k + 1).sort((a, b) => a - b),
    ...Object.fromEntries(particleLimits.map(({ key, file }) => [file, limits.particles[key] ?? null])),
    particles: particlesKept(),
  };
}
const selectOptions = () => [`--classes ${asRanges(kept)}`, ...particleLimits.filter(({ key }) => limits.particles[key] !== undefined).map(({ key, option }) => `${option} ${limits.particles[key]}`)].join(" ");
function selectionSummary() {
  const left = particlesKept();
  return `${count(left)} of ${count(total)} particles (${percent(left, total)}) in ${count(kept.size)} of ${count(K)} classes`;
}

// ---- the bar at the foot of the page ----------------------------------------------------------------------------
function buildSelectionBar() {
  const bar = byId("selection"), message = el("div", { class: "count", role: "status" }), meter = el("i");
  const button = (label, action, more = {}) => el("button", { type: "button", onclick: action, ...more }, label);
  const download = button(["Download", el("span", { class: "long" }, " selection")], () => save("selection.json", JSON.stringify(selectionFile(), null, 1), "application/json"), { class: run.server ? "" : "primary", id: "download" });
  const write = run.server?.finished && button("Write files", () => writeSelection(write), { class: "primary", id: "write", title: "Particles kept, particles left out, averages kept: into the run's folder" });
  const how = el("div", { class: "how command" }, el("pre", { id: "select-command" }));
  how.append(button("Copy", (event) => copy(byId("select-command").textContent, event.currentTarget)));
  bar.append(...[message, el("div", { class: "actions" }, button("Undo", undo, { id: "bar-undo", "aria-keyshortcuts": "Control+Z" }), button("Clear", () => setKept([])), download, write),
    how, run.server && el("div", { class: "how", id: "written", role: "status" }),
    !run.server && el("p", { class: "how caption" }, "To write files from this page, open it with ", el("code", {}, `ralib report ${runWord} --serve`), ".")].filter(Boolean));
  onSelection(() => {
    const left = particlesKept();
    message.replaceChildren(
      el("span", {}, "Keeping ", el("b", { id: "kept-particles", "data-value": left }, count(left)), ` of ${count(total)} particles (${percent(left, total)}) in ${count(kept.size)} of ${count(K)} classes`),
      el("div", { class: "meter" }, meter));
    meter.style.width = `${total ? 100 * left / total : 0}%`;
    bar.hidden = !kept.size;
    byId("bar-undo").disabled = !past.length;
    byId("select-command").textContent = `ralib select ${runWord} ${selectOptions()} --out selected.star`;
  });
}

// Undo and redo anywhere but in a field that has its own.
addEventListener("keydown", (event) => {
  if (!(event.ctrlKey || event.metaKey) || event.altKey || event.target.matches?.("input[type=number], textarea")) return;
  const key = event.key.toLowerCase();
  if (key === "z" && !event.shiftKey) undo(); else if (key === "y" || (key === "z" && event.shiftKey)) redo(); else return;
  event.preventDefault();
});

// What was ticked before in this browser; else the run's automatic selection.
function restoreSelection() {
  try {
    const before = JSON.parse(remembered(memory));
    if (before?.kept) {
      before.kept = before.kept.filter((k) => Number.isInteger(k) && k >= 0 && k < K);
      const some = (object, keys) => Object.fromEntries(Object.entries(object || {}).filter(([key, value]) => keys.includes(key) && Number.isFinite(value)));
      before.limits = { classes: some(before.limits?.classes, figures.map(({ key }) => key)), particles: some(before.limits?.particles, particleLimits.map(({ key }) => key)) };
      restore(JSON.stringify(before));
      changed();
      return;
    }
  } catch { /* nothing sensible remembered */ }
  if (hasAutomatic) keepAutomatic();
  changed();
}
