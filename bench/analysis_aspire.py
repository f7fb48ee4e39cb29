"""What ASPIRE 0.14 makes of a file of bench/analysis_sets.py; run by the Python that has it installed.

    aspire-venv/bin/python bench/analysis_aspire.py cwf SET.npz      # relative error of its covariance Wiener filter
    aspire-venv/bin/python bench/analysis_aspire.py rir SET.npz      # share of true neighbours of RIRClass2D

ASPIRE is told the noise's variance and every defocus. One JSON line on standard output.
"""

from __future__ import annotations

import json
import logging
import sys
import time

import numpy as np
from aspire.basis import FFBBasis2D, FSPCABasis
from aspire.classification import RIRClass2D
from aspire.covariance import RotCov2D
from aspire.image import Image
from aspire.operators import RadialCTFFilter
from aspire.source import ArrayImageSource

logging.disable(logging.WARNING)


def denoise(stored: dict[str, np.ndarray]) -> dict[str, float]:
    images = stored["images"].astype(np.float32)
    box, which = images.shape[-1], stored["micrograph"]
    basis = FFBBasis2D((box, box), dtype=np.float32)
    defocus = [float(stored["defocus"][which == k][0]) for k in range(which.max() + 1)]
    filters = [RadialCTFFilter(float(stored["pixel_size_A"]), 300, defocus=d, Cs=2.7, alpha=0.1) for d in defocus]
    ctf = [basis.filter_to_basis_mat(f) for f in filters]
    coefficients, covariance = basis.evaluate_t(Image(images)), RotCov2D(basis)
    variance = float(stored["variance"])
    mean = covariance.get_mean(coefficients, ctf, which)
    options = {
        "shrinker": "frobenius_norm", "verbose": 0, "max_iter": 250, "iter_callback": [], "store_iterates": False,
        "rel_tolerance": 1e-12, "precision": np.float32,
    }  # fmt: skip
    found = covariance.get_covar(coefficients, ctf, which, mean, noise_var=variance, covar_est_opt=options)
    restored = basis.evaluate(covariance.get_cwf_coefs(coefficients, ctf, which, mean, found, variance)).asnumpy()
    truth = stored["clean"]
    restored = restored * np.sign((restored * truth).sum())  # its CTF has the other sign
    return {"error": float(((restored - truth) ** 2).sum() / (truth**2).sum())}


def neighbours(stored: dict[str, np.ndarray]) -> dict[str, float]:
    images = stored["images"].astype(np.float32)
    box, pixel = images.shape[-1], float(stored["pixel_size_A"])
    k = np.fft.fftfreq(box, pixel)
    k2 = k[:, None] ** 2 + k[None] ** 2
    wavelength = 12.2643247 / np.sqrt(3e5 * (1 + 0.978466e-6 * 3e5))
    for d in np.unique(stored["defocus"]):
        rows = np.flatnonzero(stored["defocus"] == d)
        phase = np.pi * wavelength * d * k2 - np.pi / 2 * 2.7e7 * wavelength**3 * k2**2 + np.arcsin(0.1)
        images[rows] = np.fft.ifft2(np.fft.fft2(images[rows]) * np.sign(np.sin(phase))).real
    source = ArrayImageSource(Image(images))
    basis = FFBBasis2D((box, box), dtype=np.float32)
    pca = FSPCABasis(source, basis, components=400, noise_var=float(stored["variance"]))
    classes, _, _ = RIRClass2D(source, pca_basis=pca, bispectrum_components=300, n_nbor=60, seed=0).classify()
    view, classes = stored["view"], np.asarray(classes)
    others = np.stack([row[row != i][:50] for i, row in enumerate(classes)])  # a particle is now and then its own
    near = np.abs(np.einsum("nc,nkc->nk", view, view[others])) > np.cos(np.deg2rad(10))
    return {"10": float(near[:, :10].mean()), "50": float(near.mean())}


if __name__ == "__main__":
    start = time.time()
    with np.load(sys.argv[2]) as file:
        answer = {"cwf": denoise, "rir": neighbours}[sys.argv[1]](dict(file))
    print("RESULT " + json.dumps(answer | {"seconds": time.time() - start}))
