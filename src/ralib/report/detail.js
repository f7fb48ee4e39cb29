// One class in full: its average, curves, history over the iterations, and members.

let shown = null;
const detail = byId("detail");

function openDetail(k) {
  shown = k;
  fillDetail();
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
    el("header", {}, el("h2", { id: "detail-title" }, `Class ${item.class}`), keep,
      button("‹", "Previous class (left arrow)", () => stepDetail(-1), { class: "icon" }), button("›", "Next class (right arrow)", () => stepDetail(1), { class: "icon" }),
      button("×", "Close (Escape)", () => detail.close(), { class: "icon", id: "detail-close" })),
    el("div", { class: "body" },
      el("div", {}, bigPicture(k), el("dl", { class: "figures" }, facts(item).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))))),
      el("div", { class: "plots" }, detailPlots(k)),
      el("div", { class: "wide" }, historyOf(k), ...montage(k).filter(Boolean))));
}

function bigPicture(k) {
  const canvas = picture(run.averages, k, `Average of class ${run.classes[k].class}`);
  canvas.classList.add("big");
  return canvas;
}

function facts(item) {
  return [
    ["Members", `${count(item.members)} (${percent(item.members, total)})`], [frc ? "FRC resolution" : "Resolution", withUnit(item.resolution, resolutionUnit)],
    ["In-plane spread", withUnit(item.inplane_spread_deg, "°")], ["Shift spread", withUnit(item.shift_spread_px, "px")],
    ["Mirrored", item.mirror_fraction ? percent(item.mirror_fraction, 1) : "–"], ["Mean score", short(item.mean_score)],
    ["Stability", known(item.stability) ? percent(item.stability, 1) : "–"], ["Median defocus", known(item.median_defocus_A) ? `${short(item.median_defocus_A / 1e4)} µm` : "–"],
  ].filter(([, value]) => value !== "–");
}

function detailPlots(k) {
  const only = new Set([k]), plots = [];
  if (frc) plots.push(frcChart({ id: "class-frc", title: "Fourier ring correlation", height: 170, series: [{ name: "FRC", x: frequencies(), y: frcOf(k), color: "var(--c1)" }] }));
  if (histograms.psi) plots.push(distribution("psi", { id: "class-psi", title: "In-plane angle", height: 150, counts: () => summed(histograms.psi.counts, only) }));
  if (shifts) plots.push(heatMap({ id: "class-shifts", title: "Origin shift", most: 220, edges: shifts.edges, counts: () => summed(shifts.counts, only) }));
  if (histograms.score) plots.push(distribution("score", { id: "class-score", title: "Score", height: 150, color: "var(--c4)", counts: () => summed(histograms.score.counts, only) }));
  const x = run.iterations.map((item) => item.iteration), dots = x.length < 30;
  for (const [key, title, color] of [["class_sizes", "Members", "var(--c3)"], ["resolution", `Resolution (${resolutionUnit})`, "var(--c2)"]]) {
    const y = run.iterations.map((item) => item[key]?.[k]);
    if (x.length > 1 && y.some(known)) plots.push(lineChart({ id: `class-${key}`, title: `${title} by iteration`, height: 150, whole: key === "class_sizes", xName: "Iteration", xTicks: ticks(x[0], x[x.length - 1], 4).filter(Number.isInteger), series: [{ name: title, x, y, color, dots }] }));
  }
  return plots;
}

function historyOf(k) {
  const node = el("div");
  if (run.history && run.history.iterations.length > 1) {
    const { iterations, sheets } = run.history;
    node.append(el("h3", {}, "Over the iterations"), el("div", { class: "strip", tabindex: 0, "aria-label": "Average at each iteration" }, iterations.map((iteration, t) => {
      const size = run.iterations.find((item) => item.iteration === iteration)?.class_sizes?.[k];
      return el("figure", {}, picture(sheets, t * K + k, `Iteration ${iteration}`), el("figcaption", {}, `${iteration}`, el("br"), known(size) ? count(size) : ""));
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
      el("figure", {}, picture(sheets, k * kind.length + m, `Particle ${row[k][m] + 1}`), el("figcaption", {}, `${count(row[k][m] + 1)}`, known(score[k][m]) ? ` · ${short(score[k][m])}` : ""))))));
  }
  return [node, groups.size > 0 && el("p", { class: "caption muted" }, "Aligned to the average. Number: row in the particle file; then its score.")];
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
onSelection(() => byId("detail-keep")?.setAttribute("aria-pressed", kept.has(shown)));
