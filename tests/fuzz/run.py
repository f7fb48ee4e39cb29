"""Fuzz every reader at length: `python -m tests.fuzz.run --n 30000 [--readers mrc star] [--out FILE.json]`.

Each reader runs in a process of its own with a limit on its address space, so that a crash or a runaway allocation
inside a C library is seen and told too.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import platform
import resource
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

EXTRA_ADDRESS_SPACE = 4 << 30


def one(name: str, n: int, seed: int) -> None:
    """Fuzz one reader in this process and print its figures as JSON."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from .readers import READERS, Reader, soak

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + EXTRA_ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    reader = Reader(name, *READERS[name])
    reader.check(reader.seed)
    assert reader.opened == 1, f"the sound {name} file does not open"
    faulthandler.dump_traceback_later(3600, exit=True)
    start = time.monotonic()
    soak(reader, n, seed)
    reader.close()
    seconds = time.monotonic() - start
    tried = reader.opened + reader.refused - 1
    print(json.dumps({"tried": tried, "opened": reader.opened - 1, "refused": reader.refused, "seconds": seconds}))


def write_figures(path: Path, results: dict[str, dict], n: int, seed: int) -> None:
    """The figures as a bench result: failures of each reader (the goal is none), and what became of the files."""
    rows = [
        {
            "case": f"{name} reader, {n:,} mutated files",
            "ours": int("failed" in r),
            "unit": "failures",
            "goal": 0,
            "readme": False,
            **r,
        }
        for name, r in results.items()
    ]
    for row in rows:
        if "failed" not in row:
            row["parity"] = f"{row['opened']:,} opened, {row['refused']:,} refused in one line"
    versions = {name: metadata.version(name) for name in ("numpy", "pandas", "h5py", "hypothesis")}
    result = {"bench": "fuzz of the readers", "device": f"CPU, {platform.machine()}", "seed": seed}
    result |= {"versions": {"python": platform.python_version(), **versions}, "rows": rows}
    path.write_text(json.dumps(result, indent=1) + "\n")


def main() -> int:
    """Run all, write the figures, return 1 if any reader failed."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from .readers import READERS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=30_000, help="mutated files for each reader")
    parser.add_argument("--readers", nargs="*", default=list(READERS), help="which readers (all)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(options.one, options.n, options.seed)
        return 0
    results, failed = {}, False
    for name in options.readers:
        command = [sys.executable, "-m", "tests.fuzz.run", "--one", name, "--n", str(options.n)]
        done = subprocess.run([*command, "--seed", str(options.seed)], capture_output=True, text=True, check=False)
        ok = done.returncode == 0
        failed |= not ok
        results[name] = json.loads(done.stdout.splitlines()[-1]) if ok else {"failed": done.stderr[-2000:]}
        print(name, results[name], flush=True)
    if options.out:
        write_figures(options.out, results, options.n, options.seed)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
