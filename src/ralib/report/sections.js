// Header, convergence, resolution, distributions, CTF and provenance: everything that is a chart or a table.

const frequencies = () => frc.x.map((value) => value / (run.pixel_size_A || 1));
const nice = [300, 200, 100, 50, 30, 20, 15, 12, 10, 8, 7, 6, 5, 4, 3.5, 3, 2.5, 2];

// Axis of spatial frequency, labelled by the distance in Å people think in (or by 1/px without a pixel size).
function frequencyAxis(highest) {
  if (!run.pixel_size_A) return { xLabel: "Spatial frequency (1/px)", xName: "1/px" };
  const room = nice.filter((d) => 1 / d <= highest && 1 / d >= highest / 25), list = [];
  for (const d of room) if (!list.length || 1 / d - 1 / list[list.length - 1] > highest / 8) list.push(d);
  return { xLabel: "Resolution (Å)", xName: "", xTicks: list.map((d) => 1 / d), xText: (value) => short(1 / value), xRead: (value) => (value > 0 ? `${short(1 / value)} Å` : "∞") };
}
function frcChart(options) {
  const highest = frequencies()[frc.x.length - 1], axis = frequencyAxis(highest);
  return lineChart({ yRange: [-0.1, 1], yTicks: [0, 0.5, 1], marks: [{ y: 0.143, name: "0.143" }, { y: 0.5, name: "0.5" }], xRange: [0, highest], ...axis, ...options });
}
function distribution(name, options) {
  const item = histograms[name];
  const micrometre = name === "defocus", angle = name === "psi" ? { xTicks: [-180, -90, 0, 90, 180] } : {};
  const edges = micrometre ? item.edges.map((value) => value / 1e4) : item.edges, unit = micrometre ? "µm" : item.unit;
  return histogram({ edges, unit, xLabel: unit ? `${item.label} (${unit})` : item.label, ...angle, ...options });
}

const sentence = (text) => (text ? `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}` : "");

function buildHeader() {
  const { facts: f } = run, last = run.iterations[run.iterations.length - 1] || {};
  const kinds = { mref: "Multi-reference alignment", reffree: "Reference-free alignment", classify: "Classification", Class2D: "2D classification" };
  byId("subtitle").textContent = [kinds[f.kind] || f.kind, f.input?.path?.split("/").pop(), f.input?.particles && `${count(f.input.particles)} particles of ${f.input.box} px`, run.pixel_size_A && `${short(run.pixel_size_A)} Å/px`, f.device, f.finished, run.server && !run.server.finished && `running: ${last.iteration ? `iteration ${last.iteration}` : "nothing to see yet"}${last.stage ? `, ${last.stage}` : ""}; this page follows`].filter(Boolean).join(" · ");
  const resolutions = run.classes.filter((item) => known(item.resolution)).map((item) => item.resolution).sort((a, b) => a - b);
  const assigned = f.input?.particles && total !== f.input.particles ? `of ${count(f.input.particles)}` : "";
  const tile = (name, value, small = "") => value && el("div", {}, el("dt", {}, name), el("dd", {}, value, small && el("small", {}, small)));
  byId("tiles").append(...[
    tile("Particles in classes", count(total), assigned), tile("Classes", count(members.filter(Boolean).length), members.some((size) => !size) ? `of ${count(K)}` : ""),
    known(last.effective_classes) && tile("Effective classes", short(last.effective_classes)),
    resolutions.length && tile("Median resolution", short(resolutions[resolutions.length >> 1]), resolutionUnit), resolutions.length && tile("Best", short(resolutions[0]), resolutionUnit),
    run.iterations.length && tile("Iterations", count(last.iteration ?? run.iterations.length)), known(f.timings?.total_s) && tile("Time", duration(f.timings.total_s)),
  ].filter(Boolean));
  if (run.warnings.length) {
    byId("alerts").append(el("details", { class: "alerts", open: run.warnings.length <= 5 && innerWidth > 720 }, el("summary", {}, run.warnings.length === 1 ? "One thing to look at" : `${run.warnings.length} things to look at`),
      el("ul", { tabindex: 0, "aria-label": "Warnings" }, run.warnings.map((item) => el("li", {}, el("div", {}, el("b", {}, sentence(item.what)), item.where?.includes(" ") && el("span", { class: "muted" }, ` ${sentence(item.where)}`)), el("div", { class: "do" }, sentence(item.do)))))));
  }
}

