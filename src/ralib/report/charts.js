// Small SVG charts: lines, scatter, bars, hexagonal bins. Each is a figure with a spoken summary and values under the pointer.

function ticks(low, high, wanted = 5) {
  const raw = (high - low) / wanted || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= raw * 0.999);
  const list = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-9; value += step) list.push(Math.abs(value) < step * 1e-9 ? 0 : value);
  return list;
}
// Labels of ticks with as many decimals as tell them apart.
function tickLabels(list) {
  const step = list.length > 1 ? Math.abs(list[1] - list[0]) : 1, large = Math.max(...list.map(Math.abs));
  if (large >= 1e6 || step < 1e-4) return (value) => (value ? value.toExponential(1) : "0");
  const digits = [0, 1, 2, 3, 4, 5].find((d) => Math.abs(step * 10 ** d - Math.round(step * 10 ** d)) < 1e-6) ?? 5;
  return (value) => value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}
const extent = (values) => values.reduce(([low, high], v) => (known(v) ? [Math.min(low, v), Math.max(high, v)] : [low, high]), [Infinity, -Infinity]);

// A figure whose drawing is remade when its width changes; `paint(svg, width)` fills an empty svg.
function figure({ id, title, summary, legend = [], caption }, paint) {
  const svg = el("svg", { role: "img", "aria-label": summary ? `${title}. ${summary}` : title });
  const node = el("figure", { class: "plot", "data-plot": id },
    el("figcaption", {}, el("span", {}, title),
      legend.length > 1 && el("span", { class: "legend" }, legend.map((item) => el("span", {}, el("i", { style: { background: item.color } }), item.name)))),
    svg, caption && el("p", { class: "caption" }, caption));
  let drawnAt = 0;
  // Before its place on the page is known nothing is drawn: asking for each width would lay out the page once a figure.
  node.repaint = () => {
    if (!drawnAt) return;
    svg.replaceChildren();
    paint(svg, drawnAt);
  };
  new ResizeObserver(([entry]) => {
    const width = Math.round(entry.contentRect.width);
    if (!width || Math.abs(width - drawnAt) <= 2) return;
    drawnAt = width;
    node.repaint();
  }).observe(svg);
  return node;
}

