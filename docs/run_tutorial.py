"""Run the tutorial's commands as they stand, show what they say, and draw its pictures anew.

python docs/run_tutorial.py [FOLDER]      # writes docs/img/*.png; the texts in tutorial.md are for a person to compare
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PICTURES = {
    "classified/classes.png": "classes.png",
    "run/classes.png": "mref.png",
    "run/analysis/embedding_classes.png": "embedding.png",
    "run/analysis/eigenimages.png": "eigenimages.png",
    "run/analysis/poses.png": "poses.png",
    "run/analysis/ctf.png": "ctf.png",
}
REPORT_PX = (1200, 1100)


def steps(text: str) -> list[list[str]]:
    """The commands of a page in their order: indented lines that begin with ralib, and fenced blocks of Python."""
    found = []
    for part in re.finditer(r"^    (ralib [^\n]+)$|^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        command, code = part.groups()
        found.append(["-m", *shlex.split(command, comments=True)] if command else ["-c", code])
    return found


def main() -> int:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="tutorial-"))
    folder.mkdir(exist_ok=True)
    for arguments in steps((HERE / "tutorial.md").read_text()):
        print("\n$", " ".join(arguments[1:]), flush=True)
        if subprocess.run([sys.executable, *arguments], cwd=folder, check=False).returncode:
            return 1
    for source, name in PICTURES.items():
        shutil.copyfile(folder / source, HERE / "img" / name)
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print("no Chromium here: img/report.png stays as it was")
        return 0
    shot = [f"--screenshot={HERE / 'img' / 'report.png'}", "--window-size={},{}".format(*REPORT_PX)]
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=6000"]
    page = (folder / "classified" / "report.html").resolve().as_uri()
    return subprocess.run([browser, *quiet, *shot, page], capture_output=True, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
