// One class in full: its average, curves, history over the iterations, and members.

let shown = null;
const detail = byId("detail");

function openDetail(k) {
  shown = k;
  fillDetail();
  showKept();
  if (!detail.open) detail.showModal();
  detail.scrollTop = 0;
  history.replaceState(null, "", `#class-${run.classes[k].class}`);
}
function stepDetail(by) {
  openDetail(order[(order.indexOf(shown) + by + order.length) % order.length]);
}

function fillDetail() {
  const item = run.classes[shown], k = shown;
  const button = (text, name, action, more = {}) => el("button", { type: "button", "aria-label": name, title: name, onclick: action, ...more }, text);
  const keep = button("Keep", "Keep this class (K)", () => toggle(k), { id: "detail-keep", "aria-pressed": kept.has(k) });
  detail.replaceChildren(
    el("div", { class: "bar" }, el("h2", { id: "detail-title" }, `Class ${item.class}`), keep,
      button("‹", "Previous class (left arrow)", () => stepDetail(-1), { class: "icon" }), button("›", "Next class (right arrow)", () => stepDetail(1), { class: "icon" }),
      button("×", "Close (Escape)", () => detail.close(), { class: "icon", id: "detail-close" })),
    el("div", { class: "body" },
      el("div", {}, bigPicture(k), el("dl", { class: "figures" }, facts(item).map(([name, value, about]) => el("div", { title: about }, el("dt", {}, name), el("dd", {}, value)))),
        item.verdict && el("p", { class: "says" }, sentence(item.verdict)), automaticText(item) && el("p", { class: "says muted" }, `Automatic selection: ${automaticText(item)}.`),
        el("p", { class: "says", id: "detail-partly" }),
        el("div", { class: "actions" }, el("button", { type: "button", id: "keep-above", onclick: () => keepAlso(upTo(k)) }, "Keep this and all above"), el("button", { type: "button", id: "keep-below", onclick: () => keepAlso(fromHere(k)) }, "Keep this and all below"))),
      el("div", { class: "plots" }, detailPlots(k)),
      el("div", { class: "wide" }, historyOf(k), ...montage(k).filter(Boolean))));
}

function bigPicture(k) {
  const canvas = picture(run.averages, k, `Average of class ${run.classes[k].class}`);
  canvas.classList.add("big");
  return el("div", { class: "frame" }, canvas);
}

function facts(item) {
  return figures.filter(({ key }) => known(item[key])).map(({ key, name, text, about }) => [name, key === "members" ? `${count(item.members)} (${percent(item.members, total)})` : text(item[key]), about]);
}

function detailPlots(k) {
  const only = new Set([k]), plots = [];
  if (frc) plots.push(frcChart({ id: "class-frc", title: "Fourier ring correlation", height: 170, series: [{ name: "FRC", x: frequencies(), y: frcOf(k), color: "var(--c1)" }] }));
  if (histograms.psi) plots.push(distribution("psi", { id: "class-psi", title: "In-plane angle", height: 150, counts: () => summed(histograms.psi.counts, only) }));
  for (const map of hexagonMaps) plots.push(hexagonChart(map, { id: `class-${map.name}`, most: 230, scope: () => only }));
  for (const name of ["fit", "posterior", "junk"]) if (histograms[name]) plots.push(distribution(name, { id: `class-${name}`, title: histograms[name].label, height: 150, color: "var(--c4)", counts: () => summed(histograms[name].counts, only) }));
  const x = run.iterations.map((item) => item.iteration), dots = x.length < 30;
  for (const [key, title, color] of [["class_sizes", "Members", "var(--c3)"], ["resolution", `${run.iterations[0]?.stage ? "Uncorrected FRC" : "Resolution"} (${resolutionUnit})`, "var(--c2)"]]) {
    const y = run.iterations.map((item) => item[key]?.[ancestor(k, item.iteration)]);
    if (x.length > 1 && y.some(known)) plots.push(lineChart({ id: `class-${key}`, title: `${title} by iteration`, height: 150, whole: key === "class_sizes", xName: "Iteration", xTicks: ticks(x[0], x[x.length - 1], 4).filter(Number.isInteger), series: [{ name: title, x, y, color, dots }] }));
  }
  return plots;
}

// The number (from 0) that class k had at an iteration: histories follow classes, which may change their numbers.
function ancestor(k, iteration) {
  const { iterations, ancestors } = run.history || {};
  if (!iterations) return k;
  const later = iterations.findIndex((number) => number >= iteration);
  return ancestors[later < 0 ? iterations.length - 1 : later][k];
}

function historyOf(k) {
  const node = el("div");
  if (run.history && run.history.iterations.length > 1) {
    const { iterations, sheets } = run.history;
    node.append(el("h3", {}, "Over the iterations"), el("div", { class: "strip", tabindex: 0, role: "region", "aria-label": "Average at each iteration" }, iterations.map((iteration, t) => {
      const then = ancestor(k, iteration), size = run.iterations.find((item) => item.iteration === iteration)?.class_sizes?.[then];
      return el("figure", {}, picture(sheets, t * K + k, `Iteration ${iteration}`), el("figcaption", {}, `${iteration}`, el("br"), known(size) ? count(size) : "", then !== k && el("div", { title: "The number it had then" }, `#${then + 1}`)));
    })));
  }
  return node;
}

function montage(k) {
  if (!run.members) return [];
  const { kind, row, score, sheets } = run.members, node = el("div", { class: "montages" }), groups = new Map();
  kind.forEach((name, m) => { if (row[k][m] >= 0) groups.set(name, [...(groups.get(name) || []), m]); });
  for (const [name, list] of groups) {
    node.append(el("div", {}, el("h3", {}, `${name[0].toUpperCase()}${name.slice(1)} members`), el("div", { class: "montage" }, list.map((m) =>
      el("figure", { "data-member": m }, picture(sheets, k * kind.length + m, `Particle ${row[k][m] + 1}`), el("figcaption", {}, `${count(row[k][m] + 1)}`, known(score[k][m]) ? ` · ${short(score[k][m])}` : ""))))));
  }
  return [node, groups.size > 0 && el("p", { class: "caption muted" }, "Aligned to the average. Number: row in the particle file; then its fit. Crossed: left out as things are ticked.")];
}

detail.addEventListener("close", () => {
  history.replaceState(null, "", location.pathname + location.search);
  if (shown !== null) cards[shown].open.focus({ preventScroll: true });
  shown = null;
});
detail.addEventListener("click", (event) => { if (event.target === detail) detail.close(); });
detail.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") stepDetail(-1);
  else if (event.key === "ArrowRight") stepDetail(1);
  else if (event.key === "k" || event.key === "K") toggle(shown);
});
// What of the class shown stays: in words, and on each member's picture.
function showKept() {
  if (shown === null) return;
  byId("detail-keep").setAttribute("aria-pressed", kept.has(shown));
  byId("detail-partly").textContent = partly(shown) && `${partly(shown)}: the thresholds leave ${count(members[shown] - remaining(shown))} out.`;
  for (const figure of detail.querySelectorAll("[data-member]")) {
    const out = !kept.has(shown) || leftOut(shown, figure.dataset.member);
    figure.classList.toggle("left-out", out);
    figure.title = out ? "left out" : "kept";
  }
}
onSelection(showKept);
