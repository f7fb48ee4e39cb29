"""Translation of the library's parameter names in messages to the options of the command line.

Messages of the library name its own parameters, in backticks: a Python user reads "`outer_radius` must be above 0", the
user of a command "--ou must be above 0". This is the one place of the translation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from ralib.types import Notice

_SAME_NAME = (
    *("auto", "balance", "box", "center", "classes", "ctf", "datadir", "excluded", "junk", "normalise", "port"),
    *("recenter", "snr", "strict", "where"),
    *(
        "CTF",
        "EQ",
        "dst",
        "ir",
        "maxit",
        "mode",
        "nomirror",
        "ou",
        "random_method",
        "randomize",
        "rs",
        "ts",
        "xr",
        "yr",
    ),
)
FLAGS: Mapping[str, str] = {name: f"--{name}" for name in _SAME_NAME} | {
    "ParticleSet.pixel_size_A": "--pixel-size",
    "ParticleSet.poses": "--reference-poses",
    "astigmatism_A": "--astigmatism",
    "background_radius_px": "--background-radius",
    "batch_size": "--batch",
    "box_px": "--box",
    "clip_px": "--clip",
    "coloured_noise": "--coloured-noise",
    "defocus_range_A": "--defocus",
    "diameter_A": "--diameter",
    "distance_A": "--remove-duplicates",
    "equal_sizes": "--EQ",
    "flip_phases": "--phase-flip",
    "inner_radius": "--ir",
    "iterations": "--maxit",
    "junk_fraction": "--junk",
    "lowest_A": "--low-limit",
    "mask_radius_px": "--mask-radius",
    "mask_edge_px": "--mask-edge",
    "max_junk": "--max-junk",
    "min_class_score": "--min-class-score",
    "min_fit": "--min-fit",
    "min_members": "--min-members",
    "min_posterior": "--min-posterior",
    "min_resolution_A": "--min-resolution",
    "method": "--method",
    "n_classes": "--classes",
    "n_references": "--references",
    "n_particles": "--particles",
    "n_views": "--views",
    "outer_radius": "--ou",
    "particles_per_micrograph": "--micrograph",
    "parts": "--split",
    "pixel_size_A": "--pixel-size",
    "preferred_fraction": "--preferred",
    "references": "--references",
    "remove_duplicates_A": "--remove-duplicates",
    "resident_bytes": "--memory",
    "resolution_A": "--resolution",
    "resume": "--continue",
    "search_px": "--search",
    "seed": "--seed",
    "shift_range_xy_px": "--xr, --yr",
    "shift_sd_px": "--shift-sd",
    "shift_step_px": "--ts",
    "skip_align": "--skip-align",
    "spherical_aberration_mm": "--cs",
    "stages": "--xr",
    "user_function": "--function",
    "voltage_kV": "--voltage",
    "view_frequencies": "--view-frequencies",
}
"""Options by parameter; those of all commands, since one name means one thing throughout the library."""

FLAGS_OF_COMMAND: Mapping[str, Mapping[str, str]] = {
    "mref": {"references": "REFERENCES"},
    "prepare": {"pixel_size_A": "--to-pixel-size", "ParticleSet.pixel_size_A": "--input-pixel-size"},
}
"""What some commands call otherwise."""

_PARAMETER = re.compile(r"`(?P<name>[A-Za-z_][\w.]*)(?:=(?P<value>[^`\s]+))?`")


def with_flags(text: str, command: str = "") -> str:
    """Replace each parameter in backticks by the option that sets it: "`ctf=off`" becomes "--ctf off".

    Parameters
    ----------
    text : str
        A message.
    command : str, default ''
        Name of the command.

    Returns
    -------
    str
        The message.
    """
    flags = {**FLAGS, **FLAGS_OF_COMMAND.get(command, {})}

    def flag(found: re.Match[str]) -> str:
        name, value = found["name"], found["value"]
        if name not in flags:
            return found[0]
        return flags[name] if value is None else f"{flags[name]} {value}"

    return _PARAMETER.sub(flag, text)


def flagged(notice: Notice) -> Notice:
    """Return a notice with the options of the command line."""
    return replace(
        notice, what=with_flags(notice.what), where=with_flags(notice.where), remedy=with_flags(notice.remedy)
    )
