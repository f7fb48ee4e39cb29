"""The automatic selection of a run: particles by their probability of being junk, with reasons for each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TRUE_LOST = 0.03
"""Expected share of the true particles that may be given up with the junk."""

SURELY_KEPT = 0.25
"""Probability of being junk below which no particle is given up."""


@dataclass(frozen=True)
class ClassChoice:
    """Decision about a class.

    Attributes
    ----------
    number : int
        The class, from 1.
    selected : bool
        Whether most of its members are kept.
    kept : int
        Number of members kept.
    reason : str
        Why.
    """

    number: int
    selected: bool
    kept: int
    reason: str


@dataclass(frozen=True)
class AutomaticSelection:
    """The selection of a run.

    Attributes
    ----------
    kept : ndarray of shape (n,)
        True for particles that are kept.
    classes : tuple[ClassChoice, ...]
        A decision for each class.
    junk_limit : float
        Highest junk probability of a kept particle.
    """

    kept: np.ndarray
    classes: tuple[ClassChoice, ...]
    junk_limit: float


def automatic_selection(
    junk: np.ndarray,
    class_index: np.ndarray,
    rows: Sequence[dict[str, Any]],
    causes: Sequence[str],
    *,
    believable: bool = True,
) -> AutomaticSelection:
    """Select particles by their own probability of being junk, whatever their class: `ralib select --auto`.

    Parameters
    ----------
    junk : ndarray of shape (n,)
        Probability of being junk.
    class_index : ndarray of shape (n,)
        Classes from 0; -1 for images in no class, which are left out.
    rows : Sequence[dict[str, Any]]
        For each class `class` (its number) and `junk` (mean probability of its members).
    causes : Sequence[str] of shape (k,)
        What distinguishes the junk of each class, in words, or ''.
    believable : bool, default True
        Whether the run's classes can be believed; nothing is kept of a run that cannot.

    Returns
    -------
    AutomaticSelection
        The selection.
    """
    usable = class_index >= 0
    limit = junk_limit(junk[usable])
    kept = usable & (junk <= limit) & believable
    members, stay = (np.bincount(class_index[some], minlength=len(rows)).tolist() for some in (usable, kept))
    choices = [_choice(*of_class, believable) for of_class in zip(rows, members, stay, causes, strict=True)]
    return AutomaticSelection(kept, tuple(choices), limit)


def junk_limit(junk: np.ndarray) -> float:
    """Return the highest probability of being junk, of junk (n,), that a kept particle has.

    Particles are removed, the worst first, until TRUE_LOST of the true ones would be lost if the probabilities are
    right. Those more likely true than SURELY_KEPT always stay: a set without junk keeps nearly all.
    """
    worst = np.sort(np.asarray(junk, dtype=np.float64))[::-1]
    if not len(worst):
        return SURELY_KEPT
    lost = np.cumsum(1 - worst)
    allowed = int(np.searchsorted(lost, TRUE_LOST * lost[-1], side="right"))
    return max(float(worst[min(allowed, len(worst) - 1)]), SURELY_KEPT)


def _choice(row: dict[str, Any], members: int, kept: int, cause: str, believable: bool) -> ClassChoice:
    share = f"{100 * row['junk']:.0f}% of its members are probably junk"
    why = f"{share}: {cause}" if cause else share
    number = int(row["class"])
    if not members:
        return ClassChoice(number, False, 0, "left out: empty")
    if not believable:
        return ClassChoice(number, False, 0, "left out: the classes of this run are not believed")
    if 2 * kept <= members:
        some = f"; {kept} of its {members} members look true and are kept" if kept else ""
        return ClassChoice(number, False, kept, f"left out: {why}{some}")
    if kept < members:
        return ClassChoice(number, True, kept, f"kept without {members - kept} of its {members} members: {why}")
    return ClassChoice(number, True, kept, f"kept: {share}")
