"""Trained denoisers: a UNet, a DiT and a linear map, each behind the same preconditioning."""

from locality.networks.precondition import NetworkDenoiser
from locality.networks.unet import UNet

__all__ = ["NetworkDenoiser", "UNet"]
