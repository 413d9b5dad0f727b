"""How large patches should be at which noise level: as published, or measured on a network."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..schedule import karras_sigmas
from .base import Denoiser

# Kamb & Ganguli 2025, patch sides of UNets at step i = 1 ... 19 of 20, low to high noise, without
# the entry of step 0, which their released sampler never takes. Its schedule is
# alpha-bar = cos^2(pi/2 t / 1.008) at t = i / 20, so sigma = tan(pi/2 t / 1.008): .08 to 11.
KAMB_SIDES = {
    "fashion-mnist": (3, 5, 5, 7, 7, 7, 9, 11, 11, 11, 13, 15, 15, 21, 23, 25, 25, 25, 25),
    "cifar10": (3, 3, 3, 5, 5, 5, 5, 7, 7, 7, 7, 9, 9, 11, 13, 13, 15, 17, 25),
    "mnist": (3, 3, 5, 5, 7, 7, 7, 9, 9, 9, 11, 13, 15, 17, 21, 23, 23, 25, 27),
    "celeba": (3, 3, 3, 3, 3, 3, 5, 5, 5, 5, 5, 7, 7, 9, 9, 9, 13, 19, 27),
}
KAMB_SIGMAS = tuple(math.tan(math.pi / 2 * i / 20 / 1.008) for i in range(1, 20))
# Niedoba et al. 2025 for CIFAR-10 (32 x 32), high to low noise: sides of PSPC-Square, and shares of
# the sensitivity that a patch of PSPC-Flex holds. 18 steps, placed here at those of Karras et al.
PSPC_SIDES = (32, 32, 32, 32, 32, 32, 32, 23, 15, 11, 7, 5, 3, 3, 3, 3, 3, 3)
PSPC_SHARES = (1.0,) * 7 + (0.7, 0.7, 0.5, 0.4, 0.4, 0.4, 0.4, 0.3, 0.3, 0.3, 0.3)
PSPC_SIGMAS = tuple(karras_sigmas(18, sigma_min=0.002, sigma_max=80.0).tolist())


def by_noise_level(sigmas: Sequence[float], values: Sequence) -> Callable:
    """A function of sigma that gives the value of the nearest of ``sigmas``, in octaves.

    ``by_noise_level(KAMB_SIGMAS, KAMB_SIDES["cifar10"])`` is a ``side`` for ``ELSDenoiser``.
    """
    if len(sigmas) != len(values) or len(values) == 0 or min(sigmas) <= 0:
        raise ValueError(
            f"need one value for each positive sigma, got {len(values)} and {list(sigmas)}"
        )

    def value(sigma: float) -> object:
        return values[min(range(len(sigmas)), key=lambda i: abs(math.log(sigmas[i] / sigma)))]

    return value


class Calibration(NamedTuple):
    """Patch sides measured on a network: ``best[i]`` at ``sigmas[i]``.

    ``similarity`` (sigmas, sides) holds the medians it was chosen by. Called with a sigma it gives
    the best side at the nearest of its noise levels, so it is a ``side`` for ``ELSDenoiser``.
    """

    sigmas: list[float]
    sides: list[int]
    best: list[int]
    similarity: Tensor

    def __call__(self, sigma: float) -> int:
        """The best side at the noise level nearest to ``sigma``."""
        return by_noise_level(self.sigmas, self.best)(sigma)


@torch.no_grad()
def calibrate(
    reference: Denoiser,
    candidate: Callable[[int], Denoiser],
    images: Tensor,
    *,
    sides: Sequence[int],
    sigmas: Sequence[float],
    seed: int = 0,
) -> Calibration:
    """The patch side whose denoiser predicts the noise most like ``reference``, a noise level each.

    Both see ``images`` (B, C, H, W) under noise; their noise predictions are (x - D(x)) / sigma.
    The best side has the highest cosine similarity, median over the images (Kamb & Ganguli 2025);
    of equal ones, the first. Images that the candidate does not hold are the fair choice.

    Args:
        reference: usually a trained network.
        candidate: side -> denoiser, e.g. ``lambda side: ELSDenoiser(train, side)``.
    """
    denoisers = [candidate(side) for side in sides]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(images.shape, generator=generator).to(images)
    medians = []
    for sigma in map(float, sigmas):
        x = images + sigma * noise
        expected = (x - reference(x, sigma)).flatten(1)
        found = [(x - denoiser(x, sigma)).flatten(1) for denoiser in denoisers]
        cosines = [torch.cosine_similarity(f, expected) for f in found]
        medians.append(torch.stack(cosines).quantile(0.5, dim=1))
    similarity = torch.stack(medians)
    best = [list(sides)[k] for k in similarity.argmax(1).tolist()]
    return Calibration([float(s) for s in sigmas], list(sides), best, similarity)