// Axes, grid and the two scales of a plot area.
function axes(svg, width, height, { x, y, xLabel, yLabel, xTicks, yTicks, whole, xText, yText }) {
  let yList = yTicks || ticks(y[0], y[1], 4), xList = xTicks || ticks(x[0], x[1], Math.max(3, Math.floor(width / 90)));
  if (whole) yList = yList.filter(Number.isInteger);
  xText ||= tickLabels(xList);
  yText ||= tickLabels(yList);
  const left = 16 + 6.4 * Math.max(...yList.map((value) => yText(value).length)) + (yLabel ? 14 : 0);
  const box = { left, right: width - 10, top: 8, bottom: height - (xLabel ? 36 : 22) };
  const at = {
    x: (value) => box.left + (value - x[0]) / (x[1] - x[0] || 1) * (box.right - box.left),
    y: (value) => box.bottom - (value - y[0]) / (y[1] - y[0] || 1) * (box.bottom - box.top), box,
  };
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  for (const value of yList) {
    svg.append(el("line", { class: "grid", x1: box.left, x2: box.right, y1: at.y(value), y2: at.y(value) }),
      el("text", { x: box.left - 6, y: at.y(value) + 3.5, "text-anchor": "end" }, yText(value)));
  }
  for (const value of xList) svg.append(el("text", { x: at.x(value), y: box.bottom + 15, "text-anchor": "middle" }, xText(value)));
  svg.append(el("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }));
  if (xLabel) svg.append(el("text", { x: (box.left + box.right) / 2, y: height - 5, "text-anchor": "middle" }, xLabel));
  if (yLabel) svg.append(el("text", { x: 0, y: 0, transform: `translate(10 ${(box.top + box.bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, yLabel));
  return at;
}

function pathOf(xs, ys, at) {
  let path = "", pen = "M";
  for (let i = 0; i < xs.length; i++) {
    if (!known(ys[i])) { pen = "M"; continue; }
    const y = Math.min(Math.max(at.y(ys[i]), at.box.top), at.box.bottom); // beyond a fixed range: along its rim
    path += `${pen}${at.x(xs[i]).toFixed(1)} ${y.toFixed(1)}`;
    pen = "L";
  }
  return path;
}

// series: [{name, x, y, color, faint, dots}]; the pointer reads the named ones at the nearest x.
function lineChart(options) {
  const { series, height = 200, marks = [], xName = "" } = options;
  const named = series.filter((item) => item.name);
  return figure({ legend: named, ...options }, (svg, width) => {
    const x = options.xRange || extent(series.flatMap((item) => item.x));
    let y = options.yRange || extent([...series.flatMap((item) => item.y), ...marks.map((mark) => mark.y)]);
    if (!options.yRange) {
      const pad = (y[1] - y[0]) * 0.08 || Math.abs(y[0]) * 0.1 || 1;
      y = [y[0] >= 0 && y[0] - pad < 0 ? 0 : y[0] - pad, y[1] + pad];
    }
    const at = axes(svg, width, height, { ...options, x: x[0] === x[1] ? [x[0] - 1, x[1] + 1] : x, y });
    for (const mark of marks) {
      svg.append(el("line", { class: "cursor", x1: at.box.left, x2: at.box.right, y1: at.y(mark.y), y2: at.y(mark.y) }),
        el("text", { x: at.box.right, y: at.y(mark.y) - 4, "text-anchor": "end" }, mark.name));
    }
    for (const item of series) {
      svg.append(el("path", { d: pathOf(item.x, item.y, at), fill: "none", stroke: item.color, "stroke-width": item.faint ? 1 : 2, "stroke-opacity": item.faint || 1, "stroke-linejoin": "round", "stroke-linecap": "round" }));
      if (item.dots || item.x.length === 1) item.x.forEach((value, i) => known(item.y[i]) && svg.append(el("circle", { cx: at.x(value), cy: at.y(item.y[i]), r: 2.6, fill: item.color })));
    }
    readOut(svg, width, at, named, xName, options.xRead || options.xText || short);
  });
}

function readOut(svg, width, at, named, xName, xText) {
  if (!named.length) return;
  const cursor = el("line", { class: "cursor", y1: at.box.top, y2: at.box.bottom, visibility: "hidden" });
  svg.append(cursor);
  svg.onpointermove = (event) => {
    const px = (event.clientX - svg.getBoundingClientRect().left) * width / svg.clientWidth, xs = named[0].x;
    let best = 0;
    xs.forEach((value, i) => { if (Math.abs(at.x(value) - px) < Math.abs(at.x(xs[best]) - px)) best = i; });
    cursor.setAttribute("x1", at.x(xs[best])); cursor.setAttribute("x2", at.x(xs[best])); cursor.setAttribute("visibility", "visible");
    showTip(event.clientX, event.clientY, el("b", {}, `${xName} ${xText(xs[best])}`.trim()),
      ...named.map((item) => el("div", {}, el("i", { style: { background: item.color } }), `${item.name} ${short(item.y[best])}`)));
  };
  svg.onpointerleave = () => { cursor.setAttribute("visibility", "hidden"); hideTip(); };
}

// Bars over bin edges.
function histogram(options) {
  const { edges, color = "var(--c1)", height = 200, unit = "" } = options;
  return figure(options, (svg, width) => {
    const counts = Array.from(options.counts()), sum = counts.reduce((a, b) => a + b, 0);
    const at = axes(svg, width, height, { x: [edges[0], edges[edges.length - 1]], y: [0, Math.max(...counts, 1) * 1.05], whole: true, xLabel: options.xLabel, xTicks: options.xTicks, xText: options.xText });
    counts.forEach((value, i) => {
      const left = at.x(edges[i]), right = at.x(edges[i + 1]);
      const bar = el("rect", { x: left + 0.5, width: Math.max(0.8, right - left - 1), y: at.y(value), height: at.box.bottom - at.y(value), fill: color, rx: Math.min(2, (right - left) / 4) });
      bar.onpointermove = (event) => showTip(event.clientX, event.clientY, el("b", {}, `${short(edges[i])} to ${short(edges[i + 1])} ${unit}`), el("div", {}, `${count(value)} particles, ${percent(value, sum)}`));
      bar.onpointerleave = hideTip;
      svg.append(bar);
    });
  });
}

// points: [{x, y, r, color, tip, open}].
function scatter(options) {
  const { points, height = 260 } = options;
  return figure(options, (svg, width) => {
    const x = extent(points.map((p) => p.x)), y = extent(points.map((p) => p.y)), pad = (range) => (range[1] - range[0]) * 0.06 || 1;
    const at = axes(svg, width, height, { ...options, x: [Math.max(0, x[0] - pad(x)), x[1] + pad(x)], y: [Math.max(0, y[0] - pad(y)), y[1] + pad(y)] });
    for (const point of points) {
      svg.append(el("circle", { cx: at.x(point.x), cy: at.y(point.y), r: 4, fill: point.color(), "fill-opacity": 0.75, stroke: "var(--card)", style: { cursor: "pointer" }, onclick: point.open, onpointerleave: hideTip,
        onpointermove: (event) => showTip(event.clientX, event.clientY, ...point.tip()) }));
    }
  });
}

const viridis = ["#440154", "#3b528b", "#21918c", "#5ec962", "#fde725"];
function ramp(stops, t) {
  const place = Math.min(Math.max(t, 0), 1) * (stops.length - 1), i = Math.min(Math.floor(place), stops.length - 2), part = place - i;
  const channel = (hex, c) => parseInt(hex.slice(1 + 2 * c, 3 + 2 * c), 16);
  return [0, 1, 2].map((c) => Math.round(channel(stops[i], c) * (1 - part) + channel(stops[i + 1], c) * part));
}

// Counts of two quantities in hexagonal bins, and of each of them alone at the sides.
function hexagonChart(map, { id, scope, most }) {
  const { title, x, y, size } = map, span = (side) => [side.edges[0], side.edges[side.edges.length - 1]], strip = 34;
  const name = (side) => `${side.label} (${side.unit})`, list = (side) => (side.unit === "°" ? [-180, -90, 0, 90, 180].filter((value) => value >= side.edges[0]) : undefined);
  return figure({ id, title, summary: `${name(x)} across, ${name(y)} upwards, in hexagonal bins` }, (svg, width) => {
    const counts = summed(map.counts, scope()), sum = counts.reduce((a, b) => a + b, 0), highest = Math.max(...counts, 1);
    const side = Math.min(width, most), plot = side - strip, group = el("g", { transform: `translate(${(width - side) / 2} ${strip})` });
    svg.append(group);
    const at = axes(group, plot, plot, { x: span(x), y: span(y), xLabel: name(x), yLabel: name(y), xTicks: list(x), yTicks: list(y) });
    svg.setAttribute("viewBox", `0 0 ${width} ${side}`);
    const explained = (node, ...lines) => {
      node.onpointermove = (event) => showTip(event.clientX, event.clientY, ...lines);
      node.onpointerleave = hideTip;
      return node;
    };
    const particles = (value) => el("div", {}, `${count(value)} particles, ${percent(value, sum)}`);
    const wide = at.x(size[0]) - at.x(0), tall = at.y(0) - at.y(size[1]), corners = [[0.5, -1], [0.5, 1], [0, 2], [-0.5, 1], [-0.5, -1], [0, -2]];
    map.centre.forEach(([u, v], i) => {
      if (!counts[i]) return;
      const d = `M${corners.map(([right, up]) => `${(at.x(u) + right * wide).toFixed(2)} ${(at.y(v) - up * tall / 6).toFixed(2)}`).join("L")}Z`;
      group.append(explained(el("path", { d, fill: "var(--c1)", "fill-opacity": (0.08 + 0.92 * Math.sqrt(counts[i] / highest)).toFixed(3) }), el("b", {}, `${x.label} ${short(u)} ${x.unit}, ${y.label} ${short(v)} ${y.unit}`), particles(counts[i])));
    });
    for (const [at0, item, across] of [[at.x, x, true], [at.y, y, false]]) {
      const bars = summed(item.counts, scope()), top = Math.max(...bars, 1);
      bars.forEach((value, i) => {
        const from = at0(item.edges[i]), to = at0(item.edges[i + 1]), long = (strip - 6) * value / top, thick = Math.max(0.8, Math.abs(to - from) - 0.5);
        const place = across ? { x: from, y: at.box.top - 3 - long, width: thick, height: long } : { x: at.box.right + 3, y: to, width: long, height: thick };
        group.append(explained(el("rect", { ...place, fill: "var(--c1)", "fill-opacity": 0.75 }), el("b", {}, `${item.label} ${short(item.edges[i])} to ${short(item.edges[i + 1])} ${item.unit}`), particles(value)));
      });
    }
    if (x.edges[0] < 0 && y.edges[0] < 0) group.append(el("line", { class: "cursor", x1: at.x(0), x2: at.x(0), y1: at.box.top, y2: at.box.bottom }), el("line", { class: "cursor", x1: at.box.left, x2: at.box.right, y1: at.y(0), y2: at.y(0) }));
  });
}
