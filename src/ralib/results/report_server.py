"""The report from a small local server: live while the run continues, with selections written from the page.

It listens on 127.0.0.1 only, requires the random token in its address, and writes nothing but new folders
RUN/selections/NNN.
"""

from __future__ import annotations

import json
import secrets
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ralib.io import write_text
from ralib.report import render_report
from ralib.results.selection import MAX_FILE_BYTES, Selection, selection_of
from ralib.results.selection_run import classes_to_average, rows_kept, write_selection
from ralib.results.summary import summarise
from ralib.results.summary.live import has_finished, live_contents, run_version
from ralib.results.summary.runs import RunFiles, open_run
from ralib.types import RalibError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

HOST = "127.0.0.1"
REFRESH_MS = 2000
FOLDER = "selections"
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "frame-ancestors 'none'",
}


class ServedReport:
    """The page of one run, made again when the run has more to show, and the selections written from it.

    Parameters
    ----------
    run : Path
        The run's folder.
    datadir : Path or str, optional
        Folder of the image files, if they are not where the particle file says.
    max_points : int, default 10000
        Particles in the embedding at most.
    """

    def __init__(self, run: Path, *, datadir: Path | str | None = None, max_points: int = 10_000) -> None:
        self.run, self.datadir, self.max_points = run, datadir, max_points
        self.folder = run if run.is_dir() else run.parent
        self._lock = threading.Lock()
        self._version, self._page = "", ""
        self._opened: RunFiles | None = None

    def version(self) -> str:
        """Return a text that changes whenever the run has something new to show."""
        return run_version(self.folder)

    def page(self) -> str:
        """Return the present page."""
        with self._lock:
            version = self.version()
            if version != self._version or not self._page:
                finished = has_finished(self.folder)
                server = {"write": "write", "state": "state", "every_ms": REFRESH_MS}
                server |= {"version": version, "finished": finished}
                self._opened = open_run(self.run, datadir=self.datadir) if finished else None
                if self._opened is not None:
                    contents = summarise(self._opened, max_points=self.max_points, server=server)
                else:
                    contents = live_contents(self.folder, server)
                self._version, self._page = version, render_report(contents)
            return self._page

    def write(self, value: Any) -> dict[str, Any]:
        """Write the particles kept, the particles left out and the averages kept into a new folder of the run."""
        if not isinstance(value, dict):
            raise RalibError("the page sent no selection: reload it")
        with self._lock:
            run = self._opened
            if self._version != self.version():
                raise RalibError("the run has changed since this page was made: reload it, and select again")
            if run is None:
                raise RalibError("the run has not finished: its particles can be selected when it has")
            selection = selection_of(value, run.members, "the selection sent by the page")
            folder = self._new_folder()
            try:
                written = _files(run, selection, folder)
                write_text(folder / "selection.json", json.dumps(value, indent=1) + "\n")
            except BaseException:
                for file in folder.iterdir():
                    file.unlink()
                folder.rmdir()
                raise
        return {"folder": str(folder.relative_to(self.folder.parent)), "files": written}

    def _new_folder(self) -> Path:
        """RUN/selections/001, or the next number that is free."""
        above = self.folder / FOLDER
        above.mkdir(exist_ok=True)
        numbers = [int(path.name) for path in above.iterdir() if path.name.isdecimal()]
        folder = above / f"{max(numbers, default=0) + 1:03d}"
        folder.mkdir()
        return folder


def _files(run: RunFiles, selection: Selection, folder: Path) -> list[dict[str, str]]:
    """Write all files of a selection; returns what each holds."""
    kept = len(rows_kept(run, selection)[0])
    left_out = len(run.poses) - kept
    excluded = folder / "excluded.star" if left_out else None
    averages = folder / "selected_averages.mrcs"
    write_selection(run, selection, outputs=[folder / "selected.star"], excluded=excluded, averages=averages)
    files = [("selected.star", f"{kept} particles")]
    if left_out:
        files.append(("excluded.star", f"{left_out} particles left out"))
    files.append(("selected_averages.mrcs", f"{len(classes_to_average(run, selection))} averages"))
    return [{"name": name, "what": what} for name, what in files]


