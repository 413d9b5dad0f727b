"""The reader's challenge: a denoiser of your own, scored beside those of the book.

Chapter 11 ends with it. The score is the paper's: from the same noise, how much of a trained
network's sample does the denoiser predict?
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .. import zoo
from ..data import load
from ..denoisers import Denoiser, LocalDenoiser, WienerDenoiser, masks
from ..metrics import bootstrap_interval, copy_ratio, r2
from ..sampling import ddim, initial_noise
from ..schedule import ddpm_sigmas
from ..scoreboard import wiener_mixture
from ..stats import PCA

SEEDS = range(16)


@dataclass(frozen=True)
class Score:
    """What a denoiser's samples are worth.

    Attributes:
        r2: the share of the network's sample that each sample explains, (n,).
        copy_ratio: of each sample, (n,), against the shipped training images; below 1/3 is a copy.
        samples: the samples themselves, (n, 1, 28, 28).
    """

    r2: Tensor
    copy_ratio: Tensor
    samples: Tensor


def noises(seeds: range = SEEDS) -> Tensor:
    """The noise at the highest level, (n, 1, 28, 28): image i is drawn from seed i alone."""
    sigma = ddpm_sigmas(10)[0]
    return torch.cat([initial_noise(1, (1, 28, 28), sigma=sigma, seed=seed) for seed in seeds])


def score_my_denoiser(denoiser: Denoiser, *, seeds: range = SEEDS) -> Score:
    """Sample with ``denoiser``, compare with the zoo's UNet, print a row beside the book's own.

    Ten DDIM steps of the paper's schedule on Fashion-MNIST (28 x 28, one channel), from fixed
    noise; the network is "unet/fashion-mnist". The first call also scores the denoisers that it
    is compared with, which takes some twenty seconds.

    Args:
        denoiser: your ``denoiser(x, sigma) -> x0_hat``.
        seeds: of the noise. Those from 1000 on are free for choosing parameters with.

    Raises:
        ValueError: if the answers have another shape than the queries, or are not finite.
    """

    def checked(x: Tensor, sigma: float) -> Tensor:
        answer = denoiser(x, sigma)
        if answer.shape != x.shape:
            raise ValueError(
                f"your denoiser should return shape {tuple(x.shape)}, got {tuple(answer.shape)}"
            )
        if not bool(torch.isfinite(answer).all()):
            raise ValueError(f"your denoiser returns values that are not finite at sigma {sigma}")
        return answer

    mine = _score(checked, seeds)
    rows = {**references(seeds), "yours": mine}
    print(f"{'':17s}{'r2':>6s}  {'95 % interval':15s} {'copy ratio':>10s}")
    for name, score in rows.items():
        low, high = bootstrap_interval(score.r2)
        interval = f"{low:.3f} to {high:.3f}"
        copied = score.copy_ratio.median()
        print(f"{name:17s}{score.r2.mean():6.3f}  {interval:15s} {copied:10.2f}")
    best = max(references(seeds).values(), key=lambda score: score.r2.mean()).r2
    low, high = bootstrap_interval(mine.r2 - best)
    verdict = "better" if low > 0 else "worse" if high < 0 else "no clear difference"
    print(f"yours - best, noise by noise: {low:+.3f} to {high:+.3f} ({verdict})")
    return mine


@lru_cache(maxsize=4)
def targets(seeds: range) -> Tensor:
    """The samples of the zoo's UNet that denoisers are to predict, (n, 1, 28, 28)."""
    *_, last = ddim(zoo.load("unet/fashion-mnist"), noises(seeds), ddpm_sigmas(10))
    return last.x0


@lru_cache(maxsize=4)
def references(seeds: range) -> Mapping[str, Score]:
    """Scores of the denoisers that yours is compared with, by name; computed once."""
    train = load("fashion-mnist")
    pca = PCA.fit(train)
    denoisers = {
        "Wiener": WienerDenoiser(pca),
        "analytical local": LocalDenoiser(train, lambda sigma: masks.pca(pca, sigma, 0.05)),
        "Wiener mixture": wiener_mixture(train, pca),
    }
    return {name: _score(denoiser, seeds) for name, denoiser in denoisers.items()}


def _score(denoiser: Denoiser, seeds: range) -> Score:
    *_, last = ddim(denoiser, noises(seeds), ddpm_sigmas(10))
    ratios = copy_ratio(last.x0, load("fashion-mnist"))
    return Score(r2(last.x0, targets(seeds)), ratios, last.x0)
