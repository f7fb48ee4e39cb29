"""The state of a schedule as plain arrays and values, from which `classify --continue` continues to the bit."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ralib.classification.em import BEYOND
from ralib.classification.leave_one_out import SelfContribution
from ralib.classification.m_step import RingAverages
from ralib.classification.schedule import ClassificationSchedule
from ralib.classification.schedule_settings import ScheduleProgress
from ralib.classification.state import State
from ralib.results.checkpoint import Checkpoint, check_arrays, unpacking

# Of the fits, the largest part, only the best is kept: every iteration makes them anew, and nothing else looks back.
_PARTICLES = ("psi_deg", "origin_xy_px", "mirror", "class_index", "posterior", "scale")
HALF = "half_precision"
_CLASSES = ("mean_scale", "spread_px", "members")
_AVERAGES = ("orders", "halves", "frc", "gain")


def checkpoint_of(
    schedule: ClassificationSchedule, state: State, figures: list[dict[str, Any]], *, half: bool = False
) -> Checkpoint:
    """Return the checkpoint of a schedule after an iteration.

    Parameters
    ----------
    schedule : ClassificationSchedule
        The schedule of all particles, or of a sample.
    state : State
        Its state.
    figures : list of dict
        Figures of the iterations so far.
    half : bool, default False
        Whether the run keeps its spectra in half precision, and is to when it goes on.

    Returns
    -------
    Checkpoint
        The checkpoint.
    """
    assert state.averages is not None
    everyone = schedule.model.shard.gather
    arrays = {name: everyone(getattr(state, name)).cpu().numpy() for name in _PARTICLES}
    arrays |= {name: getattr(state, name).cpu().numpy() for name in _CLASSES}
    arrays |= {f"averages.{name}": getattr(state.averages, name).cpu().numpy() for name in _AVERAGES}
    assert state.own is not None
    arrays["own_share"] = everyone(state.own.share).cpu().numpy()  # class and pose of the last M-step are the state's
    arrays["best"] = everyone(state.fit.amax(1)).cpu().numpy()
    aside = everyone(schedule.model.particles.aside)
    if bool(aside.any()):
        arrays["set_aside"] = aside.cpu().numpy()
    if schedule.rows is not None:
        arrays["rows"] = schedule.rows.cpu().numpy()
    if schedule.noise:
        arrays["noise"] = torch.stack(schedule.noise).cpu().numpy()
    arrays["generator"] = schedule.generator.get_state().numpy()
    meta: dict[str, Any] = {"position": asdict(schedule.position), "n_classes": schedule.k}
    meta |= {"log": list(schedule.log), "figures": list(figures)}
    if half:
        meta[HALF] = True
    return Checkpoint(len(figures), arrays, meta)


def resume_schedule(
    schedule: ClassificationSchedule, checkpoint: Checkpoint, device: torch.device
) -> tuple[ClassificationSchedule, State, list[dict[str, Any]]]:
    """Set a schedule to a saved state.

    Parameters
    ----------
    schedule : ClassificationSchedule
        The schedule of all particles, changed in place.
    checkpoint : Checkpoint
        Result of `checkpoint_of`.
    device : torch.device
        Where the tensors are put.

    Returns
    -------
    ClassificationSchedule
        The schedule that was saved: the one given, or that of its sample.
    State
        Its state.
    list of dict
        Figures of the iterations so far.
    """
    if "rows" in checkpoint.arrays:
        check_arrays(checkpoint.arrays, {"rows": "int64 n"})
        with unpacking():
            rows = _ascending(torch.from_numpy(checkpoint.arrays["rows"].copy()), schedule.model.shard.n)
        some = schedule.part(rows.to(device))
    else:
        some = schedule
    check_arrays(checkpoint.arrays, _layout(some))
    with unpacking():
        state, figures = _unpacked(some, checkpoint, device)
    if some is not schedule:
        schedule.sample = some, state
    return some, state, figures


def _ascending(rows: Tensor, n: int) -> Tensor:
    """Numbers of particles, which ascend and are below n."""
    if len(rows) < 2 or int(rows[0]) < 0 or int(rows[-1]) >= n or not bool((rows.diff() > 0).all()):
        raise ValueError("rows")
    return rows


def _layout(schedule: ClassificationSchedule) -> dict[str, str]:
    """Types and axes of a checkpoint's arrays, as `check_arrays` takes them."""
    n = schedule.model.shard.n
    per_particle = {"psi_deg": f"float32 {n}", "origin_xy_px": f"float32 {n} 2", "mirror": f"bool {n}"}
    per_particle |= {"class_index": f"int64 {n}", "posterior": f"float32? {n}", "scale": f"float32? {n}"}
    per_class = {"mean_scale": "float32?", "spread_px": "float32?", "members": "float32 k"}
    averages = {"averages.orders": "complex64 k r m", "averages.halves": "complex64 2 k r m"}
    averages |= {"averages.frc": "float32? k r", "averages.gain": "float32? k r"}
    rest = {"own_share": f"float32? {n} q", "best": f"float32? {n}", "noise?": "float32 s w", "generator": "uint8 g"}
    return per_particle | per_class | averages | rest | {"rows?": f"int64 {n}", "set_aside?": f"bool {n}"}


def _unpacked(
    schedule: ClassificationSchedule, checkpoint: Checkpoint, device: torch.device
) -> tuple[State, list[dict[str, Any]]]:
    arrays, meta = checkpoint.arrays, checkpoint.meta
    position = {name: int(value) for name, value in meta["position"].items()}
    rings, most = position["rings"], schedule.model.particles.grid.n_rings
    if rings > most or min(rings + BEYOND, most) != arrays["averages.frc"].shape[1]:
        raise ValueError(f"{rings} rings")
    begun, cleaned = (bool(position.pop(name)) for name in ("begun", "cleaned"))
    schedule.position = ScheduleProgress(begun, **position, cleaned=cleaned)
    schedule.log[:] = meta["log"]
    schedule.generator.set_state(torch.from_numpy(arrays["generator"].copy()))

    def part(name: str) -> Tensor:
        return torch.from_numpy(arrays[name].copy()).to(device)

    def own_part(name: str) -> Tensor:
        return torch.from_numpy(arrays[name][schedule.model.shard.rows].copy()).to(device)

    if "set_aside" in arrays:
        schedule.set_aside(own_part("set_aside"))
    schedule.k = int(meta["n_classes"])
    for ratio in part("noise") if "noise" in arrays else []:
        schedule.use_noise(ratio)  # one after the other, as the run did: the same bits
    averages = RingAverages(*(part(f"averages.{name}") for name in _AVERAGES))
    known = {name: own_part(name) for name in _PARTICLES} | {name: part(name) for name in _CLASSES}
    fit = own_part("best")[:, None].expand(-1, len(known["members"]))
    pose = known["psi_deg"], known["origin_xy_px"], known["mirror"]
    own = SelfContribution(known["class_index"], *pose, share=own_part("own_share"))
    return State(fit=fit, averages=averages, own=own, **known), list(meta["figures"])