def report_app(report: ServedReport, token: str) -> Starlette:
    """Return the web application: the page, its state and its writing, all below the token.

    Parameters
    ----------
    report : ServedReport
        The report.
    token : str
        The random token.

    Returns
    -------
    Starlette
        The application.
    """
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse
    from starlette.routing import Route

    def known(request: Request) -> bool:
        return secrets.compare_digest(request.path_params["token"].encode(), token.encode())

    def nothing() -> Response:
        return PlainTextResponse("not found\n", status_code=404, headers=_HEADERS)

    async def page(request: Request) -> Response:
        if not known(request):
            return nothing()
        try:
            return HTMLResponse(await run_in_threadpool(report.page), headers=_HEADERS)
        except (RalibError, OSError) as error:
            return PlainTextResponse(f"{error}\n", status_code=500, headers=_HEADERS)

    async def state(request: Request) -> Response:
        if not known(request):
            return nothing()
        return JSONResponse({"version": await run_in_threadpool(report.version)}, headers=_HEADERS)

    async def write(request: Request) -> Response:
        if not known(request):
            return nothing()
        answer, status = await _written(report, request)
        return JSONResponse(answer, status_code=status, headers=_HEADERS)

    routes = [
        Route("/{token}/", page),
        Route("/{token}/state", state),
        Route("/{token}/write", write, methods=["POST"]),
    ]
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    return Starlette(routes=routes, middleware=[hosts])


async def _written(report: ServedReport, request: Request) -> tuple[dict[str, Any], int]:
    """The answer to a request to write a selection, and its HTTP status."""
    from starlette.concurrency import run_in_threadpool

    if request.headers.get("content-type", "").split(";")[0] != "application/json" or not _same_origin(request):
        return {"error": "only the page itself may write"}, 403
    if int(request.headers.get("content-length", MAX_FILE_BYTES + 1)) > MAX_FILE_BYTES:
        return {"error": "the selection is too large"}, 413
    try:
        return await run_in_threadpool(report.write, json.loads(await request.body())), 200
    except (RalibError, ValueError, RecursionError) as error:
        return {"error": str(error)}, 400
    except OSError as error:
        return {"error": f"cannot write: {error.strerror}: {error.filename}"}, 500


def _same_origin(request: Request) -> bool:
    origin = request.headers.get("origin")
    return origin is None or origin == f"{request.url.scheme}://{request.headers['host']}"


def serve_report(
    run: Path,
    *,
    port: int = 0,
    datadir: Path | str | None = None,
    max_points: int = 10_000,
    ready: Callable[[str], None] = print,
) -> None:
    """Serve the report of a run until interrupted.

    Parameters
    ----------
    run : Path
        The run's folder.
    port : int, default 0
        Port; 0 takes any free one.
    datadir : Path or str, optional
        Folder of the image files, if they are not where the particle file says.
    max_points : int, default 10000
        Particles in the embedding at most.
    ready : Callable[[str], None], default print
        Called with the address.

    Raises
    ------
    RalibError
        If the port is taken, the folder is no run, or starlette is missing.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise RalibError("serving a report needs starlette and uvicorn: pip install 'cryo-ralib[serve]'") from error
    report = ServedReport(run, datadir=datadir, max_points=max_points)
    if not run.exists():
        raise RalibError(f"{run} does not exist: give the OUTDIR of a run, finished or going on")
    report.page()  # an error of the run is raised here, not shown in the browser
    token = secrets.token_urlsafe(24)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen(16)
    except OSError as error:
        listener.close()
        raise RalibError(f"`port` {port}: {error.strerror}: choose another, or 0 for any free one") from error
    with listener:
        config = uvicorn.Config(report_app(report, token), log_level="warning", access_log=False)
        ready(f"http://{HOST}:{listener.getsockname()[1]}/{token}/")
        uvicorn.Server(config).run(sockets=[listener])
