// Which classes are kept, how many particles that leaves, and the file that `ralib select` takes.

const kept = new Set();
const limits = { members: null, resolution: null, score: null };
const listeners = [];
const onSelection = (listener) => listeners.push(listener);
const memory = `ralib-selection-${run.fingerprint}`;

function changed() {
  try { localStorage.setItem(memory, JSON.stringify({ kept: [...kept], score: limits.score })); } catch { /* private mode: forget */ }
  document.body.classList.toggle("selecting", kept.size > 0);
  for (const listener of listeners) listener();
}
function setKept(classes) {
  kept.clear();
  for (const k of classes) kept.add(k);
  changed();
}
function toggle(k, on = !kept.has(k)) {
  if (on) kept.add(k); else kept.delete(k);
  changed();
}
const invert = () => setKept([...Array(K).keys()].filter((k) => !kept.has(k)));

// Members of class k whose score reaches the threshold (all of them without one); the scores are sorted.
function remaining(k) {
  if (limits.score === null || !scores) return members[k];
  const list = scores[k];
  let low = 0, high = list.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (list[middle] < limits.score) low = middle + 1; else high = middle;
  }
  return list.length - low;
}
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
    min_score: limits.score, particles: particlesKept(),
  };
}

function meets(k) {
  const item = run.classes[k];
  return (limits.members === null || item.members >= limits.members)
    && (limits.resolution === null || (known(item.resolution) && item.resolution <= limits.resolution))
    && item.members > 0;
}
function applyLimits() {
  if (limits.members !== null || limits.resolution !== null) setKept([...Array(K).keys()].filter(meets));
  else changed();
}

function buildSelectionBar() {
  const bar = byId("selection"), message = el("div", { class: "count" }), meter = el("i");
  const button = (label, action, more = {}) => el("button", { type: "button", onclick: action, ...more }, label);
  const download = button(["Download", el("span", { class: "long" }, " selection")], () => save("selection.json", JSON.stringify(selectionFile(), null, 1), "application/json"), { class: "primary", id: "download" });
  const clear = button("Clear", () => setKept([]));
  const how = el("div", { class: "how command" }, el("pre", { id: "select-command" }));
  how.append(button("Copy", (event) => copy(byId("select-command").textContent, event.currentTarget)));
  bar.append(message, el("div", { class: "actions" }, button("Invert", invert, { id: "invert" }), clear, download), how);
  onSelection(() => {
    const left = particlesKept();
    message.replaceChildren(
      el("span", {}, "Keeping ", el("b", { id: "kept-particles", "data-value": left }, count(left)), ` of ${count(total)} particles (${percent(left, total)}) in ${count(kept.size)} of ${count(K)} classes`),
      el("div", { class: "meter" }, meter));
    meter.style.width = `${total ? 100 * left / total : 0}%`;
    bar.hidden = !kept.size;
    const score = limits.score === null ? "" : ` --min-score ${limits.score}`;
    byId("select-command").textContent = `ralib select RUN --classes ${asRanges(kept)}${score} --out selected.star`;
  });
}

function restoreSelection() {
  try {
    const before = JSON.parse(localStorage.getItem(memory));
    if (before) { limits.score = scores ? before.score : null; setKept(before.kept.filter((k) => Number.isInteger(k) && k >= 0 && k < K)); return; }
  } catch { /* nothing remembered */ }
  changed();
}
