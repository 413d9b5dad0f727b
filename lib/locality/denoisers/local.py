"""The local denoiser: a softmax over the training images for every pixel, under any mask.

The mask is the only difference between the memorising denoiser (look everywhere), Kamb &
Ganguli's local score machine (look at a square) and the paper's analytical denoiser (look where
the data's statistics say); the three share every line of this file.

Where the time goes: matrix products of the masks with the images. With every pixel counted from
the mean image, (x - x_k)^2 = x^2 - 2 x x_k + x_k^2; the first term is common to all images and
cancels, the last is common to all queries. The middle one is a product, for every output pixel m,
of the queries under its mask with all images. Masks of neighbouring pixels look alike, so it is cut
into tiles of output pixels, and each tile reads only the input pixels that its masks use, or, where
they use almost all, only those that they leave out, which are then subtracted from the whole.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data import ImageSet, check_shape
from ..schedule import check_sigma
from .base import check_count, precise_dtype, training_images
from .streaming import SoftmaxState, accumulate, softmax_weights

# The cost of a tile in units of one input pixel for one output pixel of one query: of copying one
# of its inputs, and of handling the tile at all.
COPY, HANDLING = 20, 3000
# Rows of logits (output pixels times queries) at a time: a chunk of them should fit in the cache.
ROWS = 64
# Images are multiplied in multiples of this many. The last few of an odd number would go through
# other, less accurate kernels, and an image's logit would depend on its place in the chunk.
COLUMNS = 64


class Tile(NamedTuple):
    """Output pixels ``rows`` whose masks are ``fill`` plus ``weights`` at the inputs ``cols``."""

    rows: Tensor  # (r,)
    cols: Tensor  # (n,)
    weights: Tensor  # (r, n)
    fill: Tensor  # (r, 1), 0 where the tile lists what its masks use


class LocalDenoiser:
    """Per-pixel posterior mean in which each output pixel sees only its mask.

    logit_k(m) = -sum_n M[m, n] (x[n] - x_k[n])^2 / (2 sigma^2 T) and
    D(x)[m] = sum_k softmax_k(logit_k(m)) x_k[m] (the paper, section 5). Pixels m, n run over
    channels too.

    Args:
        images: (N, C, H, W), or an ImageSet.
        mask: sigma -> (D, D) non-negative weights; see ``masks``.
        temperature: T above; 1 in the paper.
        centre: (C, H, W), from where pixels are counted; changes the rounding, not the result.
            Unless given, the mean of the images. Denoisers whose states merge should share one.
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
        centre: Tensor | None = None,
        chunk: int = 1024,
        batch_average: int | None = None,
    ):
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        if batch_average is not None:
            check_count(batch_average, name="batch_average")
        self.images = training_images(images)
        self.shape = tuple(self.images.shape[1:])
        if centre is None:
            # Summed in float64, so that the centre, too, is the same in any order of the images.
            exact = precise_dtype(self.images.device)
            total = sum(part.to(exact).sum(0) for part in self.images.split(1024))
            centre = (total / len(self.images)).float()
        self.centre = centre.to(self.images).view(self.shape)
        self.mask = mask
        self.temperature = temperature
        self.chunk = check_count(chunk, name="chunk")
        self.batch_average = batch_average

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Local posterior mean, (B, C, H, W) float32, of the noisy images ``x`` (B, C, H, W)."""
        groups = self.images.split(self.batch_average or len(self.images))
        weights = self._weights(x, sigma)
        tiles = self._tiles(weights, len(x))
        answers = [self._state(x, group, weights, tiles).mean() for group in groups]
        return torch.stack(answers).mean(0).to(x.dtype).view_as(x)

    def state(self, x: Tensor, sigma: float) -> SoftmaxState:
        """The streaming softmax over this denoiser's images; states of several sets merge."""
        if self.batch_average is not None:
            raise ValueError("state knows the exact softmax only; batch_average is set")
        weights = self._weights(x, sigma)
        return self._state(x, self.images, weights, self._tiles(weights, len(x)))

    def _weights(self, x: Tensor, sigma: float) -> Tensor:
        """The mask over 2 sigma^2 T, (D, D), in the dtype that its products need."""
        check_shape(x, self.shape)
        scale = 2 * check_sigma(sigma) ** 2 * self.temperature
        # Under little noise the logits are large beside their differences: too large for float32.
        dtype = torch.float32 if scale > 0.2 else precise_dtype(x.device)
        return (self._checked_mask(sigma) / scale).to(dtype)

    def _state(self, x: Tensor, images: Tensor, weights: Tensor, tiles: list[Tile]) -> SoftmaxState:
        dtype, exact = weights.dtype, precise_dtype(x.device)
        # Output pixels in the order of the tiles, so that a tile's are a slice.
        order = torch.cat([tile.rows for tile in tiles])
        ordered = weights[order]
        sizes = [len(tile.rows) for tile in tiles]

        def update(query: Tensor, chunk: Tensor) -> SoftmaxState:
            values = (chunk.to(dtype) - self.centre).flatten(1).T
            values = F.pad(values, (0, -len(chunk) % COLUMNS)).contiguous()  # (D, c), padded
            whole = (2 * query.to(exact) @ values.to(exact)).to(dtype)  # (B, c)
            squares = (ordered @ values.square()).split(sizes)
            outputs = values[order, : len(chunk)].split(sizes)
            parts = zip(tiles, squares, outputs, strict=True)
            states = [_one_tile(query, values, whole, *part) for part in parts]
            return SoftmaxState(*(torch.cat(parts, 1) for parts in zip(*states, strict=True)))

        query = (x.to(dtype) - self.centre).flatten(1)
        found = _accumulate(update, query, images.split(self.chunk))
        # Back to the pixels' own order: all of them, or those that the tiles hold.
        pixels, back = order.sort()
        peak, total, weighted = (
            part[:, back].to(exact) for part in (found.peak, found.total, found.weighted)
        )
        # So far the logits lack -M x^2 and the values the centre: states of other images, with
        # another centre, could not be merged with this one.
        squares = query.to(exact).square() @ weights[pixels].to(exact).T
        weighted = weighted + total * self.centre.flatten()[pixels].to(exact)
        return SoftmaxState(peak - squares, total, weighted)

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

    def _tiles(self, weights: Tensor, queries: int) -> list[Tile]:
        """Cut the product with ``weights`` (D, D) into the cheapest set of square tiles."""
        largest = weights.amax(1, keepdim=True)
        used, missing = weights != 0, weights != largest
        best, best_cost = None, float("inf")
        for side in (14, 7, 4, 2):
            tiles, cost = [], 0
            for rows in _square_tiles(self.shape, side):
                rows = rows.to(weights.device)
                some, others = used[rows].any(0), missing[rows].any(0)
                complement = bool(others.sum() < some.sum())
                cols = (others if complement else some).nonzero()[:, 0]
                tiles.append((rows, cols, complement))
                cost += (len(rows) * queries + COPY) * len(cols) + HANDLING
            if cost < best_cost:
                best, best_cost = tiles, cost
        return [
            Tile(rows, cols, weights[rows][:, cols] - fill, fill)
            for rows, cols, complement in best
            for fill in [largest[rows] * complement]
        ]


