"""The options that `ralib classify` and `ralib watch` share, and the classifier that they describe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from ralib.cli.alignment_options import (
    BatchSize,
    Datadir,
    Device,
    NoMirror,
    PixelSize,
    Seed,
    check_seed_and_batch,
)
from ralib.cli.parsing import LENGTH_UNITS, completed, length
from ralib.cli.settings import CLASSES, RUNNING, SEARCH, Settings
from ralib.types import ParticleSet, RalibError

if TYPE_CHECKING:
    from ralib.classification.classifier import Classifier
    from ralib.classification.schedule_settings import ScheduleSettings
    from ralib.cli.session import RunSession


# fmt: off
@dataclass(frozen=True)
class ClassificationSettings(Settings):
    """Options of every classification; their help describes them."""

    classes: Annotated[
        int | None, typer.Option("--classes", help="Number of classes. [default: by the number of particles]",
                                 rich_help_panel=CLASSES)
    ] = None
    references: Annotated[
        Path | None, typer.Option("--references", help="Class averages to begin with, of any program, box and pixel "
                                  "size, or the folder of a run; they say how many classes. [default: single "
                                  "particles]",
                                  rich_help_panel=CLASSES)
    ] = None
    balance: Annotated[
        float, typer.Option("--balance", help="Pressure towards equal sizes: 0 none, 1 equal. A little keeps a class "
                            "from swallowing what others explain as well.", rich_help_panel=CLASSES)
    ] = 0.3
    equal: Annotated[
        bool, typer.Option("--EQ", help="End with classes of equal size.", rich_help_panel=CLASSES)
    ] = False
    diameter: Annotated[
        float | None, typer.Option("--diameter", help="Diameter of the mask, A. [default: measured]",
                                   rich_help_panel=SEARCH)
    ] = None
    resolution: Annotated[
        float | None, typer.Option("--resolution", help="Finest detail compared, A. [default: what the "
                                   "number of classes and the data support]", rich_help_panel=SEARCH)
    ] = None
    low_limit: Annotated[
        float | None, typer.Option("--low-limit", help="Coarsest detail compared, A. [default: none]",
                                   rich_help_panel=SEARCH)
    ] = None
    search: Annotated[
        Any, typer.Option("--search", parser=length, metavar="LENGTH", rich_help_panel=SEARCH,
                          help=f"Radius of the shifts from the centre that are searched, {LENGTH_UNITS}. "
                          "[default: a tenth of the box]")
    ] = None
    nomirror: NoMirror = False
    ctf: Annotated[
        str, typer.Option("--ctf", help="auto: wiener where the input has CTF parameters; wiener; off; flipped: wiener "
                          "of images whose phases are right already.", rich_help_panel=SEARCH,
                          autocompletion=completed("auto", "wiener", "off", "flipped"))
    ] = "auto"
    skip_align: Annotated[
        bool, typer.Option("--skip-align", help="Keep the poses the particles come with.", rich_help_panel=SEARCH)
    ] = False
    helical: Annotated[bool, typer.Option("--helical", hidden=True)] = False
    quick: Annotated[
        bool, typer.Option("--quick", help="A first look in a third of the time: classes of 20 particles each "
                           "(400 in all at least) at less detail, one exchange; then all particles join them.",
                           rich_help_panel=RUNNING)
    ] = False
    thorough: Annotated[
        bool, typer.Option("--thorough", help="A longer search: 4 in place of 2.5 seeds a class, thinned more slowly, "
                           "6 exchanges in place of 3.", rich_help_panel=RUNNING)
    ] = False
    seed: Seed = 1000
    device: Device = "auto"
    batch: BatchSize = None
    datadir: Datadir = None
    pixel_size: PixelSize = None

    def ctf_mode(self) -> str:
        """--ctf as the `Classifier` calls it: auto, on, off or flipped."""
        from ralib.cli.parsing import known_ctf_mode

        chosen = known_ctf_mode(self.ctf, ("auto", "wiener", "off", "flipped"))
        return "on" if chosen == "wiener" else chosen

    def check(self) -> None:
        """Raise RalibError for options that contradict each other, or that do nothing here."""
        check_seed_and_batch(self.seed, self.batch)
        if self.classes is not None and self.classes < 1:
            raise RalibError(f"--classes {self.classes}: ask for at least 1")
        if self.helical:
            raise RalibError("--helical: helical segments are not classified yet: extract them as single particles")
        if self.quick and self.thorough:
            raise RalibError("--quick and --thorough contradict each other: give one of them")

    def search_range_px(self, box: int) -> float | None:
        """How far shifts are searched, where they are."""
        from ralib.classification.options import usual_search_px

        return None if self.skip_align else self.search or usual_search_px(box)

    @property
    def plan(self) -> ScheduleSettings:
        """The schedule's numbers."""
        from ralib.classification.schedule_settings import ScheduleSettings

        if self.quick:
            return ScheduleSettings.quick()
        return ScheduleSettings.thorough() if self.thorough else ScheduleSettings()
# fmt: on


def given_references(session: RunSession, particles: ParticleSet, o: ClassificationSettings) -> dict[str, Any]:
    """What the classifier takes of --references: the images and their pixel size; nothing without."""
    if o.references is None:
        return {}
    images, size_A = reference_images(o.references)
    if o.classes not in (None, len(images)):
        raise RalibError(f"--classes {o.classes}: {o.references} has {len(images)} references: leave --classes out")
    own_A = particles.pixel_size_A
    if size_A == 1.0 and own_A is not None and own_A != 1.0:  # what programs write that do not know it
        session.say(
            f"warning: the header of {o.references} says 1 A/px, the particles have {own_A:g} A/px; they are compared "
            "pixel by pixel: make sure that the references are of the particles' scale"
        )
        size_A = None
    return {"references": images, "references_pixel_size_A": size_A}


def reference_images(path: Path) -> tuple[np.ndarray, float | None]:
    """Read class averages.

    Parameters
    ----------
    path : Path
        Image file, RELION's _model.star or _optimiser.star, or the folder of a finished run.

    Returns
    -------
    images : ndarray of shape (k, n, n)
        The averages.
    pixel_size_A : float or None
        Their pixel size, Angstrom.
    """
    from ralib import io
    from ralib.results.run_record import check_finished, read_record

    if path.is_dir():
        check_finished(read_record(path), path)
        path = path / "class_averages.mrcs"
    return io.open_references(path)


def classifier_of(
    session: RunSession, o: ClassificationSettings, n_classes: int, seed: int, references: dict[str, Any]
) -> Classifier:
    """Return the classifier that the options describe.

    Parameters
    ----------
    session : RunSession
        Has the device and the ranks.
    o : ClassificationSettings
        Options.
    n_classes : int
        Number of classes.
    seed : int
        Of all random numbers.
    references : dict[str, Any]
        Result of `given_references`.

    Returns
    -------
    Classifier
        The classifier.
    """
    from ralib.classification.classifier import Classifier

    return Classifier(
        n_classes=n_classes,
        diameter_A=o.diameter,
        resolution_A=o.resolution,
        lowest_A=o.low_limit,
        balance=o.balance,
        equal_sizes=o.equal,
        mirror=not o.nomirror,
        ctf=o.ctf_mode(),
        search_px=o.search,
        skip_align=o.skip_align,
        seed=seed,
        batch_size=o.batch,
        device=session.device,
        ranks=session.ranks,
        plan=o.plan,
        **references,
    )
