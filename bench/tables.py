"""The README's table, docs/benchmarks.md and its drawings, made from bench/results/*.json: a number has a file.

    python bench/tables.py            # rewrite all
    python bench/tables.py --check    # exit status 1 where they are out of step

A result file holds {"bench", "device", "commit", "versions", "rows": [{"case", "ours", "unit", "goal", "other",
"parity"}]}; rows may hold more, and rows with `median_ms` in place of `ours` are read too. The README shows HEADLINES;
the benchmark page begins with all rows that have a goal (or "readme": true) and holds every row of every file. Results
worse than their goal are shown as such.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import curves

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
NOTHING_YET = "*No measurement has been committed to bench/results yet.*"
SECTIONS = {
    "Speed, the answer proven first": ("engine", "whole", "first-run", "rotate"),
    "Right, held against known truth": ("classification", "watch", "hard", "verdict", "noise", "truth"),
    "Large sets, several GPUs, nothing lost": (
        "classify-million",
        "classify-ranks",
        "stream",
        "limited",
        "distributed-2",
        "distributed-4",
        "kill-resume",
    ),
}
"""The tables of goals, and whose rows stand in them; what no other holds is in a last one."""
OTHERS = "The rest"
HEADLINES = (
    ("whole", "H200", "105,247 x 90 px, 50 references, xr=yr=3, 6 iterations: file to files, second run",
     "Multi-reference alignment of 105,247 ribosomes at 90 px to 50 averages, 6 iterations, files to files"),
    ("engine", "H200", "mref-50", "The same, one iteration: computing, a particle"),
    ("classify-million", "H200", "the whole card",
     "Classes from scratch: a million particles of 128 px, 200 classes, from the file to the verdict"),
    ("classification", "H200", "uniform, 5,000 particles, K=50: view angle, median",
     "How far apart views in one class are, median: clean simulated ribosome, 50 classes"),
    ("classification", "H200", "ace2 (91 kDa, 30% junk), 3,000 particles, K=30, defaults: view angle, median",
     "The same, realistic images: 91 kDa protein, 30 % junk, 30 classes"),
    ("classification", "H200", "pol2 (flexible, 20% junk), 3,000 particles, K=30, defaults: view angle, median",
     "The same, realistic images: flexible polymerase, 20 % junk, 30 classes"),
)  # fmt: skip
"""The README's six rows: bench, device, the beginning of a case, and what a newcomer reads."""
SHORT_UNITS = {"us a particle and iteration": "µs"}


def load_results(folder: Path) -> list[dict[str, Any]]:
    """Every result file, by name; `bench`, `device` and `rows` are always there afterwards."""
    results = []
    for path in sorted(folder.glob("*.json")):
        loaded = json.loads(path.read_text())
        if not isinstance(loaded, dict):
            continue
        rows = [row for row in loaded.get("rows", []) if isinstance(row, dict) and row.get("case")]
        loaded |= {
            "file": path.name,
            "bench": loaded.get("bench") or loaded.get("what") or path.stem,
            "device": loaded.get("device") or "unknown device",
            "rows": rows,
        }
        results.append(loaded)
    return results


def readme_table(results: list[dict[str, Any]]) -> str:
    """HEADLINES, as far as their rows have been measured."""
    lines = []
    for bench, device, case, words in HEADLINES:
        found = [
            (result, row)
            for result in results
            if result["bench"] == bench and device in result["device"]
            for row in result["rows"]
            if row["case"].startswith(case)
        ]
        for result, row in found[:1]:
            measured, goal, elsewhere, _ = cells(_short(row))
            lines.append([words, where(result), measured, goal, elsewhere])
    header = ["What is measured", "On", "Measured", "Goal", "Other programs"]
    return markdown(header, lines) if lines else NOTHING_YET


def goal_tables(results: list[dict[str, Any]]) -> str:
    """The rows that have a goal, or ask for it, of every bench and device, a table for each section."""
    lines: dict[str, list[list[str]]] = {title: [] for title in [*SECTIONS, OTHERS]}
    for result in results:
        section = next((title for title, benches in SECTIONS.items() if result["bench"] in benches), OTHERS)
        for row in result["rows"]:
            if row.get("readme", row.get("goal") is not None):
                lines[section].append([row["case"], where(result), *cells(_short(row))])
    header = ["Case", "Device", "Measured", "Goal", "Elsewhere", "Parity first"]
    tables = [f"**{title}**\n\n{markdown(header, rows)}" for title, rows in lines.items() if rows]
    return "\n\n".join(tables) if tables else NOTHING_YET


def _short(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"unit": SHORT_UNITS.get(row.get("unit") or "", row.get("unit"))}


