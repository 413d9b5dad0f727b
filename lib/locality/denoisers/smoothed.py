"""The smoothed closed-form denoiser (sigma-CFDM): generalise by blurring the optimal one."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..data import check_shape
from ..schedule import check_sigma
from .base import Denoiser, check_count


class SmoothedDenoiser:
    """The mean of a denoiser's answers to several noisy copies of the query.

    D(x) = 1/M sum_i D0(x + w z_i), z_i unit normal. Between two training images the optimal
    denoiser jumps from one to the other; the mean passes through their mixtures, which are new
    images (Scarvelis et al. 2025). The z_i are fixed: the answer is a function of x and sigma,
    and the same whatever the batch.

    Args:
        denoiser: D0, e.g. ``OptimalDenoiser(images)``.
        width: w, the standard deviation of the copies' noise in image units, or a function of
            sigma that gives it.
        copies: M; about 10 in the source.
        seed: of the z_i.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        width: float | Callable[[float], float],
        *,
        copies: int = 10,
        seed: int = 0,
    ):
        self.denoiser = denoiser
        self.width = width
        self.copies = check_count(copies, name="copies")
        self.seed = seed

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """The mean answer, (B, C, H, W), to noisy copies of the noisy images ``x`` (B, C, H, W)."""
        check_shape(x, tuple(x.shape[1:]))
        width = self.width(check_sigma(sigma)) if callable(self.width) else self.width
        if not 0 <= width < float("inf"):
            raise ValueError(f"width must be finite and not negative, got {width}")
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(self.copies, 1, *x.shape[1:], generator=generator).to(x)
        copies = (x + width * noise).flatten(0, 1)  # (M B, C, H, W), all in one pass over the data
        return self.denoiser(copies, sigma).unflatten(0, (self.copies, len(x))).mean(0)
