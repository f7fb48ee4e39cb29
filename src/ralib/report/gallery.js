// The gallery of class averages: cards, order, brushing, keys, and the menu of a card.

const cards = [];
// A card always shows these; the figure it is sorted by comes on top of them.
const onCard = ["junk", "agreement", "stable"];
let order = [], sortedBy = { key: "members", down: true };

function label(item) {
  const parts = [`Class ${item.class}`, `${count(item.members)} members`];
  if (known(item.resolution)) parts.push(`${short(item.resolution)} ${resolutionUnit}`);
  if (known(item.score)) parts.push(`class score ${twoDigits(item.score)}`);
  return parts.join(", ");
}

// Green, amber, red by thirds of the class score: colour only repeats what the number says.
const grade = (value) => (value >= 0.67 ? "good" : value >= 0.34 ? "fair" : "poor");

function makeCard(k) {
  const item = run.classes[k], canvas = el("canvas", { class: "picture", width: 1, height: 1, "aria-hidden": "true" });
  const open = el("button", { type: "button", class: "open", tabindex: -1, "aria-label": `${label(item)}: open`, "aria-keyshortcuts": "Enter Space Shift+Home Shift+End", onclick: (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) pick(k, event.shiftKey); else openDetail(k);
  } }, canvas);
  const box = el("input", { type: "checkbox", "aria-label": `Keep class ${item.class}`, onchange: () => toggle(k, box.checked) });
  const extra = el("span", { class: "extra" }), some = el("div", { class: "partly", title: "The thresholds leave the other particles of this class out" });
  const score = known(item.score) && el("span", { class: `score ${grade(item.score)}`, title: `Class score. ${figureOf("score").about}` }, twoDigits(item.score));
  const shares = onCard.map(figureOf).filter((figure) => figure && known(item[figure.key]))
    .map(({ key, name, brief, about }) => el("span", { title: `${name}. ${about}` }, el("small", {}, brief), `${Math.round(100 * item[key])} %`));
  const card = el("article", { class: "card", "data-class": item.class, oncontextmenu: (event) => { event.preventDefault(); openMenu(k, event.clientX, event.clientY); } }, open,
    el("label", { class: "tick", title: (automaticText(item) && `Automatic selection: ${automaticText(item)}`) || null }, box, el("i")),
    el("span", { class: "badges" }, score, item.flag && el("span", { class: "flag" }, item.flag)),
    el("footer", {}, el("b", { title: "Members" }, count(item.members)), el("b", { title: "FRC resolution" }, known(item.resolution) ? `${short(item.resolution)} ${resolutionUnit}` : ""),
      el("span", {}, `#${item.class}`), extra,
      shares.length > 0 && el("div", { class: "shares" }, shares),
      item.verdict && el("div", { class: "verdict", title: item.verdict }, briefVerdict(item.verdict)), some));
  return { k, card, open, box, canvas, extra, some };
}

let anchor = null;
function pick(k, range) {
  if (range && anchor !== null) {
    const [from, to] = [order.indexOf(anchor), order.indexOf(k)].sort((a, b) => a - b);
    keepAlso(order.slice(from, to + 1));
  } else toggle(k);
  anchor = k;
}
const upTo = (k) => order.slice(0, order.indexOf(k) + 1);
const fromHere = (k) => order.slice(order.indexOf(k));

function sortedClasses({ key, down }) {
  const value = (k) => (known(run.classes[k][key]) ? (down ? -1 : 1) * run.classes[k][key] : Infinity);
  return everyClass().sort((a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : a - b));
}
// By default the better end comes first; the table may ask for the other.
function arrange(key, down = (figureOf(key)?.better ?? -1) > 0 || key === "median_defocus_A" || key === "mirror_fraction") {
  sortedBy = { key, down };
  order = sortedClasses(sortedBy);
  byId("gallery").append(...order.map((k) => cards[k].card));
  const figure = figureOf(key), seen = ["members", "resolution", "score", ...onCard];
  for (const { k, extra } of cards) extra.textContent = figure && !seen.includes(key) && known(run.classes[k][key]) ? `${figure.name.toLowerCase()} ${figure.text(run.classes[k][key])}` : "";
  cards.forEach((card) => { card.open.tabIndex = -1; });
  if (order.length) cards[order[0]].open.tabIndex = 0;
  if (byId("sort")) byId("sort").value = key;
  orderTable();
}

function moveFocus(event) {
  const at = order.findIndex((k) => cards[k].open === document.activeElement);
  if (at < 0) return;
  if (event.shiftKey && event.key === "Home") { event.preventDefault(); keepAlso(upTo(order[at])); return; }
  if (event.shiftKey && event.key === "End") { event.preventDefault(); keepAlso(fromHere(order[at])); return; }
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

// ---- the menu of a card: right button, or the context-menu key --------------------------------------------------
function menuItems(k) {
  const number = run.classes[k].class;
  return [
    [kept.has(k) ? `Leave class ${number} out` : `Keep class ${number}`, () => toggle(k)],
    ["Keep this one and all above it", () => keepAlso(upTo(k))], ["Keep this one and all below it", () => keepAlso(fromHere(k))],
    ["Leave this one and all above it out", () => keepAlso(upTo(k), false)], ["Leave this one and all below it out", () => keepAlso(fromHere(k), false)],
    ["Keep only this one", () => setKept([k])],
  ];
}
function openMenu(k, x, y) {
  const menu = byId("menu"), close = () => { menu.hidden = true; cards[k].open.focus({ preventScroll: true }); };
  menu.setAttribute("aria-label", `Class ${run.classes[k].class} in the order shown`);
  menu.replaceChildren(...menuItems(k).map(([text, action]) => el("button", { type: "button", role: "menuitem", tabindex: -1, onclick: () => { close(); action(); } }, text)));
  menu.hidden = false;
  const box = menu.getBoundingClientRect();
  menu.style.left = `${Math.max(6, Math.min(x, innerWidth - box.width - 6))}px`;
  menu.style.top = `${Math.max(6, Math.min(y, innerHeight - box.height - 6))}px`;
  menu.firstChild.focus();
  menu.onkeydown = (event) => {
    const items = [...menu.children], at = items.indexOf(document.activeElement), move = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape" || event.key === "Tab") { event.preventDefault(); close(); } else if (move) { event.preventDefault(); items[(at + move + items.length) % items.length].focus(); }
  };
}
addEventListener("pointerdown", (event) => { if (!event.target.closest("#menu")) byId("menu").hidden = true; });

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
      const inside = cards.filter(({ card }) => {
        const box = card.getBoundingClientRect();
        return box.left < area.right && box.right > area.left && box.top < area.bottom && box.bottom > area.top;
      });
      mark.remove();
      mark = null;
      // The click that ends a brush must not open a class.
      addEventListener("click", (click) => { click.stopPropagation(); click.preventDefault(); }, { capture: true, once: true });
      keepAlso(inside.map(({ k }) => k), !event.altKey);
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
  arrange("members");
  gallery.addEventListener("keydown", moveFocus);
  brushing(gallery);
  onSelection(() => cards.forEach(({ k, card, box, some }) => {
    box.checked = kept.has(k);
    card.classList.toggle("kept", box.checked);
    some.textContent = partly(k);
  }));
}
