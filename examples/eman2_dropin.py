"""A loop over EMAN2's rot_shift2D and Util.add_img, and the one call that replaces it.

    python examples/eman2_dropin.py

Where EMAN2 is installed, its loop runs beside ours. Elsewhere ours is compared with results that EMAN2 left in
tests/golden/operations.npz, so that the example shows the agreement anywhere.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ralib.images.transform import rotate_shift, rotate_shift_average

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden" / "operations.npz"


def averages_with_eman2(images: np.ndarray, parameters: np.ndarray, classes: np.ndarray, n_classes: int) -> np.ndarray:
    """What an EMAN2 script does: one image at a time, one core."""
    from EMAN2 import EMNumPy, Util
    from fundamentals import rot_shift2D
    from utilities import model_blank

    box = images.shape[-1]
    sums = [model_blank(box, box) for _ in range(n_classes)]
    for image, (alpha, sx, sy, mirror), k in zip(images, parameters, classes, strict=True):
        turned = rot_shift2D(EMNumPy.numpy2em(image), float(alpha), float(sx), float(sy), int(mirror))
        Util.add_img(sums[k], turned)
    members = np.bincount(classes, minlength=n_classes)
    return np.stack([EMNumPy.em2numpy(total) / max(m, 1) for total, m in zip(sums, members, strict=True)])


def averages_with_ralib(images: np.ndarray, parameters: np.ndarray, classes: np.ndarray, n_classes: int) -> np.ndarray:
    """The same in one call. EMNumPy.em2numpy(image) gives NumPy arrays: np.stack them, or pass what you have."""
    alpha, sx, sy, mirror = parameters.T
    return rotate_shift_average(images, alpha, sx, sy, mirror, classes, n_classes, method="quadratic")


def agreement(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference in units of the data's standard deviation."""
    return float(np.abs(ours - theirs).max() / theirs.std())


def main() -> None:
    """Compares, and shows the better interpolation."""
    with np.load(GOLDEN) as data:
        images, parameters = data["images"], data["alpha_sx_sy_mirror"]
        turned_by_eman2 = data["rot_shift2D_quadratic_background"]
    classes = np.arange(len(images)) % 3
    ours = averages_with_ralib(images, parameters, classes, 3)
    try:
        theirs, source = averages_with_eman2(images, parameters, classes, 3), "EMAN2, run now"
    except ImportError:
        theirs = np.stack([turned_by_eman2[classes == k].mean(0) for k in range(3)])
        source = "EMAN2's stored results (EMAN2 is not installed here)"
    difference = agreement(ours, theirs)
    print(f"averages against {source}: largest difference {difference:.1e} standard deviations")
    if difference > 1e-4:
        raise SystemExit("the averages differ from EMAN2's")
    # The default, 'cubic', keeps the high frequencies that EMAN2's quadratic form loses.
    alpha, sx, sy, mirror = parameters.T
    power = {
        method: float(rotate_shift(images, alpha, sx, sy, mirror, method=method, boundary="cyclic").var())
        for method in ("quadratic", "cubic")
    }
    kept = {method: value / float(images.var()) for method, value in power.items()}
    print("variance kept: " + ", ".join(f"{method} {value:.1%}" for method, value in kept.items()))


if __name__ == "__main__":
    main()
