"""`ralib watch`: a classification of particles that are still arriving."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ralib.cli.alignment_options import Report
from ralib.cli.classification_options import ClassificationSettings, classifier_of, given_references
from ralib.cli.common import with_pixel_size
from ralib.cli.flags import with_flags
from ralib.cli.parsing import length_px
from ralib.cli.settings import CLASSES, RUNNING, command
from ralib.types import ParticleSet, RalibError

if TYPE_CHECKING:
    from ralib.classification.growing import GrowingClassification, Grown
    from ralib.cli.interrupts import Stopped
    from ralib.cli.session import RunSession
    from ralib.io.arrivals import Arrivals
    from ralib.results.checkpoint import Checkpoint

PLAN = "arriving particles join the classes; classes are searched anew when the set has grown by half"


# fmt: off
@dataclass(frozen=True)
class WatchSettings(ClassificationSettings):
    """Options of `ralib watch`."""

    essential = frozenset({"classes", "per_class", "diameter", "ctf", "idle", "seed", "device", "pixel_size"})
    free_to_change = frozenset({"poll", "idle", "device", "batch", "datadir"})
    per_class: Annotated[
        int, typer.Option("--per-class", help="Particles there must be for each class: before --classes are reached, "
                          "there are fewer.", rich_help_panel=CLASSES)
    ] = 100
    poll: Annotated[
        float, typer.Option("--poll-seconds", help="Time between two looks.", rich_help_panel=RUNNING)
    ] = 10
    idle: Annotated[
        float, typer.Option("--idle-minutes", help="End when nothing has come for so long; 0: only by Ctrl-C.",
                            rich_help_panel=RUNNING)
    ] = 0

    def check(self) -> None:
        """Raise RalibError for impossible options."""
        super().check()
        if self.poll <= 0 or self.idle < 0:
            raise RalibError(f"--poll-seconds {self.poll:g} must be above 0, --idle-minutes {self.idle:g} not below")
        if self.datadir is not None and not self.datadir.is_dir():  # later it would pass for a file being written
            raise RalibError(f"--datadir {self.datadir}: there is no such folder")
        if self.per_class < 2 or (self.classes is not None and self.classes < 1):
            raise RalibError(f"--per-class {self.per_class} must be 2 at least, --classes {self.classes} 1 at least")

    def classes_for(self, n_particles: int) -> int:
        """Return the number of classes for so many particles: --classes, where they are enough for them."""
        from ralib.classification.schedule_settings import default_classes

        most = default_classes(n_particles) if self.classes is None else self.classes
        return max(1, min(most, n_particles // self.per_class))
# fmt: on


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "watch", watch)


def watch(
    source: Annotated[
        Path, typer.Argument(metavar="FOLDER|STAR", help="Folder that stacks (.mrcs) come into, or a STAR that grows.")
    ],
    outdir: Annotated[Path, typer.Argument(metavar="OUTDIR", help="Folder to make; must be new or empty.")],
    settings: WatchSettings,
    resume: Annotated[
        bool, typer.Option("--continue", help="Go on with the classification in OUTDIR.", rich_help_panel=RUNNING)
    ] = False,
    report: Report = True,
) -> None:  # fmt: skip
    """Classify particles as they arrive; OUTDIR always holds the classes of all that have come so far.

    New particles join the classes there are; when the set has grown by half, classes are searched anew. Ctrl-C, or
    --idle-minutes without an arrival, ends the watch.
    """
    from ralib.classification.growing import Grown
    from ralib.cli.common import resolve_device
    from ralib.cli.interrupts import Stopped
    from ralib.cli.session import RunSession
    from ralib.io.arrivals import Arrivals

    settings.check()
    device = resolve_device(settings.device)
    session = RunSession("classify", source, outdir, settings, device, resume=resume, report=report, grows=True)
    begun = session.newest_checkpoint()
    grown = None if begun is None else Grown.from_checkpoint(begun)
    known = {} if begun is None else {**begun.arrays, **begun.meta.get("arrivals", {})}
    arrivals = Arrivals(source, datadir=settings.datadir, state=known)
    with session.running():
        session.say(f"watching {source}; Ctrl-C ends")
        watched = _Watch(session, settings, arrivals, grown)
        try:
            watched.until_idle()
            watched.finish()
        except Stopped as stop:
            watched.tell_stop(stop)
        else:
            watched.tell_end()


@dataclass
class _Watch:
    """One watch: looks for arrivals, and has them classified and written.

    Attributes
    ----------
    session, settings, arrivals
        Of this watch.
    grown : Grown or None
        What an earlier watch of the same folder found.
    particles : ParticleSet or None
        All that have come so far.
    growing : GrowingClassification or None
        Their classification; None before there are any particles.
    """

    session: RunSession
    settings: WatchSettings
    arrivals: Arrivals
    grown: Grown | None
    particles: ParticleSet | None = None
    growing: GrowingClassification | None = None
    _reported: set[str] = field(default_factory=set)

    def until_idle(self) -> None:
        """Look, take in what has come, write; until nothing has come for long."""
        last, idle_s = time.monotonic(), 60 * self.settings.idle
        while not idle_s or time.monotonic() - last < idle_s:
            particles = self.arrivals.look()
            self._warn()
            if particles is not None:
                self._take(with_pixel_size(particles, self.settings.pixel_size, "--pixel-size"))
                last = time.monotonic()
            self._sleep()

    def finish(self) -> None:
        """Search for classes once more where the last search had clearly fewer particles than have come."""
        growing, particles = self.growing, self.particles
        if growing is None or particles is None or growing.grown is None:
            return
        if growing.searches(len(particles), last=True):
            self._classify(growing, particles, search=True)

    def tell_stop(self, stop: Stopped) -> None:
        """Print that a signal ended the watch, and the classes that OUTDIR has, if those are of all particles."""
        saved = self.grown is not None or (self.growing is not None and self.growing.grown is not None)
        what = "; --continue goes on watching" if saved else " before there were classes: start again"
        self.session.say(f"stopped by {stop}{what}")
        if self.session.record.get("classes"):
            self.session.say_classes()

    def tell_end(self) -> None:
        """Print the classes, or why there are none."""
        if self.growing is not None and self.growing.grown is not None:
            if self.session.record:
                self.session.say_classes()
        elif self.particles is not None:
            self.session.say(f"{len(self.particles)} particles have come: too few to classify")
        else:
            self.session.say("no particles arrived")

    def _take(self, particles: ParticleSet) -> None:
        self.particles = particles
        self.session.accept(particles)
        if self.growing is None:
            self.growing = self._classification(particles)
        n, growing = len(particles), self.growing
        if self._stands(growing, n):
            self.session.say(f"{_now()}: {n} particles, as before: their classes stand")
        elif growing.grown is None and n < (fewest := growing.fewest(n)):
            self.session.say(f"{_now()}: {n} particles have come; {fewest} are enough to begin with")
        else:
            # The same particles without a whole result: the last search was killed while that was written.
            self._classify(growing, particles, search=growing.searches(n, last=self._same(growing, n)))

    def _same(self, growing: GrowingClassification, n: int) -> bool:
        """Whether the particles are those that the checkpoint has taken in."""
        return growing.grown is not None and n == len(growing.grown.earlier.poses) and not self.arrivals.changed

    def _stands(self, growing: GrowingClassification, n: int) -> bool:
        """Whether the folder holds the classes of these very particles, so that going on changes nothing."""
        from ralib.results.summary.live import has_finished

        return self._same(growing, n) and has_finished(self.session.outdir)

    def _classification(self, particles: ParticleSet) -> GrowingClassification:
        """The classification as the options have it, from what an earlier watch found."""
        from ralib.classification.growing import GrowingClassification

        if (reach := self.settings.search) is not None:
            self.settings = replace(self.settings, search=length_px("--search", reach, particles.pixel_size_A))
        o, references = self.settings, given_references(self.session, particles, self.settings)
        count = len(references["references"]) if references else 1
        return GrowingClassification(
            classifier_of(self.session, o, count, o.seed, references),
            (lambda _: count) if references else o.classes_for,
            observer=self.session,
            grown=self.grown,
        )

    def _classify(self, growing: GrowingClassification, particles: ParticleSet, *, search: bool) -> None:
        """Classify all particles, and write checkpoint and result."""
        o, session, n = self.settings, self.session, len(particles)
        done, known = (0, 0) if growing.grown is None else growing.grown.begins(search=search)
        search_px = o.search_range_px(particles.box)
        expected = done + growing.planned_iterations(n, search=search)
        session.begin(particles, PLAN, ctf=o.ctf_mode(), search_range_px=search_px, iterations=expected, done=done)
        k = growing.classes_for(n, search=search)
        classes = "1 class" if k == 1 else f"{k} classes"
        what = f"search for {classes}" if search else f"they join {classes}"
        came = f"{n - known} particles came, {n} in all" if n > known else f"{n} particles"
        session.say(f"{_now()}: {came}: {what}")
        result = growing.take(particles, search=search)
        assert growing.grown is not None
        session.write(result)  # first: killed in between, the arrival is taken in again, with the same result
        session.save_checkpoint(_checkpoint_of(growing.grown, self.arrivals))

    def _warn(self) -> None:
        """Say what cannot be used, once."""
        for why in [*self.arrivals.left_out.values(), *self.arrivals.notices]:
            if why not in self._reported:
                self._reported.add(why)
                typer.echo(f"warning: {with_flags(why)}", err=True)

    def _sleep(self) -> None:
        """Wait for the next look, but not for long once a signal has come."""
        n = 0 if self.particles is None else len(self.particles)
        self.session.terminal.wait(f"{n} particles, waiting for more")
        until = time.monotonic() + self.settings.poll
        while time.monotonic() < until:
            self.session.flag.raise_if_set()
            time.sleep(min(0.1, self.settings.poll))


def _now() -> str:
    return time.strftime("%H:%M")


def _checkpoint_of(grown: Grown, arrivals: Arrivals) -> Checkpoint:
    """The classification, and which particles it has taken in."""
    from ralib.results.checkpoint import Checkpoint

    found, (rows, taken) = grown.checkpoint(), arrivals.state()
    return Checkpoint(found.number, found.arrays | rows, found.meta | {"arrivals": taken})