const curves = [
  ["criterion", "Mean fit", [["criterion", "Mean fit", "--c1"]]], ["pixel_error", "Pixel error (px)", [["pixel_error_px", "Pixel error", "--c2"]]],
  ["changes", "Particles that changed (%)", [["class_changes", "Class", "--c4", 100], ["mirror_changes", "Mirror", "--c5", 100]]],
  ["effective", "Classes in use", [["effective_classes", "Effective", "--c3"], ["empty", "Empty", "--c2"]]], ["median_resolution", `Median resolution, uncorrected FRC (${resolutionUnit})`, [["median_resolution", "Resolution", "--c1"]]],
  ["sizes", "Class size", [["largest", "Largest", "--c1"], ["smallest", "Smallest", "--c2"]]], ["seconds", "Seconds an iteration", [["seconds", "Seconds", "--c5"]]],
];
function buildConvergence() {
  const host = byId("convergence").querySelector(".plots"), x = run.iterations.map((item) => item.iteration);
  for (const [id, title, lines] of curves) {
    const series = lines.map(([key, name, color, factor = 1]) => ({ name, color: `var(${color})`, x, dots: x.length <= 30, y: run.iterations.map((item) => (known(item[key]) ? item[key] * factor : null)) })).filter((item) => item.y.some(known));
    if (!series.length) continue;
    const ends = series.map((item) => `${item.name} from ${short(item.y.find(known))} to ${short(item.y.findLast(known))}`).join("; ");
    host.append(lineChart({ id: `iteration-${id}`, title, series, summary: ends, xName: "Iteration", xLabel: "Iteration", xTicks: ticks(x[0], x[x.length - 1], 6).filter(Number.isInteger) }));
  }
  if (!host.children.length) byId("convergence").remove();
}

function buildResolution() {
  const host = byId("resolution").querySelector(".plots"), colour = (k) => () => (kept.size && !kept.has(k) ? "var(--line)" : "var(--c1)");
  if (frc) {
    const middle = frc.x.map((_, i) => (i ? median([...Array(K).keys()].map((k) => frc.values[k * frc.shape[1] + i])) : null));
    const shownClasses = [...Array(K).keys()].filter((k) => members[k]), faint = Math.max(0.08, Math.min(0.5, 8 / shownClasses.length));
    host.append(frcChart({ id: "frc", title: "Fourier ring correlation of all classes", height: 270, legend: [], series: [...shownClasses.map((k) => ({ x: frequencies(), y: frcOf(k), color: "var(--c1)", faint })), { name: "Median", x: frequencies(), y: middle, color: "var(--c2)" }], caption: "One line a class between its two half averages; the strong line is the median." }));
  }
  const points = run.classes.map((item, k) => ({ k, x: item.members, y: item.resolution, color: colour(k), open: () => { hideTip(); openDetail(k); }, tip: () => [picture(run.averages, k, ""), el("b", {}, label(item))] })).filter((point) => known(point.y) && point.x > 0);
  if (points.length) {
    const plot = scatter({ id: "resolution-size", title: "Resolution against size", height: 270, points, xLabel: "Members", yLabel: `Resolution (${resolutionUnit})`, summary: `${points.length} classes` });
    host.append(plot);
    onSelection(() => plot.repaint());
  }
  const sizes = [...members].sort((a, b) => b - a);
  host.append(histogram({ id: "class-sizes", title: "Class sizes, largest first", edges: Array.from({ length: K + 1 }, (_, i) => i), counts: () => sizes, xLabel: "Class by rank", height: 270 }));
  if (host.children.length === 3) host.classList.remove("two");
}

function buildDistributions() {
  const host = byId("distributions").querySelector(".plots"), plots = [], scope = () => (kept.size ? kept : null);
  for (const name of Object.keys(histograms)) plots.push(distribution(name, { id: `distribution-${name}`, title: histograms[name].label, height: 220, color: { psi: "var(--c1)", fit: "var(--c4)", posterior: "var(--c2)", junk: "var(--c5)", defocus: "var(--c3)" }[name], counts: () => summed(histograms[name].counts, scope()) }));
  for (const map of hexagonMaps) plots.push(hexagonChart(map, { id: `distribution-${map.name}`, most: 300, scope }));
  if (run.classes.some((item) => item.mirror_fraction)) {
    plots.push(histogram({ id: "distribution-mirror", title: "Mirrored", height: 220, edges: [0, 1, 2], xTicks: [0.5, 1.5], xText: (value) => (value < 1 ? "plain" : "mirrored"), color: "var(--c5)", counts: () => {
      const chosen = run.classes.filter((_, k) => !kept.size || kept.has(k)), mirrored = chosen.reduce((sum, item) => sum + item.members * (item.mirror_fraction || 0), 0);
      return [chosen.reduce((sum, item) => sum + item.members, 0) - mirrored, mirrored];
    } }));
  }
  host.append(...plots);
  if (!plots.length) { byId("distributions").remove(); return; }
  onSelection(() => { byId("distribution-scope").textContent = kept.size ? `Of the ${count(kept.size)} kept classes.` : "Of all classes; select some to see theirs."; plots.forEach((plot) => plot.repaint()); });
}

