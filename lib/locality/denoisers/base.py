"""What every denoiser of the library promises, and what the closed-form ones share."""

import numbers
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from ..data import ImageSet, check_images


class Denoiser(Protocol):
    """An estimate of the clean image behind a noisy one.

    ``x`` is (B, C, H, W) float32, a clean image in [-1, 1] plus ``sigma`` times unit normal
    noise; the answer has the same shape and estimates E[x0 | x].
    """

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """The estimate of the clean images, shaped as ``x``."""
        ...


def training_images(images: ImageSet | Tensor) -> Tensor:
    """The tensor (N, C, H, W) of ``images``, checked; an ImageSet has been checked already."""
    if isinstance(images, ImageSet):
        return images.images
    check_images(images)
    return images


def precise_dtype(device: torch.device) -> torch.dtype:
    """float64 where the device has it, else float32 (Apple's MPS)."""
    return torch.float32 if device.type == "mps" else torch.float64


def check_count(count: int, *, name: str) -> int:
    """Return ``count``; a ValueError that says ``name`` unless it is a whole number, 1 or more."""
    if not isinstance(count, numbers.Integral) or count < 1:
        raise ValueError(f"{name} must be a whole number, at least 1, got {count}")
    return int(count)


@contextmanager
def products(*, coarse: bool) -> Iterator[None]:
    """Within it, if ``coarse``, products of float32 matrices may round their factors to bfloat16.

    Two to three times as fast on processors with units for that, and no different on others. The
    setting is one of the whole process.
    """
    before = torch.get_float32_matmul_precision()
    if coarse:
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def keep_freed_memory() -> None:
    """Let the C library keep the memory of freed tensors for the next ones, up to some 60 MB.

    glibc returns blocks of megabytes to the system and has every page cleared when it asks for
    them again, which can cost more than the arithmetic in between (three times more, in
    ``ELSDenoiser``), unless it has seen a larger block freed; its limit is 32 MB. This frees one.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)
