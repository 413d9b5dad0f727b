"""Patch denoisers: Kamb & Ganguli's equivariant score machine and Niedoba's patch posteriors.

Both compare windows of the noisy image with windows of the training images, and both comparisons
are box filters. For one displacement d between query and training image, the squared difference
of the pixels, summed over a square window, is the distance of *all* windows that are d apart: two
products with a band matrix, whose cost does not depend on the side of the window. The local
machine (LS) needs the displacement 0 only (``LocalDenoiser`` with ``masks.square``), Niedoba's
PSPC too; the equivariant machine (ELS) takes every displacement.

Images are held as (C, H, W, n), the training images last, so that every step runs over long rows.
Numbers have the precision of the query: float64 queries are answered in float64.
"""

import itertools
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..data import ImageSet, check_shape
from ..schedule import check_sigma
from .base import check_count, keep_freed_memory, precise_dtype, training_images
from .streaming import LOWEST_LOGIT, SoftmaxState, accumulate, softmax_weights

BOUNDARIES = ("circular", "complete", "broken")
# The peak of a pixel that has met no patch yet. Not minus infinity: that minus itself is NaN.
NOTHING_SEEN = -1e30
# Patches that hold at most this share of the pixels are faster as lists of their pixels.
SPARSE = 0.12


class Move(NamedTuple):
    """Along one axis: patches centred at ``start`` ... ``stop`` - 1, queries ``shift`` before them.

    ``window`` (stop - start, high - low) holds 1 where a patch covers pixel low, low + 1, ...
    """

    shift: int
    start: int
    stop: int
    low: int
    high: int
    window: Tensor


