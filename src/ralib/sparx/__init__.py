"""EMAN2/SPARX's 2D algorithms with their own numerics, for parity, batched in PyTorch on any device.

EMAN2's peculiarities are reproduced only here; each has a comment that says why it is there.
"""

from ralib.images.centering import ccf, center_2D, center_shift, phase_cog
from ralib.images.fourier import fshift
from ralib.images.masks import model_circle
from ralib.sparx.filters import filt_table, filt_tanl, fit_tanh, fsc, fsc_mask
from ralib.sparx.resample import mirror_images, rot_shift2D
from ralib.sparx.transforms import average_shift, combine_params2, inverse_transform2, params_to_poses, poses_to_params

__all__ = [
    "average_shift",
    "ccf",
    "center_2D",
    "center_shift",
    "combine_params2",
    "filt_table",
    "filt_tanl",
    "fit_tanh",
    "fsc",
    "fsc_mask",
    "fshift",
    "inverse_transform2",
    "mirror_images",
    "model_circle",
    "params_to_poses",
    "phase_cog",
    "poses_to_params",
    "rot_shift2D",
]
