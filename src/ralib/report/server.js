// Only in a page that `ralib report RUN --serve` serves: writing the selection, and following a run that goes on.

async function writeSelection(button) {
  const told = byId("written");
  button.disabled = true;
  told.textContent = "Writing ...";
  try {
    const answer = await fetch(run.server.write, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(selectionFile()) });
    const value = await answer.json();
    told.classList.toggle("failed", !answer.ok);
    told.replaceChildren(...(answer.ok ? [`Wrote ${value.folder}: `, ...value.files.flatMap(({ name, what }, i) => [i ? ", " : "", el("b", {}, name), ` (${what})`])] : [value.error]));
  } catch {
    told.classList.add("failed");
    told.textContent = "The server does not answer: is 'ralib report --serve' still running?";
  }
  button.disabled = false;
}

// While the run goes on the page is made anew when there is more to see; what is ticked is remembered.
function followRun() {
  if (!run.server) return;
  const look = async () => {
    try {
      const { version } = await (await fetch(run.server.state)).json();
      if (version !== run.server.version && !detail.open) { location.reload(); return; }
    } catch { /* the server has ended: the page stays as it is */ }
    setTimeout(look, run.server.every_ms);
  };
  if (!run.server.finished) setTimeout(look, run.server.every_ms);
}
