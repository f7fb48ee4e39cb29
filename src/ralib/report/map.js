// The plane of the first two principal components: particles as points, class averages as marks or as pictures.
// Drawn by hand on a canvas: at most 10,000 points are shown, which a 2D context draws in some milliseconds. A WebGL
// library (regl-scatterplot, deck.gl) would add 0.2 to 1 MB to every page, and fails where a browser has no GPU, as on many
// login nodes and in a virtual machine.

function buildMap() {
  const e = run.embedding, host = byId("embedding");
  if (!e) { byId("map").remove(); return; }
  const xy = unpack(e.xy).values, owner = unpack(e.class_index).values, rows = unpack(e.row).values, n = owner.length;
  const values = { fit: unpack(e.score).values, defocus: unpack(e.defocus_A).values };
  const centres = unpack(e.class_xy).values, tsne = unpack(e.class_tsne_xy)?.values;
  const canvas = el("canvas", { id: "map-canvas", tabindex: 0, role: "img", "aria-label": `Map of ${count(n)} particles and ${count(K)} classes; the gallery lists the same classes` });
  const scale = el("div", { class: "scale" }), pen = canvas.getContext("2d");
  const select = (id, text, list) => el("label", {}, text, el("select", { id, onchange: () => paint() }, list.map(([value, name]) => el("option", { value }, name))));
  const colours = [["class", "Class"], ["fit", "Fit"], ["defocus", "Defocus"]].filter(([name]) => name === "class" || values[name].some(Number.isFinite));
  const views = [["points", `Particles (${count(n)})`], ["averages", "Class averages"], ...(tsne ? [["tsne", "Class averages, t-SNE"]] : [])];
  const reset = el("button", { type: "button", onclick: () => { zoom = 1; pan = [0, 0]; paint(); } }, "Reset view");
  const lasso = el("button", { type: "button", id: "map-lasso", "aria-pressed": "false", title: "Draw around class averages, or around particles: classes with most of theirs inside are kept (with Alt: left out)", onclick: () => { lasso.setAttribute("aria-pressed", !lassoing()); canvas.style.touchAction = lassoing() ? "none" : ""; } }, "Lasso");
  const lassoing = () => lasso.getAttribute("aria-pressed") === "true";
  host.append(el("div", { class: "toolbar" }, select("map-view", "Show", views), select("map-colour", "Colour by", colours), el("button", { type: "button", "aria-label": "Zoom in", class: "icon", onclick: () => zoomAt(1.5) }, "+"), el("button", { type: "button", "aria-label": "Zoom out", class: "icon", onclick: () => zoomAt(1 / 1.5) }, "−"), reset, lasso),
    el("div", { class: "map-frame", "data-plot": "embedding" }, canvas, scale));
  let zoom = 1, pan = [0, 0], width = 0, height = 0, averages = null, places = [], reach = 14, frame = null, outline = null;

  // Golden-angle hues keep neighbouring class numbers apart.
  const hue = (k) => `oklch(${isDark() ? 0.76 : 0.6} 0.15 ${(k * 137.508) % 360})`;
  const limits = (list) => { const finite = Array.from(list).filter(Number.isFinite).sort((a, b) => a - b); return [finite[Math.floor(finite.length * 0.01)], finite[Math.floor((finite.length - 1) * 0.99)]]; };
  const spread = (list) => {
    const box = [[Infinity, -Infinity], [Infinity, -Infinity]];
    list.forEach((value, i) => { const side = box[i % 2]; if (Number.isFinite(value)) { side[0] = Math.min(side[0], value); side[1] = Math.max(side[1], value); } });
    return box;
  };
  const boxes = { points: spread([...xy, ...centres]), averages: spread([...centres]), tsne: tsne && spread([...tsne]) };
  const view = () => byId("map-view").value;
  const project = (x, y) => {
    const [bx, by] = boxes[view()], size = (view() === "points" ? 0.93 : 0.84) * zoom;
    return [width / 2 + pan[0] + ((x - bx[0]) / (bx[1] - bx[0] || 1) - 0.5) * width * size, height / 2 + pan[1] - ((y - by[0]) / (by[1] - by[0] || 1) - 0.5) * height * size];
  };

  function paint() {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(paintNow);
  }
  function paintNow() {
    const ratio = devicePixelRatio || 1;
    width = canvas.clientWidth; height = canvas.clientHeight;
    if (!width) return;
    canvas.width = width * ratio; canvas.height = height * ratio;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    if (view() === "points") paintPoints(); else paintAverages(view() === "tsne" ? tsne : centres);
    if (outline) paintOutline();
    paintScale();
  }
  function paintOutline() {
    pen.beginPath();
    for (const [x, y] of outline) pen.lineTo(x, y);
    pen.closePath();
    pen.strokeStyle = getComputedStyle(canvas).getPropertyValue("--accent"); pen.lineWidth = 1.5; pen.setLineDash([5, 4]);
    pen.stroke();
    pen.setLineDash([]);
  }
  function colourOf() {
    const by = byId("map-colour").value;
    if (by === "class") return (i) => hue(owner[i]);
    const [low, high] = limits(values[by]), table = Array.from({ length: 64 }, (_, i) => `rgb(${ramp(viridis, i / 63)})`);
    return (i) => (Number.isFinite(values[by][i]) ? table[Math.round(63 * Math.min(Math.max((values[by][i] - low) / (high - low || 1), 0), 1))] : "#888");
  }
  function paintPoints() {
    const colour = colourOf(), radius = Math.max(1.2, Math.min(3.2, 260 / Math.sqrt(n))) * Math.sqrt(zoom);
    places = new Float32Array(2 * n);
    reach = 14;
    const byColour = new Map();
    for (let i = 0; i < n; i++) {
      const [x, y] = project(xy[2 * i], xy[2 * i + 1]);
      places[2 * i] = x; places[2 * i + 1] = y;
      const faded = kept.size && !kept.has(owner[i]), key = (faded ? "~" : "") + colour(i);
      if (!byColour.has(key)) byColour.set(key, []);
      byColour.get(key).push(i);
    }
    for (const [key, list] of [...byColour].sort(([a], [b]) => b.startsWith("~") - a.startsWith("~"))) {
      pen.globalAlpha = key[0] === "~" ? 0.12 : 0.7;
      pen.fillStyle = key.replace("~", "");
      pen.beginPath();
      for (const i of list) { pen.moveTo(places[2 * i] + radius, places[2 * i + 1]); pen.arc(places[2 * i], places[2 * i + 1], radius, 0, 7); }
      pen.fill();
    }
    pen.globalAlpha = 1;
  }
  async function paintAverages(at) {
    averages ??= await Promise.all(run.averages.map(sheetImage));
    const side = Math.max(18, Math.min(72, 0.7 * Math.sqrt(width * height / K))) * Math.sqrt(zoom);
    places = new Float32Array(2 * K);
    reach = 0.75 * side;
    const large = [...Array(K).keys()].sort((a, b) => members[a] - members[b]);
    for (const k of large) {
      const [x, y] = project(at[2 * k], at[2 * k + 1]), s = run.averages.findIndex((item) => k < item.first + item.count), sheet = run.averages[s], i = k - sheet.first;
      places[2 * k] = x; places[2 * k + 1] = y;
      pen.globalAlpha = kept.size && !kept.has(k) ? 0.35 : 1;
      pen.save(); pen.beginPath(); pen.roundRect(x - side / 2, y - side / 2, side, side, side / 8); pen.clip();
      pen.drawImage(averages[s], (i % sheet.columns) * sheet.stride, Math.floor(i / sheet.columns) * sheet.stride, sheet.size, sheet.size, x - side / 2, y - side / 2, side, side);
      pen.restore();
      pen.strokeStyle = hue(k); pen.lineWidth = kept.has(k) ? 3 : 1.5;
      pen.beginPath(); pen.roundRect(x - side / 2, y - side / 2, side, side, side / 8); pen.stroke();
    }
    pen.globalAlpha = 1;
  }
  function paintScale() {
    const by = byId("map-colour").value, axis = view() === "tsne" ? "t-SNE of the class averages" : `First and second component hold ${e.explained.map((part) => percent(part, 1)).join(" and ")} of the variance`;
    byId("map-colour").disabled = view() !== "points";
    if (by === "class" || view() !== "points") { scale.replaceChildren(axis); return; }
    const [low, high] = limits(values[by]), text = by === "defocus" ? (value) => `${short(value / 1e4)} µm` : short;
    scale.replaceChildren(text(low), el("i", { style: { background: `linear-gradient(90deg, ${viridis.join(",")})` } }), text(high), el("span", {}, `· ${axis}`));
  }

  function nearest(event) {
    const frameBox = canvas.getBoundingClientRect(), x = event.clientX - frameBox.left, y = event.clientY - frameBox.top;
    let best = -1, distance = reach ** 2;
    for (let i = 0; 2 * i < places.length; i++) {
      const d = (places[2 * i] - x) ** 2 + (places[2 * i + 1] - y) ** 2;
      if (d < distance) { distance = d; best = i; }
    }
    return best;
  }
  // Classes whose mark lies inside the outline; of particles, classes with more than half of those shown inside.
  function enclosed() {
    const inside = (i) => {
      let odd = false;
      for (let a = 0, b = outline.length - 1; a < outline.length; b = a++) {
        const [ax, ay] = outline[a], [bx, by] = outline[b];
        if ((ay > places[2 * i + 1]) !== (by > places[2 * i + 1]) && places[2 * i] < (bx - ax) * (places[2 * i + 1] - ay) / (by - ay) + ax) odd = !odd;
      }
      return odd;
    };
    if (view() !== "points") return everyClass().filter((k) => members[k] && inside(k));
    const within = new Uint32Array(K), all = new Uint32Array(K);
    for (let i = 0; i < n; i++) { all[owner[i]]++; if (inside(i)) within[owner[i]]++; }
    return everyClass().filter((k) => within[k] > all[k] / 2);
  }
  let drag = null;
  const point = (event) => {
    if (outline) { outline.push([event.offsetX, event.offsetY]); hideTip(); paint(); return; }
    if (drag) { pan = [pan[0] + event.movementX, pan[1] + event.movementY]; drag.moved += Math.abs(event.movementX) + Math.abs(event.movementY); hideTip(); paint(); return; }
    const i = nearest(event);
    if (i < 0) { hideTip(); return; }
    const points = view() === "points", item = run.classes[points ? owner[i] : i];
    const pictures = [points && picture(e.sheets, i, "Particle"), picture(run.averages, item.class - 1, "Its class average")];
    showTip(event.clientX, event.clientY, el("div", { class: "pair" }, pictures.filter(Boolean)), el("b", {}, label(item)),
      ...(points ? [el("div", {}, `Particle ${count(rows[i] + 1)}`), known(values.fit[i]) && el("div", {}, `Fit ${short(values.fit[i])}`), known(values.defocus[i]) && el("div", {}, `Defocus ${short(values.defocus[i] / 1e4)} µm`)].filter(Boolean) : []));
  };
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerdown", (event) => {
    if (lassoing()) { outline = [[event.offsetX, event.offsetY]]; canvas.setPointerCapture(event.pointerId); event.preventDefault(); return; }
    if (event.pointerType === "mouse") { drag = { moved: 0 }; canvas.setPointerCapture(event.pointerId); }
  });
  canvas.addEventListener("pointerup", (event) => {
    if (outline) {
      const chosen = outline.length > 2 ? enclosed() : [];
      outline = null;
      keepAlso(chosen, !event.altKey);
      paint();
      return;
    }
    const still = !drag || drag.moved < 5, i = still ? nearest(event) : -1;
    drag = null;
    if (i >= 0 && event.pointerType === "mouse") { hideTip(); openDetail(view() === "points" ? owner[i] : i); }
    else if (event.pointerType !== "mouse") setTimeout(() => point(event)); // a tap shows what a mouse sees by hovering
  });
  canvas.addEventListener("pointerleave", hideTip);
  function zoomAt(factor, x = width / 2, y = height / 2) {
    const next = Math.min(Math.max(zoom * factor, 0.8), 40), change = next / zoom;
    pan = [(pan[0] + width / 2 - x) * change + x - width / 2, (pan[1] + height / 2 - y) * change + y - height / 2];
    zoom = next;
    paint();
  }
  // Plain scrolling stays the page's; with Ctrl (a pinch on a touchpad) it zooms.
  canvas.addEventListener("wheel", (event) => { if (!event.ctrlKey) return; event.preventDefault(); zoomAt(Math.exp(-event.deltaY / 200), event.offsetX, event.offsetY); }, { passive: false });
  new ResizeObserver(paint).observe(canvas);
  onSelection(paint);
  document.addEventListener("ralib-theme", paint);
}
