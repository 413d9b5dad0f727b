"""Sampling: from noise to an image, with any denoiser.

``ddim`` is a generator of steps, so that a notebook can stop, plot, or keep what it wants:
``*_, last = ddim(denoiser, noise, sigmas)`` leaves the final images in ``last.x0``.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .denoisers import Denoiser
from .denoisers.base import check_count
from .schedule import check_sigma


class Step(NamedTuple):
    """One step of sampling: at ``sigma`` the noisy image ``x`` was denoised to ``x0``."""

    sigma: float
    x: Tensor
    x0: Tensor


def initial_noise(
    count: int,
    shape: tuple[int, int, int],
    *,
    sigma: float,
    seed: int = 42,
    device: torch.device | str = "cpu",
) -> Tensor:
    """``count`` images of pure noise with standard deviation ``sigma``, (count, C, H, W).

    Drawn on the CPU one image after the other, so that image i is the same for every ``count``
    and on every device.
    """
    check_count(count, name="count")
    generator = torch.Generator().manual_seed(seed)
    images = [torch.randn(shape, generator=generator) for _ in range(count)]
    return (torch.stack(images) * check_sigma(sigma)).to(device)


@torch.no_grad()
def ddim(denoiser: Denoiser, noise: Tensor, sigmas: Tensor) -> Iterator[Step]:
    """Deterministic sampling (Song et al. 2021, eta = 0) down the noise levels ``sigmas``.

    Args:
        denoiser: any ``denoiser(x, sigma) -> x0``.
        noise: (B, C, H, W), unit normal noise times ``sigmas[0]``.
        sigmas: (steps,), strictly descending, e.g. ``ddpm_sigmas(10)``.

    Yields:
        Step(sigma, x, x0), with x0 clipped to [-1, 1] as in the official protocol. The image
        reported by that protocol is the last x0.
    """
    sigmas = [check_sigma(s) for s in sigmas]
    if any(a <= b for a, b in pairwise(sigmas)):
        raise ValueError(f"sigmas must descend strictly, got {sigmas}")
    x = noise
    for i, sigma in enumerate(sigmas):
        x0 = denoiser(x, sigma).clamp(-1, 1)
        yield Step(sigma, x, x0)
        if i + 1 < len(sigmas):
            x = x0 + (sigmas[i + 1] / sigma) * (x - x0)
