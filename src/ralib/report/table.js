// All classes in numbers: a row a class, sorted by any figure, with the same ticks as the gallery.

const tableRows = [];

function fillTable() {
  if (tableRows.length) return;
  const heads = [{ key: "class", name: "Class", about: "Number in the files." }, ...figures];
  const head = heads.map(({ key, name, about }) => el("th", { scope: "col", class: "right", "data-key": key }, el("button", { type: "button", title: about, onclick: () => {
    if (sortedBy.key === key) arrange(key, !sortedBy.down); else arrange(key);
  } }, name)));
  const words = run.classes.some((item) => item.verdict), reasons = run.classes.some((item) => item.reason);
  for (let k = 0; k < K; k++) {
    const item = run.classes[k], box = el("input", { type: "checkbox", "aria-label": `Keep class ${item.class}`, onchange: () => toggle(k, box.checked) });
    const open = el("button", { type: "button", class: "link", "aria-label": `Open class ${item.class}`, onclick: () => openDetail(k) }, picture(run.averages, k, ""), String(item.class));
    const row = el("tr", {}, el("td", {}, box), el("td", { class: "right" }, open), figures.map(({ key, text }) => el("td", { class: "right" }, known(item[key]) ? text(item[key]) : "–")),
      words && el("td", { class: "words" }, item.verdict || ""), reasons && el("td", { class: "words" }, automaticText(item)));
    tableRows.push({ k, row, box });
  }
  byId("class-table").append(el("figure", { class: "plot", "data-plot": "table" }, el("div", { class: "table-wrap", tabindex: 0, role: "region", "aria-label": "All classes in numbers" }, el("table", {},
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Keep"), head, words && el("th", { scope: "col" }, "Verdict"), reasons && el("th", { scope: "col" }, "Automatic selection"))), el("tbody", {})))));
  orderTable();
  markTable();
  onSelection(markTable);
}
function markTable() {
  for (const { k, row, box } of tableRows) { box.checked = kept.has(k); row.classList.toggle("kept", box.checked); }
}
function orderTable() {
  if (!tableRows.length) return;
  byId("class-table").querySelector("tbody").append(...order.map((k) => tableRows[k].row));
  for (const head of byId("class-table").querySelectorAll("th[data-key]")) {
    if (head.dataset.key === sortedBy.key) head.setAttribute("aria-sort", sortedBy.down ? "descending" : "ascending"); else head.removeAttribute("aria-sort");
  }
}