def _square_tiles(shape: tuple[int, int, int], side: int) -> Iterator[Tensor]:
    """Flat indices of the pixels, all channels, in each ``side`` x ``side`` tile of the image."""
    channels, height, width = shape
    index = torch.arange(channels * height * width).view(shape)
    for top in range(0, height, side):
        for left in range(0, width, side):
            yield index[:, top : top + side, left : left + side].flatten()


def _accumulate(
    update: Callable[[Tensor, Tensor], SoftmaxState], query: Tensor, chunks: Sequence[Tensor]
) -> SoftmaxState:
    """The state of all chunks. On a CPU whole chunks are shared out among the threads: a tile's
    operations are too small to be, and would take longer on two threads than on one."""
    threads = torch.get_num_threads()
    if query.requires_grad or query.device.type != "cpu" or threads == 1 or len(chunks) == 1:
        return accumulate(update, query, chunks)

    @torch.no_grad()
    def work(part: Sequence[Tensor]) -> SoftmaxState:
        return accumulate(update, query, part)

    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            states = list(
                pool.map(work, (chunks[i::threads] for i in range(min(threads, len(chunks)))))
            )
    finally:
        torch.set_num_threads(threads)
    return reduce(SoftmaxState.merge, states)


def _one_tile(
    query: Tensor, values: Tensor, whole: Tensor, tile: Tile, squares: Tensor, outputs: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax state (peak, total, weighted), each (B, r), of a tile for one chunk of images.

    ``query`` (B, D) and ``values`` (D, c) are pixels counted from the centre; ``whole`` (B, c) is
    twice their product, over all pixels; ``squares`` (r, c) is what the tile's masks sum up of
    ``values`` squared, and ``outputs`` (r, count) its own pixels of the images, which are the
    first ``count`` of the c columns.
    """
    inputs = values.index_select(0, tile.cols)
    states = []
    group = max(1, ROWS // len(squares))
    for q, full in zip(query.split(group), whole.split(group), strict=True):
        masked = 2 * q[:, None, tile.cols] * tile.weights  # (b, r, n)
        rest = (tile.fill * full[:, None]).sub_(squares)  # (b, r, c)
        logits = torch.addmm(rest.flatten(0, 1), masked.flatten(0, 1), inputs)
        logits = logits.view_as(rest)[..., : outputs.shape[1]]
        peak, weights = softmax_weights(logits, dim=2)
        states.append((peak[..., 0], weights.sum(2), (weights * outputs).sum(2)))
    return tuple(torch.cat(parts) for parts in zip(*states, strict=True))
