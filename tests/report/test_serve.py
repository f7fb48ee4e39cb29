"""`ralib report RUN --serve`: the page in Chromium, what one click writes, and who gets nothing."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from browser import resize, wait_for
from make_run import make_run
from ralib.cli import main
from ralib.io import open_images, open_particles, read_star
from ralib.results.report_server import ServedReport
from ralib.results.selection import fingerprint
from ralib.results.summary import open_run
from ralib.types import RalibError

pytest.importorskip("uvicorn", reason="uvicorn is missing: pip install 'cryo-ralib[serve]'")
K, N = 7, 200


class Server:
    """`ralib report RUN --serve` in a process of its own."""

    def __init__(self, run: Path) -> None:
        command = [sys.executable, "-m", "ralib", "report", str(run), "--serve"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("report: http://127.0.0.1:"), line + self.process.stdout.read()
        self.address = line.split()[1]
        self.port = int(self.address.split(":")[2].split("/")[0])
        self.token = self.address.split("/")[3]

    def ask(self, method: str, path: str, body: str = "", **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request(
            method, path, body=body or None, headers={k.replace("_", "-"): v for k, v in headers.items()}
        )
        answer = connection.getresponse()
        status, text = answer.status, answer.read().decode()
        connection.close()
        return status, text

    def stop(self) -> str:
        self.process.send_signal(signal.SIGINT)
        return self.process.communicate(timeout=20)[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("serve"), n_classes=K, n_particles=N, box=24, n_iterations=3, judged=True)


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[Server]:
    served = Server(run)
    yield served
    assert "server stopped" in served.stop()
    assert served.process.returncode == 0


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_one_click_writes_particles_left_out_particles_and_averages(page: Any, server: Server, run: Path) -> None:
    outside, inside = files_below(run.parent), files_below(run)
    resize(page, 1400, 1000)
    page.get(server.address)
    wait_for(lambda: page.execute_script("return document.documentElement.dataset.ready"))
    page.execute_script("document.querySelector('#thresholds').open = true")
    page.find_element("id", "limit-particle-junk").send_keys("\ue009a\ue000", "0.4")  # in place of the run's own limit
    shown = int(page.find_element("id", "kept-particles").get_attribute("data-value"))
    page.find_element("id", "write").click()
    wait_for(lambda: "selected.star" in page.find_element("id", "written").text, what="the answer")
    folder = run / "selections" / "001"
    new = {f"selections/001/{name}" for name in ("selected.star", "excluded.star", "selected_averages.mrcs")}
    assert files_below(run) - inside == new | {"selections/001/selection.json"}
    assert files_below(run.parent) - outside == {f"run/{name}" for name in files_below(run) - inside}
    opened = open_run(run)
    keep = opened.scores["junk"] <= np.float32(0.4)
    index = opened.poses.class_index.numpy()
    mostly = [k for k in range(K) if 2 * keep[index == k].sum() > (index == k).sum()]
    assert 0 < len(mostly) < len(np.unique(index[keep]))
    kept = read_star(folder / "selected.star")["particles"]["myOwnColumn"].to_numpy(dtype=int)
    np.testing.assert_array_equal(kept, np.flatnonzero(keep))
    assert len(kept) == shown
    assert len(open_particles(folder / "excluded.star")) == N - shown
    np.testing.assert_allclose(open_images(folder / "selected_averages.mrcs"), opened.averages[mostly], atol=1e-6)
    # What the page sent is a selection file, and gives the same particles.
    again = run.parent / "again.star"
    assert main(["select", str(run), str(folder / "selection.json"), str(again)]) == 0
    assert len(open_particles(again)) == shown
    page.find_element("id", "write").click()
    wait_for(lambda: (run / "selections" / "002" / "selection.json").is_file(), what="a second folder")
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_without_the_token_there_is_nothing(server: Server, run: Path) -> None:
    before = files_below(run)
    for path in ("/", "/wrong/", f"/{server.token[:-1]}/", "/wrong/state", f"/{server.token}/../run.json"):
        status, body = server.ask("GET", path)
        assert status == 404
        assert "ralib" not in body
    body = json.dumps({"format": "ralib-selection", "version": 1, "classes": [1]})
    assert server.ask("POST", "/wrong/write", body, Content_Type="application/json")[0] == 404
    assert files_below(run) == before


def test_only_the_page_itself_may_write(server: Server, run: Path) -> None:
    """Another site, another name for this machine, another kind of body, another run: all are refused."""
    before, path = files_below(run), f"/{server.token}/write"
    good = json.dumps({"format": "ralib-selection", "version": 1, "classes": [1]})
    kind = {"Content_Type": "application/json"}
    assert server.ask("POST", path, good, Content_Type="text/plain")[0] == 403
    assert server.ask("POST", path, good, Origin="http://elsewhere.example", **kind)[0] == 403
    assert server.ask("GET", f"/{server.token}/", Host="elsewhere.example")[0] == 400
    for body in (good, "[]", "{", json.dumps({"format": "ralib-selection", "version": 1, "run": {}, "classes": [99]})):
        status, told = server.ask("POST", path, body, **kind)
        assert status == 400
        assert json.loads(told)["error"]
    assert server.ask("GET", path)[0] == 405
    assert files_below(run) == before


def test_it_listens_on_this_machine_only(server: Server) -> None:
    inode_of = "0100007F"  # 127.0.0.1 in /proc/net/tcp
    table = Path("/proc/net/tcp")
    if not table.is_file():
        pytest.skip("no /proc/net/tcp: the listening address can be read on Linux only")
    lines = [line.split() for line in table.read_text().splitlines()[1:]]
    listening = [
        row[1].split(":")[0] for row in lines if int(row[1].split(":")[1], 16) == server.port and row[3] == "0A"
    ]
    assert listening == [inode_of]


def test_the_page_follows_a_run_that_goes_on(page: Any, run: Path, tmp_path: Path) -> None:
    """First nothing, then an iteration, then the finished run: each appears without a reload by hand."""
    going = tmp_path / "going"
    going.mkdir()
    served = Server(going)
    try:
        page.get(served.address)
        wait_for(lambda: page.execute_script("return document.documentElement.dataset.ready"))
        assert "running" in page.find_element("id", "subtitle").text
        record = json.loads((run / "run.json").read_text())
        (going / "iterations/001").mkdir(parents=True)
        (going / "iterations/001/averages.mrcs").symlink_to(run / "iterations/001/averages.mrcs")
        begun = {**record, "state": "running", "iterations": record["iterations"][:1], "classes": []}
        (going / "run.json").write_text(json.dumps(begun))
        cards = "return document.querySelectorAll('.card').length"
        wait_for(lambda: page.execute_script(cards) == K, what="the first iteration")
        assert "iteration 1" in page.find_element("id", "subtitle").text
        assert page.find_elements("id", "write") == []
        for name in ("particles.star", "class_averages.mrcs", "frc.txt", "particle_scores.txt"):
            os.symlink(run / name, going / name)
        finished = {**record, "state": "finished"}
        (going / "run.json").write_text(json.dumps(finished))
        wait_for(lambda: page.find_elements("id", "write"), what="the finished run")
        assert page.find_elements("id", "map-canvas")
    finally:
        served.stop()


def test_mistakes_are_told_in_one_line(tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file.txt").write_text("no run")
    for arguments, told in [
        ([str(tmp_path / "none")], "does not exist"),
        ([str(tmp_path / "other")], "is no run"),
    ]:
        assert main(["report", *arguments, "--serve"]) == 2
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1


def test_two_clicks_at_once_get_folders_of_their_own(server: Server, run: Path) -> None:
    body = json.dumps(selection_for(run))
    answers: list[tuple[int, str]] = []
    post = lambda: answers.append(  # noqa: E731
        server.ask("POST", f"/{server.token}/write", body, Content_Type="application/json")
    )
    threads = [threading.Thread(target=post) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [status for status, _ in answers] == [200] * 3
    assert len({json.loads(told)["folder"] for _, told in answers}) == 3


def selection_for(run: Path) -> dict[str, Any]:
    about = {"title": "run", "fingerprint": fingerprint(open_run(run).members), "n_classes": K}
    return {"format": "ralib-selection", "version": 1, "run": about, "classes": [1, 2]}


def test_a_run_that_was_replaced_while_it_is_served_gets_no_selection_of_the_old_one(run: Path, tmp_path: Path) -> None:
    served_run = Path(shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("selections")))
    report, chosen = ServedReport(served_run), selection_for(run)
    report.page()
    assert report.write(chosen)["files"]
    other = make_run(tmp_path / "other", n_classes=K, n_particles=N, box=24, n_iterations=1, judged=True, seed=9)
    shutil.rmtree(served_run)
    other.rename(served_run)
    with pytest.raises(RalibError, match="has changed since this page was made"):
        report.write(chosen)
    assert not (served_run / "selections").exists()
    report.page()
    with pytest.raises(RalibError, match="made for another run"):
        report.write(chosen)


@pytest.mark.parametrize("damaged", ['{"iterations": 5}', '{"state": "running", "iterations": 5}', "[]", "{"])
def test_a_record_that_is_damaged_while_it_is_served_is_one_line(run: Path, tmp_path: Path, damaged: str) -> None:
    served_run = Path(shutil.copytree(run, tmp_path / "run"))
    report = ServedReport(served_run)
    report.page()
    (served_run / "run.json").write_text(damaged)
    with pytest.raises(RalibError) as caught:
        report.page()
    assert "\n" not in str(caught.value)
