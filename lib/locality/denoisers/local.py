"""The local denoiser: a softmax over the training images for every pixel, under any mask.

The mask is the only difference between the memorising denoiser (look everywhere), Kamb &
Ganguli's local score machine (look at a square) and the paper's analytical denoiser (look where
the data's statistics say); the three share every line of this file.

Where the time goes: for one query, a matrix product of all squared differences with the mask,
N x D times D x D. Masks of neighbouring pixels look alike, so the product is cut into tiles of
output pixels, and each tile reads only the input pixels that any of its masks uses.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..data import ImageSet, check_shape
from ..schedule import check_sigma
from .base import precise_dtype, training_images
from .streaming import SoftmaxState, accumulate, softmax_weights

# Reading a tile's inputs costs about as much as this many rows of its matrix product.
TILE_OVERHEAD = 24


class Tile(NamedTuple):
    """Output pixels ``rows`` whose masks, ``weights`` (rows, cols), use only inputs ``cols``."""

    rows: Tensor
    cols: Tensor
    weights: Tensor


class LocalDenoiser:
    """Per-pixel posterior mean in which each output pixel sees only its mask.

    logit_k(m) = -sum_n M[m, n] (x[n] - x_k[n])^2 / (2 sigma^2 T) and
    D(x)[m] = sum_k softmax_k(logit_k(m)) x_k[m] (the paper, section 5). Pixels m, n run over
    channels too.

    Args:
        images: (N, C, H, W), or an ImageSet.
        mask: sigma -> (D, D) non-negative weights; see ``masks``.
        temperature: T above; 1 in the paper.
        chunk: training images handled at a time; changes time and memory, not the result.
        batch_average: None for the exact softmax. A number of images reproduces the paper's
            released code, which takes one softmax inside each batch of that many consecutive
            images and averages the batches with equal weight: the result then depends on the
            batch size and on the order of the images. For comparison only.
    """

    def __init__(
        self,
        images: ImageSet | Tensor,
        mask: Callable[[float], Tensor],
        *,
        temperature: float = 1.0,
        chunk: int = 256,
        batch_average: int | None = None,
    ):
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.images = training_images(images)
        self.shape = tuple(self.images.shape[1:])
        self.mask = mask
        self.temperature = temperature
        self.chunk = chunk
        self.batch_average = batch_average

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Local posterior mean, (B, C, H, W) float32, of the noisy images ``x`` (B, C, H, W)."""
        check_shape(x, self.shape)
        scale = 2 * check_sigma(sigma) ** 2 * self.temperature
        tiles = self._tiles(self._checked_mask(sigma) / -scale)
        order = torch.cat([tile.rows for tile in tiles])

        def update(query: Tensor, chunk: Tensor) -> SoftmaxState:
            values = chunk.flatten(1).T.contiguous()  # (D, c): one pixel of all images a row
            outputs = values[order]
            states = [_one_query(q[:, None], values, outputs, tiles) for q in query]
            return SoftmaxState(*(torch.stack(parts) for parts in zip(*states, strict=True)))

        query = x.flatten(1)
        groups = self.images.split(self.batch_average or len(self.images))
        answers = [accumulate(update, query, group.split(self.chunk)).mean() for group in groups]
        answer = torch.empty_like(query)
        answer[:, order] = torch.stack(answers).mean(0)
        return answer.view_as(x)

    def jacobian_rows(self, x: Tensor, sigma: float, pixels: Tensor) -> Tensor:
        """Rows of dD/dx for the flat output ``pixels``, (B, P, D).

        dD[m]/dx[n] = M[m, n] / (sigma^2 T) Cov(x_k[m], x_k[n]), the covariance under pixel m's
        own softmax: one row needs one softmax, not D of them.
        """
        if self.batch_average is not None:
            raise ValueError("jacobian_rows knows the exact softmax only; batch_average is set")
        check_shape(x, self.shape)
        scale = check_sigma(sigma) ** 2 * self.temperature
        dtype = precise_dtype(x.device)
        mask = self._checked_mask(sigma)[pixels].to(dtype)  # (P, D)
        query = x.flatten(1).to(dtype)
        chunks = [chunk.flatten(1) for chunk in self.images.split(self.chunk)]
        rows = torch.empty(len(x), len(mask), query.shape[1], dtype=dtype, device=x.device)
        for row, q in zip(rows, query, strict=True):
            logits = torch.cat([mask @ (chunk - q).square().T for chunk in chunks], dim=1)
            weights = torch.softmax(logits / (-2 * scale), dim=1)  # (P, N)
            parts = list(zip(chunks, weights.split(self.chunk, dim=1), strict=True))
            mean = sum(w @ chunk.to(dtype) for chunk, w in parts)  # (P, D)
            own = mean[torch.arange(len(mean)), pixels, None]  # (P, 1)
            for p in range(len(mean)):  # one output pixel at a time keeps memory at a chunk
                row[p] = sum(
                    (w[p] * (chunk[:, pixels[p]] - own[p])) @ (chunk - mean[p])
                    for chunk, w in parts
                )
            row *= mask / scale
        return rows.to(x.dtype)

    def _checked_mask(self, sigma: float) -> Tensor:
        mask = self.mask(sigma)
        pixels = self.images[0].numel()
        if tuple(mask.shape) != (pixels, pixels):
            raise ValueError(
                f"the mask must be ({pixels}, {pixels}) for images of shape {self.shape}, "
                f"got {tuple(mask.shape)}"
            )
        if not bool((torch.isfinite(mask) & (mask >= 0)).all()):
            raise ValueError("mask weights must be finite and not negative")
        if bool((mask.amax(1) == 0).any()):
            empty = int((mask.amax(1) == 0).nonzero()[0])
            raise ValueError(f"the mask of pixel {empty} is empty: that pixel would see no data")
        return mask.to(self.images.device, torch.float32)

    def _tiles(self, weights: Tensor) -> list[Tile]:
        """Cut the product with ``weights`` (D, D) into the cheapest set of square tiles."""
        used = weights != 0
        best, best_cost = None, float("inf")
        for side in (max(self.shape[1:]), 14, 8, 4, 2):
            rows = [r.to(weights.device) for r in _square_tiles(self.shape, side)]
            cols = [used[r].any(0).nonzero()[:, 0] for r in rows]
            cost = sum(
                (len(r) + TILE_OVERHEAD) * len(c) + 2000 for r, c in zip(rows, cols, strict=True)
            )
            if cost < best_cost:
                best, best_cost = list(zip(rows, cols, strict=True)), cost
        return [Tile(r, c, weights[r][:, c].contiguous()) for r, c in best]


def _square_tiles(shape: tuple[int, int, int], side: int) -> Iterator[Tensor]:
    """Flat indices of the pixels, all channels, in each ``side`` x ``side`` tile of the image."""
    channels, height, width = shape
    index = torch.arange(channels * height * width).view(shape)
    for top in range(0, height, side):
        for left in range(0, width, side):
            yield index[:, top : top + side, left : left + side].flatten()


def _one_query(q: Tensor, values: Tensor, outputs: Tensor, tiles: list[Tile]) -> tuple[Tensor, ...]:
    """Softmax state (peak, total, weighted), each (D,) in tile order, of one query (D, 1)."""
    squares = (values - q).square()  # (D, c)
    logits = torch.cat([tile.weights @ _select(squares, tile.cols) for tile in tiles])
    peak, weights = softmax_weights(logits, dim=1)
    return peak[:, 0], weights.sum(1), (weights * outputs).sum(1)


def _select(rows: Tensor, index: Tensor) -> Tensor:
    """``rows[index]``, without the copy when ``index``, which is sorted, names them all."""
    return rows if len(index) == len(rows) else rows[index]