def benchmarks_page(results: list[dict[str, Any]]) -> str:
    """docs/benchmarks.md: every row of every file, with what it was measured on."""
    parts = [
        "# Benchmarks",
        "Made by `python bench/tables.py` from the files in `bench/results`; do not edit. Every bench first proves "
        "that its result is right, then measures. A row that misses its goal is shown like any other.",
        "## What has a goal",
        goal_tables(results),
    ]
    for result in results:
        versions = ", ".join(f"{name} {version}" for name, version in (result.get("versions") or {}).items())
        about = [f"Device: {result['device']}."]
        if versions:
            about.append(f"Versions: {versions}.")
        about.append(f"Commit: {str(result.get('commit') or 'unknown')[:12]}. File: `bench/results/{result['file']}`.")
        if result.get("note"):
            about.append(plain(result["note"]))
        table = markdown(
            ["Case", "Measured", "Goal", "Elsewhere", "Parity first"], [[r["case"], *cells(r)] for r in result["rows"]]
        )
        title = f"## {str(result.get('title') or result['bench']).capitalize()}, {where(result)}"
        parts += [title, " ".join(about)]
        if result["bench"] in curves.TIMES:
            parts.append(f"![{curves.TIMES[result['bench']]}](img/{drawing_name(result)})")
        parts.append(table if result["rows"] else "*No rows.*")
    return "\n\n".join(parts) + "\n"


def drawing_name(result: dict[str, Any]) -> str:
    """The SVG of a result file of curves."""
    return f"{Path(result['file']).stem}.svg"


def cells(row: dict[str, Any]) -> list[str]:
    """Measured, goal, elsewhere and parity of one row, as text."""
    unit = row.get("unit") or ("ms" if "median_ms" in row else "")
    ours = row.get("ours", row.get("median_ms"))
    parity = row.get("parity")
    if parity is None and row.get("relative_error") is not None:
        parity = f"within {row['relative_error']:.1e}"
    return [quantity(ours, unit), goal_text(ours, row), quantity(row.get("other"), unit), plain(parity)]


def goal_text(ours: Any, row: dict[str, Any]) -> str:
    """The goal and whether it is met; `better` is 'higher' or 'lower' (the default, except for rates)."""
    goal, unit = row.get("goal"), row.get("unit") or ""
    if goal is None or goal == "":
        return ""
    if not isinstance(goal, (int, float)) or not isinstance(ours, (int, float)):
        return plain(goal)
    higher = row.get("better", "higher" if "/s" in unit else "lower") == "higher"
    met = ours >= goal if higher else ours <= goal
    return f"{'≥' if higher else '≤'} {quantity(goal, unit)}{'' if met else ' (missed)'}"


def quantity(value: Any, unit: str) -> str:
    """A number with three digits and its unit; other values as they are."""
    if value is None or value == "":
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return plain(value)
    digits = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{digits} {unit}".strip()


def plain(value: Any) -> str:
    """Any value as one table cell."""
    if value is None:
        return ""
    text = json.dumps(value) if isinstance(value, (dict, list)) else str(value)
    return " ".join(text.replace("|", "/").split())


def where(result: dict[str, Any]) -> str:
    """The device, in short, and how many threads of a CPU."""
    device, threads = result["device"].replace("NVIDIA ", "").removesuffix(" HBM3").strip(), result.get("threads")
    return f"{device}, {threads} thread{'s' if threads > 1 else ''}" if threads else device


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table, without the columns that are empty in every row."""
    used = [i for i in range(len(header)) if i == 0 or any(row[i] for row in rows)]
    lines = [[plain(row[i]) for i in used] for row in [header, *rows]]
    lines.insert(1, ["---"] * len(used))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def with_table(text: str, table: str) -> str:
    """`text` with what stands between the markers replaced by the table."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"README.md lacks the markers {BEGIN} and {END}: put them where the table belongs")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def wanted_files() -> dict[Path, str]:
    """What README.md and docs/benchmarks.md should hold."""
    results = load_results(RESULTS)
    files = {ROOT / "docs" / "benchmarks.md": benchmarks_page(results)}
    for result in results:
        if result["bench"] in curves.TIMES:
            engine = [
                r for e in results if e["bench"] == "engine" and e["device"] == result["device"] for r in e["rows"]
            ]
            cases = engine if result["bench"] == "curves" else []
            files[ROOT / "docs" / "img" / drawing_name(result)] = curves.drawing(result, cases)
    readme = ROOT / "README.md"
    if readme.exists():
        files[readme] = with_table(readme.read_text(), readme_table(results))
    return files


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 where a file is out of step")
    check = parser.parse_args().check
    status = 0
    for path, text in wanted_files().items():
        if path.exists() and path.read_text() == text:
            continue
        if check:
            print(f"{path.relative_to(ROOT)} is out of step with bench/results: run python bench/tables.py")
            status = 1
        else:
            path.write_text(text)
            print(f"wrote {path.relative_to(ROOT)}")
    return status


if __name__ == "__main__":
    sys.exit(main())