class ELSDenoiser:
    """Equivariant local score machine: each pixel follows patches from anywhere in any image.

    logit_p(m) = -||window of x around m - patch p||^2 / (2 sigma^2) over all channels, p any
    ``side`` x ``side`` patch of any training image, and D(x)[m] = sum_p softmax_p(logit_p(m)) c_p
    with c_p the patch's centre pixel (Kamb & Ganguli 2025, section 3). It is what a convolutional
    network of that receptive field can know: what there is, but not where.

    A query is compared with H^2 W^2 N windows, H W times as many as the local machine's; give it
    a subset of the images, or a ``stride``, where that takes too long.

    Args:
        images: (N, C, H, W), or an ImageSet.
        side: odd side of the patches in pixels, or a function of sigma (``sides.by_noise_level``).
            In circular images a side beyond H or W stands for the whole height or width.
        boundary: "circular": images are tori, patches wrap around. "complete": queries wrap
            around, but only patches that lie whole in their image are in the dictionary (as in
            the authors' released code). "broken": the machine of zero-padded networks. Windows
            that lie whole in the image follow all such patches; windows that an edge cuts follow
            only patches cut alike, moved along that edge; at corners, only patches at their place.
        stride: compare windows whose distance is a multiple of this along both axes, at
            1 / stride^2 of the cost. 1 is the machine itself. The image's height or width leaves
            each window its own place only: with "broken" that is LS, in a time that does not
            depend on the window.
        chunk: training images handled at a time; changes time and memory, not the result.
    """

    def __init__(
        self,
        images: ImageSet | Tensor,
        side: int | Callable[[float], int],
        *,
        boundary: str = "circular",
        stride: int = 1,
        chunk: int = 1024,
    ):
        if boundary not in BOUNDARIES:
            raise ValueError(f"boundary must be one of {', '.join(BOUNDARIES)}, got {boundary!r}")
        self.images = training_images(images)
        self.shape = tuple(self.images.shape[1:])
        self.side = side
        self.boundary = boundary
        self.stride = check_count(stride, name="stride")
        self.chunk = check_count(chunk, name="chunk")

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Posterior mean, (B, C, H, W), of the noisy images ``x`` (B, C, H, W)."""
        check_shape(x, self.shape)
        scale = -1 / (2 * check_sigma(sigma) ** 2)
        rows, cols = self._moves(sigma, x)
        sums = precise_dtype(x.device)
        keep_freed_memory()

        chunks = self.images.split(self.chunk)
        pieces = list(itertools.product(range(len(chunks)), rows, cols))

        @lru_cache(maxsize=1)  # all moves of a chunk follow one another
        def values(k: int) -> Tensor:
            return _images_last(chunks[k], x)

        def update(x: Tensor, piece: tuple[int, Move, Move]) -> SoftmaxState:
            k, row, col = piece
            states = [_compare(q, values(k), row, col, scale) for q in x]
            # There are tens of thousands of pieces: their sums need more digits than each of them.
            return SoftmaxState(*(torch.stack(s).to(sums) for s in zip(*states, strict=True)))

        return accumulate(update, x, pieces).mean().to(x.dtype)

    def jacobian_rows(self, x: Tensor, sigma: float, pixels: Tensor) -> Tensor:
        """Rows of dD/dx for the flat output ``pixels``, (B, P, D).

        dD[m]/dx[n] = Cov_p(c_p, the patch's pixel over n) / sigma^2 under the softmax of pixel m,
        and 0 for n outside m's window.
        """
        check_shape(x, self.shape)
        rows, cols = self._moves(sigma, x)
        _, height, width = self.shape
        answer = torch.zeros(len(x), len(pixels), *self.shape, dtype=x.dtype, device=x.device)
        for p, pixel in enumerate(torch.as_tensor(pixels).tolist()):
            channel, place = divmod(pixel, height * width)
            patch_rows, own_rows = _windows(rows, place // width, height)
            patch_cols, own_cols = _windows(cols, place % width, width)
            middle = (own_rows == place // width).nonzero(), (own_cols == place % width).nonzero()
            centre = (channel * len(own_rows) + int(middle[0])) * len(own_cols) + int(middle[1])
            # One row of patches of a few images at a time: they hold side^2 copies of the images.
            few = max(1, 2_000_000 // (patch_cols.numel() * len(own_rows) * self.shape[0]))

            def pieces(patch_rows: Tensor = patch_rows, few: int = few) -> Iterator[tuple]:
                for chunk in self.images.split(few):
                    yield from ((chunk, line) for line in patch_rows)

            def update(
                window: Tensor, piece: tuple, columns: Tensor = patch_cols, centre: int = centre
            ) -> SoftmaxState:
                chunk, line = piece
                patches = chunk[:, :, line][..., columns]  # (n, C, side, moves, side)
                patches = patches.permute(0, 3, 1, 2, 4).flatten(0, 1).flatten(1).to(window)
                logits = (patches @ window - patches.square().sum(1) / 2) / sigma**2
                peak, weights = softmax_weights(logits, dim=0)
                centred = torch.stack([weights, weights * patches[:, centre]])
                return SoftmaxState(peak, weights.sum(), centred @ patches)

            for b, query in enumerate(x):
                window = query[:, own_rows[:, None], own_cols].to(precise_dtype(x.device))
                mean, product = accumulate(update, window.flatten(), pieces()).mean()
                covariance = (product - mean[centre] * mean).view_as(window) / sigma**2
                answer[b, p, :, own_rows[:, None], own_cols] = covariance.to(x.dtype)
        return answer.flatten(2)

    def _side(self, sigma: float) -> int:
        """The side at this noise level, checked."""
        side = self.side(check_sigma(sigma)) if callable(self.side) else self.side
        if not isinstance(side, int) or side < 1 or side % 2 == 0:
            raise ValueError(f"side must be an odd, positive whole number, got {side!r}")
        smallest = min(self.shape[1:])
        if self.boundary == "complete" and side > smallest:
            raise ValueError(f"no complete patch of side {side} fits images of {self.shape[1:]}")
        return side

    def _moves(self, sigma: float, like: Tensor) -> tuple[list[Move], list[Move]]:
        side = self._side(sigma)
        return tuple(
            [m for m in _axis_moves(size, side, self.boundary, like) if m.shift % self.stride == 0]
            for size in self.shape[1:]
        )


def _axis_moves(size: int, side: int, boundary: str, like: Tensor) -> Iterator[Move]:
    """All displacements along an axis of ``size`` pixels, and which patches each may use."""
    places = torch.arange(size, device=like.device)
    distance = (places[:, None] - places).abs()
    reach = side // 2
    if boundary == "circular":
        distance = torch.minimum(distance, size - distance)
    window = (distance <= reach).to(like.dtype)  # [patch, pixel]
    if boundary == "broken":
        yield Move(0, 0, size, 0, size, window)
        inside = max(0, size - 2 * reach)
        for shift in (s for s in range(1 - inside, inside) if s != 0):
            start, stop = reach + max(shift, 0), size - reach + min(shift, 0)
            low, high = start - reach, stop + reach
            yield Move(shift, start, stop, low, high, window[start:stop, low:high])
    else:
        start, stop = (reach, size - reach) if boundary == "complete" else (0, size)
        for shift in range(size):
            yield Move(shift, start, stop, 0, size, window[start:stop])


def _compare(q: Tensor, values: Tensor, row: Move, col: Move, scale: float) -> tuple[Tensor, ...]:
    """Softmax state of one query (C, H, W) against the patches (C, H, W, n) one move away."""
    aligned = q.roll((row.shift, col.shift), (1, 2))[:, row.low : row.high, col.low : col.high]
    squares = _squares(values[:, row.low : row.high, col.low : col.high], aligned)
    peak, weights = softmax_weights(_box(squares, row.window * scale, col.window), dim=-1)
    centres = values[:, row.start : row.stop, col.start : col.stop]
    height, width = q.shape[1:]
    border = (col.start, width - col.stop, row.start, height - row.stop)
    return tuple(
        pad(part, border, value=empty).roll((-row.shift, -col.shift), (1, 2))
        for part, empty in (
            (peak[None, ..., 0], NOTHING_SEEN),
            (weights.sum(-1)[None], 0.0),
            ((weights * centres).sum(-1), 0.0),
        )
    )


def _squares(values: Tensor, q: Tensor) -> Tensor:
    """(H, W, n): squared distance of pixels (C, H, W, n) and (C, H, W), over the channels."""
    squares = (values - q[..., None]).square()
    return squares[0] if len(squares) == 1 else squares.sum(0)


def _box(pixels: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Sums of (H, W, n) over windows: rows (R, H) and cols (S, W) give (R, S, n)."""
    height, width, count = pixels.shape
    return cols @ (rows @ pixels.reshape(height, width * count)).view(-1, width, count)


def _images_last(chunk: Tensor, like: Tensor) -> Tensor:
    """(n, C, H, W) as (C, H, W, n) in the precision of ``like``."""
    return chunk.to(like.dtype).permute(1, 2, 3, 0).contiguous()


def _product_form(matrix: Tensor) -> Tensor:
    """``matrix`` in the form in which its products are fastest: of few entries, only those.

    On a CPU. Elsewhere the dense product is fast, and not every accelerator has the other.
    """
    if matrix.device.type != "cpu" or matrix.count_nonzero() > SPARSE * matrix.numel():
        return matrix
    with warnings.catch_warnings():  # that the interface of sparse rows may still change
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return matrix.to_sparse_csr()


def _windows(moves: list[Move], place: int, size: int) -> tuple[Tensor, Tensor]:
    """Of the output pixel at ``place``: the pixels of each of its patches (moves, k), its own (k,).

    In one order: entry j of a patch is compared with entry j of the pixel's own window.
    """
    patches = []
    for move in moves:
        centre = (place + move.shift) % size
        if move.start <= centre < move.stop:
            covered = move.window[centre - move.start].nonzero()[:, 0] + move.low
            own, order = ((covered - move.shift) % size).sort()
            patches.append(covered[order])
    return torch.stack(patches), own


class PSPCDenoiser:
    """Patch set posterior composites: patches at their own place, averaged where they overlap.

    For each patch C: E[x_C | x] = sum_k softmax_k(-||C x - C x_k||^2 / (2 sigma^2)) C x_k, and
    D = (sum_C C^T C)^-1 sum_C C^T E[x_C | x] (Niedoba et al. 2025). The local machine keeps the
    centre of each patch only. The images are read twice: for the patches' normalisers, then for
    the average, so that no patch posterior is ever stored.

    Args:
        images: (N, C, H, W), or an ImageSet.
        patch: what one patch is, or a function sigma -> that. A whole number: the side of square
            patches, of which all that lie in the image are used (PSPC-Square; the time does not
            depend on it). A (P, H W) tensor of zeros and ones: P patches of any form, a row each,
            which hold all channels of their pixels (PSPC-Flex; ``masks.top_share`` makes them of
            a network's sensitivity).
        chunk: training images handled at a time; changes time and memory, not the result.
    """

    def __init__(
        self,
        images: ImageSet | Tensor,
        patch: int | Tensor | Callable[[float], int | Tensor],
        *,
        chunk: int = 256,
    ):
        self.images = training_images(images)
        self.shape = tuple(self.images.shape[1:])
        self.patch = patch
        self.chunk = check_count(chunk, name="chunk")

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Averaged patch posteriors, (B, C, H, W), of the noisy images ``x`` (B, C, H, W)."""
        check_shape(x, self.shape)
        scale = -1 / (2 * check_sigma(sigma) ** 2)
        patch = self.patch(sigma) if callable(self.patch) else self.patch
        gather, spread = self._flex(patch, x) if isinstance(patch, Tensor) else self._box(patch, x)

        def normaliser(x: Tensor, chunk: Tensor) -> SoftmaxState:
            states, values = [], _images_last(chunk, x)
            for q in x:
                peak, weights = softmax_weights(gather(values, q) * scale, dim=-1)
                total = weights.sum(-1, keepdim=True)
                states.append((peak, total, total))
            return SoftmaxState(*(torch.stack(parts) for parts in zip(*states, strict=True)))

        def average(both: Tensor, chunk: Tensor) -> SoftmaxState:
            states, values = [], _images_last(chunk, x)
            queries, log_totals = both.split((pixels, both.shape[1] - pixels), dim=1)
            queries, log_totals = queries.view_as(x), log_totals.view_as(state.peak)
            for q, log_total in zip(queries, log_totals, strict=True):
                logits = gather(values, q) * scale - log_total
                weights = spread(logits.clamp(min=LOWEST_LOGIT).exp())  # of every pixel's patches
                states.append((weights.sum(-1), (weights * values).sum(-1)))
            total, weighted = (torch.stack(parts) for parts in zip(*states, strict=True))
            return SoftmaxState(torch.zeros_like(total), total, weighted)

        keep_freed_memory()
        chunks, pixels = self.images.split(self.chunk), x[0].numel()
        state = accumulate(normaliser, x, chunks)
        both = torch.cat([x.flatten(1), (state.peak + state.total.log()).flatten(1)], dim=1)
        # A patch's weights sum to 1, so the total is the number of patches that cover the pixel.
        return accumulate(average, both, chunks).mean()

    def _box(self, side: int, like: Tensor) -> tuple[Callable, Callable]:
        """How square patches gather squared differences and spread their weights."""
        _, height, width = self.shape
        if not isinstance(side, int) or not 1 <= side <= min(height, width):
            raise ValueError(
                f"patch must be a side between 1 and {min(height, width)} or a tensor of patches, "
                f"got {side!r}"
            )
        bands = []
        for size in (height, width):
            offset = torch.arange(size) - torch.arange(size - side + 1)[:, None]
            bands.append(((offset >= 0) & (offset < side)).to(like))
        rows, cols = bands
        return (
            lambda values, q: _box(_squares(values, q), rows, cols),
            lambda weights: _box(weights, rows.T, cols.T)[None],
        )

    def _flex(self, patches: Tensor, like: Tensor) -> tuple[Callable, Callable]:
        """The same for patches of any form, (P, H W)."""
        _, height, width = self.shape
        pixels = height * width
        if patches.ndim != 2 or patches.shape[1] != pixels:
            raise ValueError(
                f"patches must be (P, {pixels}) for images of shape {self.shape}, "
                f"got {tuple(patches.shape)}"
            )
        patches = patches.to(like)
        if not bool(((patches == 0) | (patches == 1)).all()):
            raise ValueError("patches must hold zeros and ones: a pixel is in a patch or is not")
        if not bool(patches.any(0).all()):
            missing = int((~patches.any(0)).nonzero()[0])
            raise ValueError(f"no patch covers pixel {missing}: it would see no data")
        if not bool(patches.any(1).all()):
            raise ValueError(f"patch {int((~patches.any(1)).nonzero()[0])} is empty")
        onto, back = _product_form(patches), _product_form(patches.T)
        return (
            lambda values, q: onto @ _squares(values, q).flatten(0, 1),
            lambda weights: (back @ weights).view(1, height, width, -1),
        )
