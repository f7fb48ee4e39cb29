// Above the gallery: order, how the pictures look, what is kept, thresholds, and files to take away.

const look = { contrast: 1, lowpass_A: 0 };
// Finest detail that can be shown: two pixels. Without a pixel size lengths are in pixels.
const pixelLength = run.pixel_size_A || 1, lengthUnit = run.pixel_size_A ? "Å" : "px";

// A Gaussian blur whose transfer falls to one half at the length asked for; in percent of the picture's side.
const blurPercent = (length) => 100 * Math.sqrt(Math.log(2) / 2) / Math.PI * length / (run.box_px * pixelLength);
function setLook(changes) {
  Object.assign(look, changes);
  const style = document.documentElement.style;
  style.setProperty("--contrast", look.contrast);
  style.setProperty("--blur", look.lowpass_A ? blurPercent(look.lowpass_A).toFixed(3) : 0);
  document.body.classList.toggle("looked", look.contrast !== 1 || look.lowpass_A > 0);
}

function slider(id, name, { min, max, value, step, text, apply }) {
  const shown = el("output", { for: id }, text(value));
  const input = el("input", { type: "range", id, min, max, step, value, "aria-label": name, "aria-valuetext": text(value), oninput: () => {
    apply(Number(input.value));
    shown.textContent = text(Number(input.value));
    input.setAttribute("aria-valuetext", shown.textContent);
  } });
  return el("label", { class: "slider" }, name.split(" ")[0], input, shown);
}

function lookGroup() {
  const start = innerWidth < 720 ? 96 : innerWidth >= 2400 ? 172 : 128, most = Math.min(60, run.box_px / 4) * pixelLength;
  document.documentElement.style.setProperty("--tile", `${start}px`);
  const inverse = el("button", { type: "button", id: "invert-contrast", "aria-pressed": "false", onclick: () => inverse.setAttribute("aria-pressed", document.body.classList.toggle("inverted")) }, "Invert contrast");
  const theme = el("button", { type: "button", id: "theme", onclick: () => setTheme(isDark() ? "light" : "dark") }), name = () => { theme.textContent = isDark() ? "Light page" : "Dark page"; };
  document.addEventListener("ralib-theme", name);
  name();
  return el("div", { class: "group", role: "group", "aria-label": "Look" },
    slider("size", "Size of the averages", { min: 64, max: 320, step: 4, value: start, text: (v) => `${v} px`, apply: (v) => document.documentElement.style.setProperty("--tile", `${v}px`) }),
    slider("contrast", "Contrast of the averages", { min: 0.5, max: 3, step: 0.05, value: 1, text: (v) => `× ${v.toFixed(2)}`, apply: (v) => setLook({ contrast: v }) }),
    slider("lowpass", "Low-pass filter", { min: 0, max: Number(most.toPrecision(2)), step: Number((most / 60).toPrecision(1)), value: 0, text: (v) => (v ? `${short(v)} ${lengthUnit}` : "off"), apply: (v) => setLook({ lowpass_A: v }) }),
    inverse, theme);
}

function keepGroup() {
  const button = (id, text, action, more = {}) => el("button", { type: "button", id, onclick: action, ...more }, text);
  const back = button("undo", "Undo", undo, { "aria-keyshortcuts": "Control+Z", title: "Ctrl+Z" }), again = button("redo", "Redo", redo, { "aria-keyshortcuts": "Control+Shift+Z", title: "Ctrl+Shift+Z" });
  onSelection(() => { back.disabled = !past.length; again.disabled = !future.length; });
  const automatic = hasAutomatic && button("keep-automatic", "automatic", () => change(keepAutomatic), { title: "What the run itself would keep; the tick of each class says why" });
  return el("div", { class: "group", role: "group", "aria-label": "Keep" }, el("span", {}, "Keep"), automatic,
    button("keep-all", "all", () => setKept(everyClass())), button("keep-none", "none", () => setKept([])), button("invert", "inverse", invert), back, again);
}

// One number field a figure: of classes (it ticks those that meet all), and of particles (it thins the ticked ones).
function thresholds() {
  const fields = [];
  const field = (kind, { key, name, about, unit }, sense, step) => {
    const input = el("input", { type: "number", id: `limit-${kind === "classes" ? key : `particle-${key}`}`, step, placeholder: "any", oninput: () => setLimit(kind, key, input.value === "" ? null : Number(input.value)) });
    fields.push([kind, key, input]);
    return el("label", { title: about }, el("span", {}, `${name}${unit ? ` (${unit})` : ""} ${sense}`), input);
  };
  onSelection(() => fields.forEach(([kind, key, input]) => {
    const value = limits[kind][key];
    if (document.activeElement !== input || value === undefined) input.value = value ?? "";
  }));
  const ofClasses = figures.filter(({ better }) => better).map((item) => field("classes", item, item.better > 0 ? "≥" : "≤", "any"));
  const ofParticles = particleLimits.map((item) => field("particles", item, item.sense, "any"));
  return el("details", { class: "thresholds", id: "thresholds" }, el("summary", {}, "Thresholds"),
    el("fieldset", {}, el("legend", {}, "Tick the classes with"), ofClasses),
    ofParticles.length > 0 && el("fieldset", {}, el("legend", {}, "Of their particles keep those with"), ofParticles));
}

function viewSwitch() {
  const gallery = byId("gallery"), table = byId("class-table"), buttons = [["gallery", "Gallery"], ["table", "Table"]].map(([name, text]) => el("button", { type: "button", id: `view-${name}`, "aria-pressed": String(name === "gallery"), onclick: () => {
    gallery.hidden = name !== "gallery";
    table.hidden = name !== "table";
    if (name === "table") fillTable();
    buttons.forEach((button) => button.setAttribute("aria-pressed", button.id === `view-${name}`));
  } }, text));
  return el("span", { class: "switch", role: "group", "aria-label": "Show classes as" }, buttons);
}

function buildToolbar() {
  const sort = el("select", { id: "sort", onchange: () => arrange(sort.value) }, [...figures, { key: "class", name: "Number" }].map(({ key, name }) => el("option", { value: key }, name)));
  const button = (id, text, action, title) => el("button", { type: "button", id, onclick: action, title }, text);
  const take = el("div", { class: "group", role: "group", "aria-label": "Export" }, el("span", {}, "Export"), button("export-csv", "table", exportTable, "All figures of all classes as CSV"),
    button("export-png", "gallery", exportGallery, "The averages with their labels as one PNG picture"), button("print", "print", () => window.print(), "The page with the selection's summary, on paper or as PDF"));
  byId("toolbar").append(el("div", { class: "group" }, el("label", {}, "Sort by", sort), viewSwitch()), lookGroup(), keepGroup(), take, thresholds());
}
