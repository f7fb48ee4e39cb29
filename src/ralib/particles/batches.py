"""Particles in batches on the device: read ahead, checked, normalised, CTF applied; kept there if they fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ralib.images.ctf import correct_ctf, flipped_and_matched
from ralib.images.normalise import normalise_background, usable_images
from ralib.kernels import Samples, interpolation_samples
from ralib.particles.prefetch import Loaded, Loader
from ralib.runtime.chunks import in_gpu_chunks
from ralib.runtime.memory import free_memory, total_memory
from ralib.types import CtfParameters, ParticleSet, RalibError

RESIDENT_SHARE = 0.45
"""Of the free memory: what particles may take; batches on their way, the search and its templates need the rest."""
LEAST_BOX = 8
"""Images smaller than this, pixels, hold neither a background nor rings to align."""
AT_ONCE = 1024
"""Images whose backgrounds are fitted at once on a GPU: in chunks of one size none depends on the images beside it."""
CTF_MODES = ("off", "wiener", "flip")


@dataclass(frozen=True)
class Batch:
    """A batch of particles.

    Attributes
    ----------
    number : int
        Number of the batch in a pass; below 0 for a selection.
    index : ndarray of shape (b,)
        Numbers of the particles, in main memory.
    images : Tensor of shape (b, n, n)
        Their normalised images, as they are compared.
    turnable : Tensor or Samples
        What `rotate_shift_sum` takes: the images, or those multiplied by their CTF, or interpolation samples of these.
    usable : Tensor of shape (b,)
        False for images that are not finite or constant.
    first : ndarray of shape (b,), optional
        Number whose parity decides on the half data set, where images occur more than once; else None.
    """

    number: int
    index: np.ndarray
    images: Tensor
    turnable: Tensor | Samples
    usable: Tensor
    first: np.ndarray | None = None

    @property
    def rows(self) -> slice:
        """Numbers of the particles as a slice."""
        return slice(int(self.index[0]), int(self.index[-1]) + 1)

    def rows_from(self, start: int) -> slice:
        """The same in a table that begins with particle `start`."""
        return slice(self.rows.start - start, self.rows.stop - start)

    @property
    def half(self) -> Tensor:
        """Half data set (b,) of each particle: 0 for even numbers, 1 for odd ones, the same for the same image."""
        if self.first is not None:
            return torch.from_numpy(self.first % 2).to(self.usable.device)
        if self.number < 0:
            return torch.from_numpy(self.index % 2).to(self.usable.device)
        # Made where it is needed: a copy from the host would wait for all work before it.
        return torch.arange(self.rows.start, self.rows.stop, device=self.usable.device) % 2


class ParticleBatches:
    """One rank's particles, batch after batch, the same in every pass.

    From each image the plane fitted to its background is subtracted, and the background's standard deviation becomes 1.
    Images that are not finite or constant become zeros and are marked as not usable.

    Where `resident_bytes` hold all images they stay on the device: with their interpolation samples where these are of
    use, alone, or in half precision, whichever is the first to fit. Where they hold at least a quarter of the images in
    half precision, as many batches as fit stay. All others are read again in every pass, a few batches ahead.

    Parameters
    ----------
    particles : ParticleSet
        All particles of the run.
    rows : range
        Those of this rank.
    batch_size : int
        Particles of a batch.
    device : torch.device
        Where the batches are put.
    background_radius : float
        The background lies outside this radius, pixels.
    ctf : str, default 'off'
        'flip' flips phases; 'wiener' does so, and multiplies the images that are averaged by their CTF (the matched
        filter, for averages that divide by the sum of CTF^2); 'off' does neither.
    strict : bool, default False
        Whether an unusable image raises an error.
    resident_bytes : int, optional
        Bytes of particles kept on the device; by default RESIDENT_SHARE of its free memory.
    turned_often : bool, default True
        Whether images are turned in every pass, so that their interpolation samples are worth keeping.

    Attributes
    ----------
    bad : set of int
        Numbers of unusable images.
    resident : str
        What is kept: 'samples', 'single', 'half' or 'none'.
    rounded : bool
        Whether images pass through half precision; then all do, kept or not, so that the memory that is free at the
        moment changes no bit of a run.
    """

    def __init__(
        self,
        particles: ParticleSet,
        rows: range,
        *,
        batch_size: int,
        device: torch.device,
        background_radius: float,
        ctf: str = "off",
        strict: bool = False,
        resident_bytes: int | None = None,
        turned_often: bool = True,
    ) -> None:
        if particles.box < LEAST_BOX:
            raise RalibError(f"images of {particles.box} px are too small to be aligned: {LEAST_BOX} px are needed")
        if ctf not in CTF_MODES:
            raise RalibError(f"ctf {ctf!r} is unknown: choose one of {', '.join(CTF_MODES)}")
        if ctf != "off" and particles.ctf is None:
            raise RalibError("the particles have no CTF parameters: use `ctf=off`, or give a file that has them")
        if ctf != "off" and particles.pixel_size_A is None:
            raise RalibError("the CTF needs a pixel size and no file says it: give one with `ParticleSet.pixel_size_A`")
        self.particles, self.rows, self.device = particles, rows, device
        self.batch_size, self.ctf, self.strict = batch_size, ctf, strict
        self.bad: set[int] = set()
        self.background_radius = background_radius
        self._budget = int(RESIDENT_SHARE * free_memory(device)) if resident_bytes is None else resident_bytes
        self._ways = ways = _ways(len(rows), particles.box, matched=ctf == "wiener")
        # In half precision also some of them may stay.
        enough = ways | {"half": ways["half"] // 4}
        if not turned_often:
            del enough["samples"]
        self.resident = next((way for way, size in enough.items() if size <= self._budget), "none")
        self.rounded = self.resident == "half"
        self._kept: dict[int, Batch] = {}
        self._loader = Loader(particles.images, device)
        self.reading = self._loader.reading

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        blocks = [
            np.arange(start, min(start + self.batch_size, self.rows.stop))
            for start in range(self.rows.start, self.rows.stop, self.batch_size)
        ]
        loaded = self._loader.blocks([block for i, block in enumerate(blocks) if i not in self._kept])
        for number, block in enumerate(blocks):
            batch = self._kept[number] if number in self._kept else self._batch(number, block, next(loaded))
            if number not in self._kept and self._fits(batch):
                self._kept[number] = batch
            yield self._in_single_precision(batch)

    def select(self, index: np.ndarray) -> Iterator[Batch]:
        """Iterate over this rank's particles among `index` (sorted), in batches of any size."""
        mine = index[(index >= self.rows.start) & (index < self.rows.stop)]
        number = (mine - self.rows.start) // self.batch_size
        for batch in self._kept.values():
            wanted = np.flatnonzero(np.isin(batch.index, mine[number == batch.number]))
            if len(wanted):
                at = torch.from_numpy(wanted).to(self.device)
                part = Batch(-1, batch.index[wanted], batch.images[at], batch.turnable[at], batch.usable[at],
                             None if batch.first is None else batch.first[wanted])  # fmt: skip
                yield self._in_single_precision(part)
        rest = mine[~np.isin(number, list(self._kept))]
        for start in range(0, len(rest), self.batch_size):
            block = rest[start : start + self.batch_size]
            yield self._in_single_precision(self._batch(-1, block, self._loader.block(block)))

    def round_images(self, rounded: bool) -> None:
        """Set before the first pass whether images pass through half precision, whatever memory there is."""
        if self.resident == "half" and not rounded:
            self.resident = "none"
        self.rounded = rounded

    def recut(self, batch_size: int, *, keep: bool) -> None:
        """Change the size of batches from the next pass on.

        Parameters
        ----------
        batch_size : int
            Particles of a batch.
        keep : bool
            Whether batches may stay on the device.
        """
        self._kept.clear()
        self.batch_size = batch_size
        if not keep:
            self.resident = "none"

    def ctf_parameters(self, index: np.ndarray) -> CtfParameters | None:
        """Return the CTF parameters of particles (b,) where averages are to be corrected for the CTF."""
        return None if self.particles.ctf is None or self.ctf != "wiener" else self.particles.ctf[index]

    @property
    def rounds_samples(self) -> bool:
        """Whether images are turned by interpolation samples in half precision, kept or not: on a GPU."""
        return self.device.type != "cpu"

    @property
    def coming_bytes(self) -> int:
        """Device memory that batches still to be read will occupy."""
        if self.resident == "none":
            return 0
        whole = min(self._ways[self.resident], self._budget)
        return whole * (len(self) - len(self._kept)) // len(self)

    def _fits(self, batch: Batch) -> bool:
        """Whether one more batch fits."""
        if self.resident in ("samples", "single"):
            return True  # planned for all of them
        half_bytes = self._ways["half"] // len(self.rows)
        kept = sum(len(b.index) for b in self._kept.values())
        return self.resident == "half" and half_bytes * (kept + len(batch.index)) <= self._budget

    def _batch(self, number: int, block: np.ndarray, loaded: Loaded) -> Batch:
        images, arrived = loaded
        if arrived is not None:
            torch.cuda.current_stream(self.device).wait_event(arrived)
            images.record_stream(torch.cuda.current_stream(self.device))
        images, matched, usable = self._prepare(block, images)
        if self.rounded:
            images, matched = images.half(), None if matched is None else matched.half()
        averaged = images if matched is None else matched
        turnable: Tensor | Samples = averaged
        if self.resident == "samples":
            samples = interpolation_samples(averaged.float())
            turnable = samples.rounded() if self.rounds_samples else samples
        same = self.particles.same_as
        return Batch(number, block, images, turnable, usable, None if same is None else same[block])

    def _prepare(self, block: np.ndarray, raw: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Images as they are compared; multiplied by their CTF, if averages are made of those; which are usable."""
        images = raw.to(self.device, torch.float32, non_blocking=True)
        usable = usable_images(images)
        if self.particles.usable is not None:
            usable &= torch.from_numpy(self.particles.usable[block]).to(self.device)
        normalise = partial(normalise_background, radius_px=self.background_radius)
        images, matched = in_gpu_chunks(normalise, images.masked_fill(~usable[:, None, None], 0.0), AT_ONCE), None
        if not bool(usable.all()):
            self._note_bad(block[~usable.cpu().numpy()])
        if self.ctf != "off" and self.particles.ctf is not None and self.particles.pixel_size_A is not None:
            given = images, self.particles.ctf[block], self.particles.pixel_size_A
            unusable = ~usable[:, None, None]  # and a CTF that cannot be meant is not finite
            if self.ctf == "wiener":
                images, matched = (way.masked_fill(unusable, 0.0) for way in flipped_and_matched(*given))
            else:
                images = correct_ctf(*given, phases_only=True, noise_as_taken=True).masked_fill(unusable, 0.0)
        return images, matched, usable

    def _in_single_precision(self, batch: Batch) -> Batch:
        """The batch as the loops compute with it."""
        if batch.images.dtype != torch.float16:
            return batch
        images, turnable = batch.images.float(), batch.turnable
        if turnable is batch.images:
            turnable = images
        elif isinstance(turnable, Tensor):
            turnable = turnable.float()
        return replace(batch, images=images, turnable=turnable)

    def _note_bad(self, numbers: np.ndarray) -> None:
        if self.strict:
            raise RalibError(
                f"particle {numbers[0] + 1} is not a usable image (not finite, or constant): "
                "repair the stack, or leave `strict` out to go on without it"
            )
        self.bad.update(int(i) for i in numbers)


def usual_batch_size(device: torch.device, box: int, most_bytes: int, *, gpu_share: float) -> int:
    """Return how many particles a batch has by default.

    Parameters
    ----------
    device : torch.device
        Where batches are put.
    box : int
        Size of the images, pixels.
    most_bytes : int
        Bytes of a batch in single precision, at most.
    gpu_share : float
        Share of a GPU's memory that it takes at most, whatever is free: so particles are cut alike each time.

    Returns
    -------
    int
        Number of particles.
    """
    if device.type == "cuda":
        most_bytes = min(most_bytes, int(gpu_share * total_memory(device)))
    return max(64, most_bytes // (4 * box**2))


def _ways(n: int, box: int, *, matched: bool) -> dict[str, int]:
    """Bytes that n images take on the device, by how they are kept; with `matched`, those that are averaged as well."""
    single = 4 * n * box**2
    images = 2 * single if matched else single
    return {"samples": single * 2 + 16 * single // box, "single": images, "half": images // 2}
