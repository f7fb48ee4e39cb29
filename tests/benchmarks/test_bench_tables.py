"""The README's table and the benchmark page are what bench/results says."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("bench_tables", ROOT / "bench" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def results(tables, tmp_path: Path) -> list[dict]:
    (tmp_path / "a.json").write_text(
        json.dumps(
            {
                "bench": "mref",
                "device": "NVIDIA H100 80GB HBM3",
                "commit": "0123456789abcdef",
                "versions": {"torch": "2.13"},
                "rows": [
                    {"case": "fast", "ours": 1.2345, "unit": "s", "goal": 2, "other": 1200, "parity": "98.7% same"},
                    {"case": "slow", "ours": 12.0, "unit": "s", "goal": 10, "other": None, "parity": "ok"},
                    {"case": "rate", "ours": 90.0, "unit": "particles/s", "goal": 100},
                    {"case": "no | goal", "ours": "n/a", "unit": "s"},
                ],
            }
        )
    )
    other = {"what": "rotate", "rows": [{"case": "cubic", "median_ms": 3.4567, "relative_error": 1.5e-6}, {"bad": 1}]}
    (tmp_path / "b.json").write_text(json.dumps(other))
    (tmp_path / "c.json").write_text("[]")
    return tables.load_results(tmp_path)


def test_goal_tables_show_goals_met_and_missed(tables, tmp_path: Path) -> None:
    lines = tables.goal_tables(results(tables, tmp_path)).splitlines()
    assert lines[0] == f"**{tables.OTHERS}**"
    assert lines[2] == "| Case | Device | Measured | Goal | Elsewhere | Parity first |"
    assert lines[4] == "| fast | H100 80GB | 1.23 s | ≤ 2 s | 1,200 s | 98.7% same |"
    assert lines[5] == "| slow | H100 80GB | 12 s | ≤ 10 s (missed) |  | ok |"
    assert lines[6] == "| rate | H100 80GB | 90 particles/s | ≥ 100 particles/s (missed) |  |  |"
    assert len(lines) == 7


def test_rows_with_goals_stand_in_sections(tables) -> None:
    row = {"case": "mref-10", "ours": 1.2, "unit": "us a particle and iteration", "goal": 1.5}
    engine = {"file": "engine.json", "bench": "engine", "device": "card", "rows": [row]}
    title = next(title for title, benches in tables.SECTIONS.items() if "engine" in benches)
    assert tables.goal_tables([engine]).splitlines()[::4] == [f"**{title}**", "| mref-10 | card | 1.2 µs | ≤ 1.5 µs |"]


def test_readme_table_shows_the_headlines_that_were_measured(tables) -> None:
    bench, device, case, words = tables.HEADLINES[1]
    row = {"case": case, "ours": 1.86, "unit": "us a particle and iteration", "goal": 3, "other": "original CUDA 85"}
    engine = {"file": "engine.json", "bench": bench, "device": device, "rows": [row, {"case": "another", "ours": 1}]}
    lines = tables.readme_table([engine]).splitlines()
    assert lines[0] == "| What is measured | On | Measured | Goal | Other programs |"
    assert lines[2:] == [f"| {words} | {device} | 1.86 µs | ≤ 3 µs | original CUDA 85 |"]


def test_benchmark_page_holds_every_row(tables, tmp_path: Path) -> None:
    page = tables.benchmarks_page(results(tables, tmp_path))
    for expected in ("## Mref, H100 80GB", "no / goal", "3.46 ms", "within 1.5e-06", "0123456789ab.", "torch 2.13"):
        assert expected in page
    assert "No measurement" in tables.benchmarks_page([])
    assert tables.readme_table([]) == tables.NOTHING_YET


def test_table_goes_between_the_markers(tables) -> None:
    text = f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter"
    assert tables.with_table(text, "NEW") == f"before\n{tables.BEGIN}\nNEW\n{tables.END}\nafter"
    with pytest.raises(SystemExit, match="markers"):
        tables.with_table("no markers", "NEW")


def test_readme_and_page_are_in_step(tables) -> None:
    for path, text in tables.wanted_files().items():
        assert path.read_text() == text, f"{path.name} is out of step: run python bench/tables.py"


def test_curves_become_a_drawing(tables) -> None:
    rows = [
        {"case": "a", "curve": "particles", "x": 100, "ours": 1.0},
        {"case": "b", "curve": "particles", "x": 1000, "ours": 10.0},
        {"case": "c", "curve": "references", "x": 5, "ours": None},
        {"case": "time grows as (particles) to the power", "ours": 1.0, "slope_of": "particles"},
    ]
    result = {"file": "curves-card.json", "bench": "curves", "device": "card", "rows": rows}
    drawn = tables.curves.drawing(result, [])
    assert drawn.count("<circle") == 2, "one a measured point; a curve of none is left out"
    (dashed,) = [line for line in drawn.splitlines() if "dasharray" in line]
    solid = [line for line in drawn.splitlines() if f'stroke="{tables.curves.BLUE}"' in line]
    assert dashed.split("stroke")[0] == solid[0].split("stroke")[0], "a time in proportion lies on the dashed line"
    rows[1]["ours"] = 20.0
    steep = tables.curves.drawing(result, []).splitlines()
    assert next(x for x in steep if "dasharray" in x).split("stroke")[0] not in {
        x.split("stroke")[0] for x in steep if "dasharray" not in x
    }
    assert "](img/curves-card.svg)" in tables.benchmarks_page([result])
    case = {"box": 90, "shift_range_px": 3, "particles": 1000}
    engine = [case | {"references": r, "ours": 2.0 * r} for r in (10, 50, 200)]
    more = tables.curves.drawing(result, [*engine, {"case": "a peer", "ours": None}])
    assert more.count("<circle") == 5, "references from the engine's cases"


def test_curves_of_a_classification_say_what_they_are(tables) -> None:
    rows = [{"case": str(k), "curve": "classes", "x": k, "ours": k / 4} for k in (5, 10)]
    result = {"file": "classify-curves-core.json", "bench": "classify-curves", "device": "core", "rows": rows}
    assert "Seconds a classification, core" in tables.curves.drawing(result, [])
    assert "![Seconds a classification](img/classify-curves-core.svg)" in tables.benchmarks_page([result])
