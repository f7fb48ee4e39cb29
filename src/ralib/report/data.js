// The run's data, the picture sheets, and the few helpers every other part uses.
// Text from the run reaches the page only through textContent (see `el`): markup in a label stays text.

const started = performance.now();
const run = JSON.parse(document.getElementById("ralib-data").textContent);
const byId = (id) => document.getElementById(id);

function el(tag, attributes = {}, ...children) {
  const node = tag === "svg" || el.svg.has(tag)
    ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "style") Object.assign(node.style, value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}
el.svg = new Set(["g", "path", "line", "rect", "circle", "text", "polyline", "title", "desc"]);

// A function called for each of some million characters takes seconds that nobody has.
function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}
function unpack(packed) {
  if (!packed) return null;
  const bytes = bytesOf(packed.base64);
  const kind = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, f4: Float32Array }[packed.dtype];
  return { shape: packed.shape, values: new kind(bytes.buffer) };
}

const known = (value) => value !== null && value !== undefined && Number.isFinite(value);
const wholeNumber = new Intl.NumberFormat("en"); // made once: toLocaleString makes one a call
const count = (value) => wholeNumber.format(Math.round(value));
const percent = (part, whole) => `${whole ? (100 * part / whole).toFixed(part === whole || part === 0 ? 0 : 1) : 0} %`;

