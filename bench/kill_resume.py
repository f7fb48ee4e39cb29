"""Kill a run (SIGKILL) at random moments, checkpoint writing included, and continue it until it ends the same.

    PYTHONPATH=src python3 bench/kill_resume.py [--kills 50] [--device cpu] [--particles 400]

One uninterrupted run is the standard; then runs are killed after random times and continued until `--kills` kills are
done. Each run that reaches its end is compared byte by byte, and begun anew. Goes to
bench/results/kill-resume-<device>.json; the exit status is 1 where a file differs or something half-written is left.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from ralib.benchmarks.record import record, write_record

FILES = ("class_averages.mrcs", "class_averages_half1.mrcs", "class_averages_half2.mrcs", "params.txt", "frc.txt")


def command(folder: Path, out: Path, args: argparse.Namespace) -> list[str]:
    stack, options = str(folder / "sim" / "particles.star"), ["--ou=20", "--xr=2", "--CTF", "--no-report"]
    resume = ["--continue"] if out.exists() else []
    here = [f"--maxit={args.iterations}", f"--device={args.device}"]
    return [sys.executable, "-m", "ralib", "mref", stack, "6", str(out), *options, *here, *resume]


def differences(a: Path, b: Path) -> list[str]:
    """Files that are not the same in both, and temporary files left in b."""
    wrong = [n for n in FILES if (a / n).read_bytes() != (b / n).read_bytes()]
    return wrong + [str(p.relative_to(b)) for p in b.rglob(".tmp*")]


def begun(folder: Path, out: Path, args: argparse.Namespace) -> subprocess.Popen[bytes]:
    """A run that has taken its folder: kills in the seconds of importing before would prove nothing."""
    process = subprocess.Popen(command(folder, out, args), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (out / ".lock").exists():
        time.sleep(0.01)
    return process


def run_to_its_end(folder: Path, out: Path, args: argparse.Namespace) -> float:
    """Seconds from taking the folder to the end."""
    process = begun(folder, out, args)
    start = time.perf_counter()
    if process.wait() != 0:
        raise RuntimeError(f"a run ended with status {process.returncode}")
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--particles", type=int, default=400)
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    rng, device = random.Random(args.seed), torch.device(args.device)
    folder = Path(tempfile.mkdtemp(prefix="ralib-kill-"))
    simulate = ["simulate", str(folder / "sim"), "--particles", str(args.particles), "--box", "48"]
    subprocess.run([sys.executable, "-m", "ralib", *simulate], check=True, capture_output=True)
    whole, out = folder / "whole", folder / "killed"
    run_to_its_end(folder, whole, args)  # compiles the kernels, where there are any
    seconds = run_to_its_end(folder, out, args)
    kills, ends, wrong = 0, 1, differences(whole, out)
    shutil.rmtree(out)
    while kills < args.kills:
        (out / ".lock").unlink(missing_ok=True)  # left by the killed process; the system has let go of the lock
        process = begun(folder, out, args)
        try:
            process.wait(timeout=rng.uniform(0.0, seconds))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            continue
        ends += 1
        wrong += differences(whole, out)
        shutil.rmtree(out)
    if out.exists():
        run_to_its_end(folder, out, args)
        ends += 1
        wrong += differences(whole, out)
    shutil.rmtree(folder)
    row = {"case": f"files that differ after {kills} kills and {ends} runs continued to their ends", "ours": len(wrong),
           "goal": 0, "unit": "files", "parity": "compared with an uninterrupted run, byte by byte"}  # fmt: skip
    about = {"title": "Killed and continued", "different": wrong, "uninterrupted_s": seconds}
    path = write_record(args.out, record("kill-resume", device, [row], **about))
    print(f"{kills} kills, {ends} runs ended, different: {wrong or 'nothing'}; wrote {path}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
