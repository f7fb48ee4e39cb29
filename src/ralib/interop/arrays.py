"""Class averages with named axes, for xarray and for napari."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray


def required(name: str, extra: str) -> Any:
    """Import an optional library.

    Parameters
    ----------
    name : str
        Name of the library.
    extra : str
        Extra of this package that installs it.

    Returns
    -------
    module
        The library.

    Raises
    ------
    ImportError
        With the command that installs it.
    """
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"{name} is not installed: pip install 'cryo-ralib[{extra}]'") from error


def dataset_of(averages: Any) -> xarray.Dataset:
    """Convert class averages to xarray; see `ClassAverages.to_xarray`."""
    xr = required("xarray", "xarray")
    images = _host(averages.images)
    k, n = images.shape[:2]
    pixel_A = averages.pixel_size_A
    at = (np.arange(n) - n // 2) * (pixel_A or 1.0)
    unit = {"units": "angstrom" if pixel_A else "pixel"}
    coordinates = {"class": np.arange(1, k + 1), "y": ("y", at, unit), "x": ("x", at, unit)}
    variables: dict[str, Any] = {
        "average": (("class", "y", "x"), images),
        "members": ("class", _host(averages.members)),
    }
    if averages.half_images is not None:
        variables["half_average"] = (("half", "class", "y", "x"), _host(averages.half_images))
    if averages.frc is not None:
        frc = _host(averages.frc)
        frequency = np.arange(frc.shape[1]) / (n * (pixel_A or 1.0))
        coordinates["frequency"] = ("frequency", frequency, {"units": "1/" + unit["units"]})
        variables["frc"] = (("class", "frequency"), frc)
    attributes = {} if pixel_A is None else {"pixel_size_A": pixel_A}
    return xr.Dataset(variables, coordinates, attributes)


def layer_of(averages: Any, viewer: Any, name: str) -> Any:
    """Show class averages as an image layer of a napari viewer, scaled in Angstrom, with a slider over classes.

    Parameters
    ----------
    averages : Any
        Class averages.
    viewer : Any
        napari viewer, or None for a new one.
    name : str
        Name of the layer.

    Returns
    -------
    napari.Viewer
        The viewer.
    """
    viewer = viewer if viewer is not None else required("napari", "napari").Viewer()
    images, pixel_A = _host(averages.images), averages.pixel_size_A or 1.0
    half = images.shape[-1] // 2 * pixel_A
    low, high = np.percentile(images, [0.5, 99.5])
    viewer.add_image(
        images,
        name=name,
        colormap="gray",
        contrast_limits=(float(low), float(high)),
        scale=(1.0, pixel_A, pixel_A),
        translate=(0.0, -half, -half),
        metadata={"members": _host(averages.members), "pixel_size_A": averages.pixel_size_A},
    )
    return viewer


def _host(values: Any) -> np.ndarray:
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
