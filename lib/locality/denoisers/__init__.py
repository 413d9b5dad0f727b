"""Denoisers in closed form: the optimal one, the Wiener filter, and everything local.

All are called as ``denoiser(x, sigma)`` and return the estimated clean image.
"""

from . import masks
from .base import Denoiser
from .local import LocalDenoiser
from .mixture import KernelMixtureDenoiser, PatchMixtureDenoiser, WienerMixtureDenoiser
from .optimal import OptimalDenoiser
from .patches import ELSDenoiser, PSPCDenoiser
from .screened_patches import ScreenedELSDenoiser
from .smoothed import SmoothedDenoiser
from .subset import ScreenedLocalDenoiser
from .wiener import WienerDenoiser

__all__ = [
    "Denoiser",
    "ELSDenoiser",
    "KernelMixtureDenoiser",
    "LocalDenoiser",
    "OptimalDenoiser",
    "PSPCDenoiser",
    "PatchMixtureDenoiser",
    "ScreenedELSDenoiser",
    "ScreenedLocalDenoiser",
    "SmoothedDenoiser",
    "WienerDenoiser",
    "WienerMixtureDenoiser",
    "masks",
]