// Three significant digits, without trailing noise: 0.00123, 1.23, 123, 12,300.
function short(value) {
  if (!known(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1000) return size >= 1e7 ? value.toExponential(1) : count(value);
  if (size !== 0 && size < 0.001) return value.toExponential(1);
  return String(Number(value.toPrecision(3)));
}
const withUnit = (value, unit) => (known(value) ? `${short(value)}${unit === "°" ? "" : " "}${unit}` : "–");
function duration(seconds) {
  if (!known(seconds)) return "–";
  if (seconds < 60) return `${short(seconds)} s`;
  const whole = Math.round(seconds), minutes = Math.round(seconds / 60);
  if (whole < 600) return whole % 60 ? `${Math.floor(whole / 60)} min ${whole % 60} s` : `${whole / 60} min`;
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

// ---- pictures -------------------------------------------------------------------------------------------------
const decoded = new Map();
function sheetImage(sheet) {
  if (!decoded.has(sheet.id)) {
    const image = new Image();
    image.src = `data:image/webp;base64,${byId(sheet.id).textContent}`;
    decoded.set(sheet.id, image.decode().then(() => image));
  }
  return decoded.get(sheet.id);
}

// Draws picture `index` of a list of sheets to fill `canvas`; the canvas gets that picture's own number of pixels.
async function draw(canvas, sheets, index) {
  const sheet = sheets.find((candidate) => index >= candidate.first && index < candidate.first + candidate.count);
  if (!sheet) return;
  const wanted = `${sheet.id}/${index}`;
  canvas.dataset.picture = wanted;
  const image = await sheetImage(sheet);
  if (canvas.dataset.picture !== wanted) return; // another picture was asked for while this one was decoded
  const at = index - sheet.first, { size, stride, columns } = sheet;
  canvas.width = canvas.height = size;
  canvas.getContext("2d").drawImage(image, (at % columns) * stride, Math.floor(at / columns) * stride, size, size, 0, 0, size, size);
  canvas.dataset.drawn = "yes";
}
function picture(sheets, index, label) {
  const name = label ? { role: "img", "aria-label": label } : { "aria-hidden": "true" }; // one whose text stands beside it
  const canvas = el("canvas", { class: "picture", ...name, width: 1, height: 1 });
  draw(canvas, sheets, index);
  return canvas;
}

// ---- the classes, once unpacked -------------------------------------------------------------------------------
const K = run.classes.length;
const members = run.classes.map((item) => item.members);
const median = (values) => { const sorted = values.filter(known).sort((a, b) => a - b), n = sorted.length; return n ? (sorted[(n - 1) >> 1] + sorted[n >> 1]) / 2 : null; };
// Resolution in Å, or in pixels where the run knows no pixel size.
const resolutionUnit = run.classes.some((item) => known(item.resolution_A)) || run.pixel_size_A ? "Å" : "px";
for (const item of run.classes) {
  // Half averages that part before two pixels of the transform have no resolution: the terminal shows none either.
  item.resolution = item.resolution_px > run.box_px / 2 ? null : resolutionUnit === "Å" ? item.resolution_A : item.resolution_px;
  item.agreement = item.reproducibility;
  item.stable = item.stable_members ?? item.stability;
}
for (const item of run.iterations) {
  item.resolution = resolutionUnit === "Å" ? item.resolution_A : item.resolution_px;
  item.median_resolution = median([].concat(item.resolution ?? []));
}
// The run's folder as its own command names it, for commands to copy.
const runFolder = [].concat(run.facts.command ?? []).find((word) => word.replace(/\/+$/, "").split("/").pop() === run.title) ?? "RUN";
const runWord = /^[\w./+-]+$/.test(runFolder) ? runFolder : `'${runFolder.replaceAll("'", "'\\''")}'`;
const total = members.reduce((sum, value) => sum + value, 0);
// Figures of each particle (fit, posterior, junk ...), one array a class: the run's own order within a class.
const particleFigures = Object.fromEntries(Object.entries(run.particle_figures || {}).map(([name, packed]) => {
  const all = unpack(packed).values;
  let start = 0;
  return [name, members.map((size) => all.subarray(start, (start += size)))];
}));
const frc = run.frc && { x: run.frc.frequency_per_px, ...unpack(run.frc.values) };
// Ring 0 is one number, the mean grey value: no correlation to show.
const frcOf = (k) => Array.from(frc.values.subarray(k * frc.shape[1], (k + 1) * frc.shape[1]), (value, i) => (i ? value : null));
const histograms = Object.fromEntries(Object.entries(run.histograms).map(([name, item]) => [name, { ...item, counts: unpack(item.counts) }]));
const hexagonMaps = Object.entries(run.hexagon_maps).map(([name, map]) => ({
  ...map, name, counts: unpack(map.counts), x: { ...map.x, counts: unpack(map.x.counts) }, y: { ...map.y, counts: unpack(map.y.counts) },
}));

// Sum of the rows of a (k, ...) count array over the classes in `keep` (all of them when it is null).
function summed(counts, keep) {
  const width = counts.values.length / counts.shape[0], sum = new Float64Array(width);
  for (let k = 0; k < counts.shape[0]; k++) {
    if (keep && !keep.has(k)) continue;
    for (let i = 0; i < width; i++) sum[i] += counts.values[k * width + i];
  }
  return sum;
}

// ---- the tooltip ----------------------------------------------------------------------------------------------
const tip = byId("tip");
function showTip(x, y, ...children) {
  tip.replaceChildren(...children);
  tip.hidden = false;
  const box = tip.getBoundingClientRect(), gap = 14;
  tip.style.left = `${Math.max(6, x + gap + box.width > innerWidth ? x - gap - box.width : x + gap)}px`;
  tip.style.top = `${Math.max(6, Math.min(y + gap, innerHeight - box.height - 6))}px`;
}
const hideTip = () => { tip.hidden = true; };
// Light or dark: the reader's choice where there is one, else the system's.
const darkSystem = matchMedia("(prefers-color-scheme: dark)");
const remembered = (key) => { try { return localStorage.getItem(key); } catch { return null; } };
const remember = (key, value) => { try { localStorage.setItem(key, value); } catch { /* private mode: forget */ } };
const isDark = () => document.documentElement.dataset.theme === "dark";
function setTheme(theme, chosen = true) {
  document.documentElement.dataset.theme = theme;
  if (chosen) remember("ralib-theme", theme);
  document.dispatchEvent(new Event("ralib-theme"));
}
setTheme(remembered("ralib-theme") || (darkSystem.matches ? "dark" : "light"), false);
darkSystem.addEventListener("change", () => { if (!remembered("ralib-theme")) setTheme(darkSystem.matches ? "dark" : "light", false); });

async function copy(text, button) {
  const before = button.textContent;
  try { await navigator.clipboard.writeText(text); button.textContent = "Copied"; }
  catch { button.textContent = "Select it and copy"; }
  setTimeout(() => { button.textContent = before; }, 1600);
}
function save(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = el("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
