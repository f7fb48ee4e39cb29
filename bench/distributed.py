"""The scaling curve from the results of `ralib bench --distributed`: a table, and docs/img/scaling.svg.

PYTHONPATH=src python3 -m ralib bench --distributed --out bench/results    (starts one process a GPU)
python3 bench/distributed.py                                                (draws what is there)
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
COLUMNS = ("ranks", "s an iteration", "efficiency", "summed MB", "summing s", "waiting s", "averages differ")


def curves(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows by device; of several results of one device those with the most ranks count."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("distributed-*.json")):
        result = json.loads(path.read_text())
        rows = [row for row in result["rows"] if "ranks" in row]
        name = f"{result['device']}, {result['workload']['particles']:,} particles of {result['workload']['box']} px"
        if len(rows) > len(found.get(name, [])):
            found[name] = rows
    return found


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "| " + " | ".join("---:" for _ in COLUMNS) + " |"]
    for r in rows:
        cells = (
            f"{r['ranks']}",
            f"{r['ours']:.2f}",
            f"{r['efficiency']:.3f}",
            f"{r['summed_bytes'] / 1e6:.0f}",
            f"{r['summing_s']:.3f}",
            f"{r['waited_for_the_slowest_s']:.3f}",
            f"{r['averages_differ']:.0e}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Speed-up against ranks, beside the ideal line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 3.4), layout="constrained")
    axes = figure.subplots()
    most = max(row["ranks"] for rows in found.values() for row in rows)
    axes.plot([1, most], [1, most], color="#90a4ae", linewidth=1, label="ideal")
    for name, rows in found.items():
        speed = [rows[0]["ours"] * rows[0]["ranks"] / row["ours"] for row in rows]
        axes.plot([row["ranks"] for row in rows], speed, marker="o", label=name)
    axes.set(xlabel="GPUs (processes on a CPU)", ylabel="times as fast as one", xlim=(0.8, most + 0.2))
    axes.set_xticks(sorted({row["ranks"] for rows in found.values() for row in rows}))
    axes.legend(frameon=False, fontsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "img" / "scaling.svg")
    args = parser.parse_args()
    found = curves(args.results)
    if not found:
        print(f"no distributed-*.json in {args.results}: run 'ralib bench --distributed --out {args.results}' first")
        return 1
    for name, rows in found.items():
        print(f"\n{name}\n\n{table(rows)}")
    draw(found, args.out)
    print(f"\nwrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
