// Files to take away: the table of all figures, the gallery as a picture, and the summary that is printed.

// A cell of a CSV file. A text that a spreadsheet would take for a formula gets an apostrophe in front.
function cell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  const text = /^[=+\-@\t\r]/.test(String(value)) ? `'${value}` : String(value);
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
function tableText() {
  const head = ["class", "kept", ...figures.map(({ key, name, unit }) => (key === "median_defocus_A" ? "Median defocus (Å)" : unit ? `${name} (${unit})` : name)), "Verdict", "Automatic selection", "Reason"];
  const rows = order.map((k) => { const item = run.classes[k]; return [item.class, kept.has(k) ? 1 : 0, ...figures.map(({ key }) => (known(item[key]) ? item[key] : null)), item.verdict, item.selected === undefined ? null : item.selected ? 1 : 0, item.reason]; });
  return [head, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}
const exportTable = () => save(`${run.title}-classes.csv`, tableText(), "text/csv");

// The averages in the order shown, as they look now, each with number, members, resolution and class score.
async function exportGallery() {
  const side = run.averages[0]?.size ?? 0, foot = 40, gap = 10, columns = Math.max(1, Math.min(K, Math.round(Math.sqrt(K * 1.4)))), head = 46;
  const canvas = el("canvas", { width: columns * (side + gap) + gap, height: head + Math.ceil(K / columns) * (side + foot + gap) + gap }), pen = canvas.getContext("2d");
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.fillStyle = "#111";
  pen.font = "600 18px system-ui, sans-serif";
  pen.fillText(kept.size ? `${run.title}: ${selectionSummary()}` : `${run.title}: ${count(total)} particles in ${count(K)} classes`, gap, 30, canvas.width - 2 * gap);
  const filter = [document.body.classList.contains("inverted") && "invert(1)", `contrast(${look.contrast})`, look.lowpass_A && `blur(${blurPercent(look.lowpass_A) * side / 100}px)`].filter(Boolean).join(" ");
  for (const [place, k] of order.entries()) {
    const item = run.classes[k], x = gap + (place % columns) * (side + gap), y = head + Math.floor(place / columns) * (side + foot + gap);
    const sheet = run.averages.find((candidate) => k >= candidate.first && k < candidate.first + candidate.count), i = k - sheet.first, image = await sheetImage(sheet);
    pen.save();
    pen.beginPath(); pen.rect(x, y, side, side); pen.clip();
    pen.filter = filter;
    pen.drawImage(image, (i % sheet.columns) * sheet.stride, Math.floor(i / sheet.columns) * sheet.stride, sheet.size, sheet.size, x, y, side, side);
    pen.restore();
    if (kept.has(k)) { pen.strokeStyle = "#0b6bcb"; pen.lineWidth = 4; pen.strokeRect(x, y, side, side); }
    pen.fillStyle = "#111"; pen.font = "600 14px system-ui, sans-serif";
    pen.fillText(`#${item.class}  ${count(item.members)}`, x, y + side + 16, side);
    pen.fillStyle = "#555"; pen.font = "13px system-ui, sans-serif";
    pen.fillText([known(item.resolution) && `${short(item.resolution)} ${resolutionUnit}`, known(item.score) && `score ${twoDigits(item.score)}`].filter(Boolean).join("  "), x, y + side + 33, side);
  }
  canvas.toBlob((blob) => save(`${run.title}-classes.png`, blob, "image/png"));
}

// What a printed page says about the selection; on the screen the bar at the foot does.
function buildPrintSummary() {
  const host = byId("print-summary");
  onSelection(() => {
    const rules = [...figures.filter(({ key }) => limits.classes[key] !== undefined).map(({ key, name, better }) => `${name} ${better > 0 ? "≥" : "≤"} ${limits.classes[key]}`),
      ...particleLimits.filter(({ key }) => limits.particles[key] !== undefined).map(({ key, name, sense }) => `${name} of a particle ${sense} ${limits.particles[key]}`)];
    host.replaceChildren(el("h2", {}, "Selection"), el("p", {}, kept.size ? `Keeping ${selectionSummary()}.` : "No class is selected."),
      ...(kept.size ? [el("p", {}, `Classes ${asRanges(kept).replaceAll(",", ", ")}.`), rules.length > 0 && el("p", {}, `Thresholds: ${rules.join("; ")}.`), el("pre", {}, `ralib select ${runWord} ${selectOptions()} --out selected.star`)].filter(Boolean) : []));
  });
}
