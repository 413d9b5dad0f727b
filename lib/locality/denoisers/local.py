"""The local denoiser: a softmax over the training images for every pixel, under any mask.

The mask is the only difference between the memorising denoiser (look everywhere), Kamb &
Ganguli's local score machine (look at a square) and the paper's analytical denoiser (look where
the data's statistics say); the three share every line of this file.

Where the time goes: matrix products of the masks with the images. With every pixel counted from
the mean image, (x - x_k)^2 = x^2 - 2 x x_k + x_k^2; the first term is common to all images and
cancels, the last is common to all queries. The middle one is a product, for every output pixel m,
of the queries under its mask with all images. Masks of neighbouring pixels look alike, so the
product is cut in two levels. A tile of output pixels has a base, what most of its masks hold: its
product is computed once for all of them. Each small part of the tile adds only the input pixels in
which one of its masks differs from the base, with a sign: those that it has more, or lacks.

On processors with matrix units for bytes images of bytes take another way: dense products of whole
numbers (``byte_products``). And where masks hold a few pixels only, at the lowest noise, there is
nothing to multiply: the squared differences themselves are added up, one input pixel at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial, reduce
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data import ImageSet, check_shape
from ..schedule import check_sigma
from .base import check_count, precise_dtype, training_images
from .byte_products import (
    BITS,
    LARGEST,
    MEMORY,
    Block,
    ByteQueries,
    blocks,
    digits_needed,
    supported,
)
from .streaming import LOWEST_LOGIT, SoftmaxState, accumulate

# The cost of a part in units of one input pixel for one output pixel of one query: of copying one
# of its inputs, and of handling the part at all.
COPY, HANDLING = 23, 700
# Rows of logits (output pixels times queries) at a time: a chunk of them should fit in the cache.
ROWS = 512
# Masks that hold at most so many pixels, on average, need no products. Cancellation spoils those
# at low noise, so that they take float64, or many digits.
FEW = 4
# Images are multiplied in blocks of this many, the last one padded. Products of another shape may
# go through another kernel, which adds up in another order, and an image's logit would depend on
# how many others are handled with it.
BLOCK = 512


class Part(NamedTuple):
    """Output pixels ``rows``: what their masks add to their tile's base, at the inputs ``cols``."""

    rows: Tensor  # (r,)
    cols: Tensor  # (n,)
    weights: Tensor  # (r, n)