function buildCtf() {
  const c = run.ctf;
  if (!c) { byId("ctf").remove(); return; }
  const host = byId("ctf").querySelector(".plots"), x = c.frequency_per_A, highest = x[x.length - 1], axis = frequencyAxis(highest), colours = ["--c3", "--c1", "--c2"];
  host.append(
    lineChart({ id: "ctf-curves", title: "CTF", height: 220, ...axis, xRange: [0, highest], yRange: [-1, 1], yTicks: [-1, 0, 1], series: c.curves.map((y, i) => ({ name: `${c.label[i]}, ${short(c.defocus_A[i] / 1e4)} µm`, x, y, color: `var(${colours[i % 3]})` })) }),
    lineChart({ id: "ctf-coverage", title: "Coverage: mean CTF² over the particles", height: 220, ...axis, xRange: [0, highest], yRange: [0, 1], yTicks: [0, 0.5, 1], series: [{ name: "Mean CTF²", x, y: c.coverage, color: "var(--c1)" }], caption: "Where it nears zero the particles hold no information." }));
  if (c.defocus_uv_A.length) host.append(scatter({ id: "ctf-defocus", title: "Defocus U and V (µm)", height: 220, xLabel: "U", yLabel: "V", summary: `${c.defocus_uv_A.length} particles`, points: c.defocus_uv_A.map(([u, v]) => ({ x: u / 1e4, y: v / 1e4, color: () => "var(--c3)", tip: () => [`${short(u / 1e4)} and ${short(v / 1e4)} µm`] })) }));
}

function buildComponents() {
  if (!run.components.length) { byId("components").remove(); return; }
  byId("components").querySelector(".plots").append(...run.components.map(({ name, title, caption, png }) => el("figure", { class: "plot drawn", "data-plot": `components-${name}` }, el("figcaption", {}, title), el("img", { src: `data:image/png;base64,${png}`, alt: title }), el("p", { class: "muted" }, caption))));
}

// Seconds by part, one after the other; what the reader did in the background is not among them.
const PART_NAMES = { start_s: "start-up", waited_for_reading_s: "reading", prepare_s: "preparing", search_s: "search", average_s: "sums", references_s: "averages", write_s: "files", report_s: "report" };
function spent(timings) {
  const reading = timings.waited_for_reading_s, own = Object.entries(timings).filter(([key, value]) => /_s$/.test(key) && !/^total_s$|_per_s$/.test(key) && !(key === "read_s" && known(reading)) && known(value));
  const place = ([key]) => { const at = Object.keys(PART_NAMES).indexOf(key); return at < 0 ? 99 : at; };
  return own.map(([key, value]) => [key, key === "prepare_s" && known(reading) ? Math.max(0, value - reading) : value]).sort((a, b) => place(a) - place(b));
}
function buildProvenance() {
  const f = run.facts, host = byId("provenance"), timings = spent(f.timings || {}), longest = Math.max(...timings.map(([, value]) => value), 1e-9);
  const rows = (object) => el("table", {}, el("tbody", {}, Object.entries(object || {}).map(([key, value]) => el("tr", {}, el("td", { class: "muted" }, key), el("td", {}, value === null ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value))))));
  const panel = (id, title, ...content) => el("figure", { class: "plot", "data-plot": id }, el("figcaption", {}, title), ...content);
  const command = Array.isArray(f.command) ? f.command.map((word) => (/^[\w@%+=:,.\/-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`)).join(" ") : f.command;
  if (command) host.append(el("div", { class: "wide" }, panel("command", "Command", el("div", { class: "command" }, el("pre", {}, command), el("button", { type: "button", onclick: (event) => copy(command, event.currentTarget) }, "Copy")))));
  if (timings.length) host.append(panel("timings", "Time", el("div", { class: "bars" }, timings.flatMap(([key, value]) => [el("span", {}, PART_NAMES[key] ?? key.replace(/_s$/, "").replaceAll("_", " ")), el("i", { style: { width: `${100 * value / longest}%` } }), el("span", { class: "num" }, duration(value))]))));
  const machine = { device: f.device, "peak device memory": known(f.peak_device_memory_bytes) && f.peak_device_memory_bytes ? `${short(f.peak_device_memory_bytes / 2 ** 30)} GiB` : null, seed: f.seed, input: f.input?.path, ...f.versions };
  host.append(panel("machine", "Machine and versions", rows(Object.fromEntries(Object.entries({ program: [f.program, f.version].filter(Boolean).join(" "), ...machine }).filter(([, value]) => value !== null && value !== undefined && value !== "")))));
  if (f.options && Object.keys(f.options).length) host.append(panel("options", "Options", el("div", { class: "table-wrap", tabindex: 0, role: "region", "aria-label": "Options" }, rows(f.options))));
}
