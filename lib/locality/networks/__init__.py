"""Trained networks: a UNet, a DiT and a linear map, all behind the same preconditioning."""

from .classifier import Classifier
from .dit import DiT
from .linear import LinearDenoiser, MatrixDenoiser
from .precondition import NetworkDenoiser
from .sizes import architecture, build
from .unet import UNet

__all__ = [
    "Classifier",
    "DiT",
    "LinearDenoiser",
    "MatrixDenoiser",
    "NetworkDenoiser",
    "UNet",
    "architecture",
    "build",
]
