// The gallery of class averages: sorting, size, thresholds, brushing, keys.

const cards = [];
// What one can sort by: name, the figure, which end comes first, and how a card then shows that figure.
const orders = {
  size: ["Size", "members", -1], resolution: ["Resolution", "resolution", 1],
  stability: ["Stability", "stability", -1, (value) => `${percent(value, 1)} stable`], score: ["Mean score", "mean_score", -1, (value) => `score ${short(value)}`],
  shift: ["Shift spread", "shift_spread_px", 1, (value) => `shift ${short(value)} px`], inplane: ["In-plane spread", "inplane_spread_deg", 1, (value) => `spread ${short(value)}°`],
  number: ["Number", "class", 1],
};
let order = [];

function label(item) {
  const parts = [`Class ${item.class}`, `${count(item.members)} members`];
  if (known(item.resolution)) parts.push(`${short(item.resolution)} ${resolutionUnit}`);
  return parts.join(", ");
}

function makeCard(k) {
  const item = run.classes[k], canvas = el("canvas", { class: "picture", width: 1, height: 1, "aria-hidden": "true" });
  const open = el("button", { type: "button", class: "open", tabindex: -1, "aria-label": `${label(item)}: open`, "aria-keyshortcuts": "Enter Space", onclick: (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) pick(k, event.shiftKey); else openDetail(k);
  } }, canvas);
  const box = el("input", { type: "checkbox", "aria-label": `Keep class ${item.class}`, onchange: () => toggle(k, box.checked) });
  const extra = el("span");
  const card = el("article", { class: "card", "data-class": item.class }, open, el("label", { class: "tick" }, box, el("i")),
    item.flag && el("span", { class: "flag" }, item.flag),
    el("footer", {}, el("b", { title: "members" }, count(item.members)), el("b", { title: "FRC resolution" }, known(item.resolution) ? `${short(item.resolution)} ${resolutionUnit}` : ""), el("span", {}, `#${item.class}`), extra));
  return { k, card, open, box, canvas, extra };
}

let anchor = null;
function pick(k, range) {
  if (range && anchor !== null) {
    const [from, to] = [order.indexOf(anchor), order.indexOf(k)].sort((a, b) => a - b);
    for (const other of order.slice(from, to + 1)) kept.add(other);
    changed();
  } else toggle(k);
  anchor = k;
}

function arrange(name) {
  const [, key, sign, text] = orders[name], value = (k) => (known(run.classes[k][key]) ? sign * run.classes[k][key] : Infinity);
  order = [...Array(K).keys()].sort((a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : a - b));
  byId("gallery").append(...order.map((k) => cards[k].card));
  for (const { k, extra } of cards) extra.textContent = text && known(run.classes[k][key]) ? text(run.classes[k][key]) : "";
  cards.forEach((card) => { card.open.tabIndex = -1; });
  if (order.length) cards[order[0]].open.tabIndex = 0;
}

function buildToolbar() {
  const sort = el("select", { id: "sort", "aria-label": "Sort classes", onchange: () => arrange(sort.value) },
    Object.entries(orders).filter(([, [, key]]) => run.classes.some((item) => known(item[key]))).map(([name, [text]]) => el("option", { value: name }, text)));
  const size = el("input", { type: "range", min: 64, max: 260, step: 4, value: innerWidth < 720 ? 96 : 116, "aria-label": "Size of the averages", oninput: () => document.documentElement.style.setProperty("--tile", `${size.value}px`) });
  const contrast = el("button", { type: "button", "aria-pressed": "false", onclick: () => {
    contrast.setAttribute("aria-pressed", document.body.classList.toggle("inverted"));
  } }, "Invert contrast");
  const limit = (key, text, hint, step) => el("label", {}, text, el("input", { type: "number", id: `limit-${key}`, step, min: key === "score" ? null : 0, placeholder: hint, oninput: (event) => {
    limits[key] = event.target.value === "" ? null : Number(event.target.value);
    applyLimits();
  } }));
  const group = el("span", { class: "group", role: "group", "aria-label": "Keep" }, el("span", {}, "Keep"), el("button", { type: "button", id: "keep-all", onclick: () => setKept(Array(K).keys()) }, "all"), limit("members", "members ≥", "any", 1));
  if (run.classes.some((item) => known(item.resolution))) group.append(limit("resolution", `${resolutionUnit} ≤`, "any", 0.1));
  if (scores) group.append(limit("score", "score ≥", "any", "any"));
  byId("toolbar").append(el("label", {}, "Sort by", sort), el("label", { class: "size" }, "Size", size), contrast, group);
}

function moveFocus(event) {
  const at = order.findIndex((k) => cards[k].open === document.activeElement);
  if (at < 0) return;
  const columns = getComputedStyle(byId("gallery")).gridTemplateColumns.split(" ").length;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -at, End: order.length - 1 - at }[event.key];
  if (event.key === " ") { event.preventDefault(); pick(order[at], event.shiftKey); return; }
  if (step === undefined) return;
  event.preventDefault();
  const next = cards[order[Math.min(Math.max(at + step, 0), order.length - 1)]];
  cards[order[at]].open.tabIndex = -1;
  next.open.tabIndex = 0;
  next.open.focus();
}

// Dragging the mouse over cards keeps them; with Alt it lets them go. On touch screens a drag scrolls, as it should.
function brushing(gallery) {
  let start = null, mark = null;
  const place = (event) => { const frame = gallery.getBoundingClientRect(); return [event.clientX - frame.left, event.clientY - frame.top]; };
  gallery.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "mouse" && event.button === 0 && !event.target.closest(".tick")) start = place(event);
  });
  addEventListener("pointermove", (event) => {
    if (!start) return;
    const [x, y] = place(event);
    if (!mark && Math.hypot(x - start[0], y - start[1]) < 8) return;
    if (!mark) gallery.append(mark = el("div", { class: "brush" }));
    Object.assign(mark.style, { left: `${Math.min(x, start[0])}px`, top: `${Math.min(y, start[1])}px`, width: `${Math.abs(x - start[0])}px`, height: `${Math.abs(y - start[1])}px` });
  });
  addEventListener("pointerup", (event) => {
    if (mark) {
      const area = mark.getBoundingClientRect();
      for (const { k, card } of cards) {
        const box = card.getBoundingClientRect();
        if (box.left < area.right && box.right > area.left && box.top < area.bottom && box.bottom > area.top) { if (event.altKey) kept.delete(k); else kept.add(k); }
      }
      mark.remove();
      mark = null;
      // The click that ends a brush must not open a class.
      addEventListener("click", (click) => { click.stopPropagation(); click.preventDefault(); }, { capture: true, once: true });
      changed();
    }
    start = null;
  });
}

function buildGallery() {
  const gallery = byId("gallery");
  for (let k = 0; k < K; k++) cards.push(makeCard(k));
  const show = (card) => { if (!card.canvas.dataset.picture) draw(card.canvas, run.averages, card.k); };
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { show(cards[entry.target.dataset.class - 1]); watcher.unobserve(entry.target); }
  }, { rootMargin: "600px" });
  cards.forEach((card) => watcher.observe(card.card));
  addEventListener("beforeprint", () => cards.forEach(show));
  if (!K) gallery.append(el("p", { class: "empty" }, "This run has no classes."));
  buildToolbar();
  arrange("size");
  gallery.addEventListener("keydown", moveFocus);
  brushing(gallery);
  onSelection(() => cards.forEach(({ k, card, box }) => { box.checked = kept.has(k); card.classList.toggle("kept", box.checked); }));
}