class Tile(NamedTuple):
    """Parts that share a base: the masks' weights are ``base`` plus what each part adds."""

    base: Tensor  # (D,), zero where nothing is shared
    parts: list[Part]


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
        chunk: training images handled at a time, 512 at most; changes time, not the result.
        batch_average: None for the exact softmax. A number of images reproduces the paper's
            released code, which takes one softmax inside each batch of that many consecutive
            images and averages the batches with equal weight: the result then depends on the
            batch size and on the order of the images. For comparison only.
        tolerance: where products are those of whole numbers, noisy images are rounded to as many
            digits as keep an estimate of the answer's error below this. The default is as precise
            as float32; 1e-3 takes less time.
    """

    def __init__(
        self,
        images: ImageSet | Tensor,
        mask: Callable[[float], Tensor],
        *,
        temperature: float = 1.0,
        centre: Tensor | None = None,
        chunk: int = BLOCK,
        batch_average: int | None = None,
        tolerance: float = 5e-6,
    ):
        if not tolerance > 0:
            raise ValueError(f"tolerance must be positive, got {tolerance}")
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
        self.tolerance = tolerance

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Local posterior mean, (B, C, H, W) float32, of the noisy images ``x`` (B, C, H, W)."""
        answers = [state.mean() for state in self._states(x, sigma)]
        return torch.stack(answers).mean(0).to(x.dtype).view_as(x)

    def state(self, x: Tensor, sigma: float) -> SoftmaxState:
        """The streaming softmax over this denoiser's images; states of several sets merge."""
        if self.batch_average is not None:
            raise ValueError("state knows the exact softmax only; batch_average is set")
        return next(self._states(x, sigma))

    @property
    def _groups(self) -> Sequence[Tensor]:
        """The images of each softmax: all, or one batch."""
        return self.images.split(self.batch_average or len(self.images))

    @cached_property
    def _blocks(self) -> list[list[Block]] | None:
        """The groups as products of whole numbers want them; None where those do not serve."""
        if not supported(self.images.device) or self.images[0].numel() > LARGEST:
            return None
        found = [blocks(group, min(self.chunk, BLOCK)) for group in self._groups]
        return None if None in found else found

    def _states(self, x: Tensor, sigma: float) -> Iterator[SoftmaxState]:
        """The softmax over each group of images."""
        weights, count = self._weights(x, sigma), None
        if weights.count_nonzero() <= FEW * len(weights) and not x.requires_grad:
            for group in self._groups:
                yield self._state_of_few(x, group, weights)
            return
        precise = weights.dtype == torch.float64
        if self._blocks is not None and not x.requires_grad:
            query = x.flatten(1).double()
            count = digits_needed(query, weights, sigma, tolerance=self.tolerance, precise=precise)
        if count is None:
            tiles = self._tiles(weights, len(x))
            for group in self._groups:
                yield self._state(x, group, weights, tiles)
            return
        for group in self._blocks:
            parts = query.split(ROWS)
            states = [_byte_state(part, weights, count, group, precise=precise) for part in parts]
            yield SoftmaxState(*map(torch.cat, zip(*states, strict=True)))

    def _weights(self, x: Tensor, sigma: float) -> Tensor:
        """The mask over 2 sigma^2 T, (D, D), in the dtype that its products need."""
        check_shape(x, self.shape)
        scale = 2 * check_sigma(sigma) ** 2 * self.temperature
        # Under little noise the logits are large beside their differences: too large for float32.
        dtype = torch.float32 if scale > 0.3 else precise_dtype(x.device)
        return (self._checked_mask(sigma) / scale).to(dtype)

    def _state(self, x: Tensor, images: Tensor, weights: Tensor, tiles: list[Tile]) -> SoftmaxState:
        dtype, exact = weights.dtype, precise_dtype(x.device)
        # Output pixels in the order of the tiles, so that a tile's are a slice.
        order = torch.cat([part.rows for tile in tiles for part in tile.parts])
        sizes = [sum(len(part.rows) for part in tile.parts) for tile in tiles]
        bases = torch.stack([tile.base for tile in tiles])  # (T, D)
        any_base = bool(bases.any())
        centre = self.centre.view(-1, 1).to(dtype)

        def update(query: Tensor, chunk: Tensor) -> SoftmaxState:
            # What fills the block up has no part in what is kept.
            values = F.pad(chunk.flatten(1).T, (0, BLOCK - len(chunk))) - centre  # (D, BLOCK)
            double = 2 * BITS * query
            shared = query.new_zeros(len(tiles), len(query), 1)
            if any_base:
                shared = (double * bases[:, None]).flatten(0, 1) @ values
                shared = shared.view(len(tiles), len(query), -1)  # (T, B, c)
                squares = BITS * bases @ values.square()
                shared = shared - squares[:, None]
            outputs = values.index_select(0, order)[:, : len(chunk)].split(sizes)
            together = zip(shared, tiles, outputs, strict=True)
            states = [_one_tile(double, values, *parts) for parts in together]
            peak, total, weighted = (torch.cat(part).T for part in zip(*states, strict=True))
            return SoftmaxState(peak / BITS, total, weighted)

        query = (x.to(dtype) - self.centre).flatten(1)
        found = _accumulate(update, query, images.split(min(self.chunk, BLOCK)))
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

    def _state_of_few(self, x: Tensor, images: Tensor, weights: Tensor) -> SoftmaxState:
        """The same for masks that hold few pixels."""
        query = x.flatten(1)
        held, order = weights.count_nonzero(1).sort()
        seen = weights[order].topk(int(held[-1]), dim=1)  # a mask's own pixels come first
        roots = (BITS * seen.values).sqrt().to(query)  # (D, n)
        size = max(1, ROWS // len(query))
        sorted_parts = (part.split(size) for part in (order, seen.indices, roots, held))
        groups = [  # and for each j the first mask that holds more than j pixels
            (rows, cols, root, [int((count <= j).sum()) for j in range(count[-1])])
            for rows, cols, root, count in zip(*sorted_parts, strict=True)
        ]

        def update(query: Tensor, chunk: Tensor) -> SoftmaxState:
            states, values = [], chunk.flatten(1).T.to(query)  # (D, c)
            for rows, cols, root, firsts in groups:
                logits = query.new_zeros(len(rows), len(query), len(chunk))
                for j, first in enumerate(firsts):
                    own, factor = cols[first:, j], root[first:, j, None]
                    theirs = factor * values.index_select(0, own)  # (r, c)
                    ours = factor * query.T.index_select(0, own)  # (r, B)
                    away = theirs[:, None] - ours[..., None]
                    logits[first:].addcmul_(away, away, value=-1)
                outputs = values.index_select(0, rows)
                both = torch.stack([torch.ones_like(outputs), outputs], 1)
                states.append(_softmax(logits, both))
            peak, total, weighted = (torch.cat(part).T for part in zip(*states, strict=True))
            return SoftmaxState(peak / BITS, total, weighted)

        found = _accumulate(update, query, images.split(min(self.chunk, BLOCK)))
        back, exact = order.argsort(), precise_dtype(x.device)
        parts = (found.peak, found.total, found.weighted)
        return SoftmaxState(*(part[:, back].to(exact) for part in parts))

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
        """Cut the product with ``weights`` (D, D) into the cheapest set of tiles and parts."""
        index = torch.arange(len(weights), device=weights.device).view(self.shape)
        best, best_cost = None, float("inf")
        for side, inner in ((14, 14), (7, 7), (4, 4), (4, 2)):
            blocks = [
                [part.flatten() for part in _squares(block, inner)]
                for block in _squares(index, side)
            ]
            shared = [_most(weights[torch.cat(parts)]) for parts in blocks]
            nothing = torch.zeros_like(weights[0])
            for bases in ([nothing] * len(blocks), shared):
                based = any(bool(base.any()) for base in bases)
                tiles, cost = [], based * len(blocks) * queries * len(weights)
                for base, parts in zip(bases, blocks, strict=True):
                    used = [(weights[rows] != base).any(0).nonzero()[:, 0] for rows in parts]
                    tiles.append((base, list(zip(parts, used, strict=True))))
                    for rows, cols in tiles[-1][1]:
                        cost += (len(rows) * (queries + 1) + COPY) * len(cols) + HANDLING
                if cost < best_cost:
                    best, best_cost = tiles, cost
        return [
            Tile(base, [Part(r, cols, weights[r][:, cols] - base[cols]) for r, cols in parts])
            for base, parts in best
        ]


def _most(weights: Tensor) -> Tensor:
    """What most rows of ``weights`` (r, D) hold, (D,), if they hold zero and one other number."""
    return torch.where(2 * weights.count_nonzero(0) > len(weights), weights.amax(0), 0)


def _squares(index: Tensor, side: int) -> Iterator[Tensor]:
    """The ``side`` x ``side`` squares of ``index`` (C, H, W), all channels, smaller at its end."""
    for rows in index.split(side, 1):
        yield from rows.split(side, 2)


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
    double: Tensor, values: Tensor, shared: Tensor, tile: Tile, outputs: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax state (peak, total, weighted), each (r, B), of a tile for one chunk of images.

    ``double`` (B, D) is twice the queries and ``values`` (D, c) the images, counted from the
    centre; ``shared`` (B, c) is what the logits have under the tile's base, and ``outputs``
    (r, count) the tile's own pixels of the images, the first ``count`` of the c columns.
    """
    seen = [values.index_select(0, cols) for _, cols, _ in tile.parts]  # (n, c) each
    squares = [part.weights @ own.square() for part, own in zip(tile.parts, seen, strict=True)]
    squares = BITS * torch.cat(squares)  # (r, c)
    both = torch.stack([torch.ones_like(outputs), outputs], 1).float()  # (r, 2, count)
    states = []
    group = max(1, ROWS // len(squares))
    for q, base in zip(double.split(group), shared.split(group), strict=True):
        logits = base - squares[:, None]  # (r, b, c)
        start = 0
        for (rows, cols, weights), own in zip(tile.parts, seen, strict=True):
            masked = q.index_select(1, cols) * weights[:, None]  # (rows, b, n)
            logits[start : start + len(rows)].flatten(0, 1).addmm_(masked.flatten(0, 1), own)
            start += len(rows)
        states.append(_softmax(logits[..., : outputs.shape[1]], both))
    return tuple(torch.cat(parts, 1) for parts in zip(*states, strict=True))


def _softmax(logits: Tensor, both: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax state (peak, total, weighted), each (r, B), of ``logits`` (r, B, c), which are lost;
    ``both`` (r, 2, c) is one, and the values."""
    peak = logits.detach().amax(2, keepdim=True)
    weights = logits.sub_(peak).to(both.dtype).clamp_(min=LOWEST_LOGIT).exp2_()
    total, weighted = (both @ weights.transpose(1, 2)).unbind(1)
    return peak[..., 0], total, weighted


def _byte_state(
    query: Tensor, weights: Tensor, count: int, group: list[Block], *, precise: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax state (peak, total, weighted), each (B, D), over a group of images, of ``query``
    (B, D) float64, in ``count`` digits, under ``weights`` (D, D)."""
    states = []
    rows = max(1, MEMORY // (query.numel() * count))
    for start in range(0, len(weights), rows):
        pixels = slice(start, start + rows)
        queries = ByteQueries(query, weights[pixels].double(), count, precise=precise)
        found = _accumulate(partial(_byte_update, queries, pixels), queries.constant, group)
        peak = found.peak + queries.constant
        states.append((peak, found.total.double(), found.weighted.double()))
    return tuple(torch.cat(parts, 1) for parts in zip(*states, strict=True))


def _byte_update(queries: ByteQueries, pixels: slice, _: Tensor, block: Block) -> SoftmaxState:
    """Softmax state of ``pixels`` for one block of images, without the queries' constant."""
    states, outputs = [], block.outputs(pixels)
    for (logits, lacking), both in zip(
        queries.logits(block), outputs.split(queries.pixels), strict=True
    ):
        peak, total, weighted = _softmax(logits, both)
        states.append((peak.double() + lacking[..., 0], total, weighted))
    peak, total, weighted = (torch.cat(part).T for part in zip(*states, strict=True))
    return SoftmaxState(peak / BITS, total, weighted)
