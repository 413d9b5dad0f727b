"""The equivariant machine, screened: cells of like patches, and only the nearest cells in full.

``ELSDenoiser`` compares every window with every patch of its dictionary: millions. At low noise a
few hundred of them hold nearly all of the weight, so they are looked for as in a library whose
shelves are labelled. The patches are projected on their principal components and sorted into
cells by k-means, in two levels. Then every window meets

* a sample of the dictionary, drawn evenly from all cells and the same for every window, and
* all patches of the cells whose centres are nearest to it, unless the sample says that the
  weights are so even that it suffices.

The sums over the dictionary, of the weights and of the weighted centre pixels, are those over the
nearest cells, plus those over the sample in the other cells, where a drawn patch stands for n / t:
t patches were drawn out of the n of its cell. Both sums are unbiased for given cells. A cell's
patches are cut out of the images once, for all windows that ask for them.

The projection decides which patches are compared; the comparison itself is that of whole windows.
"""

import math
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from ..data import ImageSet, check_shape
from ..schedule import check_sigma
from .base import check_count, keep_freed_memory, precise_dtype
from .patches import NOTHING_SEEN, ELSDenoiser
from .streaming import SoftmaxState, softmax_weights
from .subset import Screened, audited

RANK, COMPARED = 24, 10_000  # principal components of so many patches, which are sorted in them
CELL, BRANCHES = 300, 64  # patches in a cell, if that takes at most so many branches at each level
TRAINED = 40  # patches a cell that k-means learns from,
ROUNDS = 6  # in so many rounds
WHOLE = 1.5  # times ``keep``: sorting a smaller dictionary costs more than it saves
ENOUGH = 2000  # effective patches: more weigh so evenly that a sample of them suffices
BLOCK = 2**21  # numbers in a block of patches, or of their logits


class Band(NamedTuple):
    """Along one axis: places that share a dictionary, and where its patches start."""

    places: range  # of the output pixels
    starts: range  # of the patches, in the image (padded if it wraps around)
    length: int  # of a window, in pixels
    centre: int  # of the window's pixels, which is the output


class ScreenedELSDenoiser:
    """``ELSDenoiser``, approximately: the same three boundaries, on many images.

    Without gradients; ``ELSDenoiser`` has them.

    Args:
        images: (N, C, H, W), or an ImageSet.
        side: odd side of the patches in pixels, or a function of sigma (``sides.by_noise_level``).
        boundary: "circular", "complete" or "broken", as in ``ELSDenoiser``.
        keep: patches in the nearest cells that each window is compared with. A dictionary of at
            most half as many again is not sorted into cells: all of it counts as near.
        draw: patches in the sample. With as many as the dictionary holds the answer is exact.
        seed: of cells and sample, which are the same in every call.
    """

    def __init__(
        self,
        images: ImageSet | Tensor,
        side: int | Callable[[float], int],
        *,
        boundary: str = "circular",
        keep: int = 150_000,
        draw: int = 10_000,
        seed: int = 0,
    ):
        # Where each window has its own place only, at corners, the exact machine is fast.
        stride = max((images.images if isinstance(images, ImageSet) else images).shape[-2:])
        self.exact = ELSDenoiser(images, side, boundary=boundary, stride=stride)
        self.keep = check_count(keep, name="keep")
        self.draw = check_count(draw, name="draw")
        self.seed = seed
        self._known: tuple[int, list[Dictionary]] = (0, [])

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Approximate posterior mean, (B, C, H, W) float32, of noisy ``x`` (B, C, H, W)."""
        return self._answer(x, sigma)[0]

    def denoise_with_bound(self, x: Tensor, sigma: float) -> Screened:
        """The same answer, and how wrong it is: see ``ScreenedLocalDenoiser.denoise_with_bound``.

        The exact answer at 59 random pixels takes longer than the approximate one everywhere.
        """
        answer, estimate = self._answer(x, sigma)
        pixels = audited(x[0].numel(), seed=self.seed).to(x.device)
        exact = self.at_pixels(x, sigma, pixels)
        errors = answer.flatten(1)[:, pixels] - exact
        return Screened(answer, estimate, errors.abs().amax(1), pixels, errors)

    @torch.no_grad()
    def at_pixels(self, x: Tensor, sigma: float, pixels: Tensor) -> Tensor:
        """The exact answer at the flat output ``pixels``, (B, P) float32: all patches compared."""
        check_shape(x, self.exact.shape)
        sigma = check_sigma(sigma)
        height, width = self.exact.shape[1:]
        channel, place = pixels // (height * width), pixels % (height * width)
        answer = x.new_empty(len(x), len(pixels), dtype=torch.float32)
        for dictionary in self._dictionaries(self.exact._side(sigma)):
            own = dictionary.places(height, width).to(x.device)
            mine = torch.isin(place, own).nonzero()[:, 0]
            if len(mine):
                queries = dictionary.queries(x)[:, torch.searchsorted(own, place[mine])]
                mean = dictionary.compare_all(queries.flatten(0, 1), sigma).mean()
                mean = mean.view(len(x), len(mine), -1)
                picked = channel[mine].expand(len(x), -1)[..., None]
                answer[:, mine] = mean.gather(2, picked)[..., 0]
        return answer

    @torch.no_grad()
    def _answer(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """The answer and the standard errors of the draw, both shaped as ``x``."""
        check_shape(x, self.exact.shape)
        sigma = check_sigma(sigma)
        side = self.exact._side(sigma)
        keep_freed_memory()
        broken = self.exact.boundary == "broken"
        answer = self.exact(x.float(), sigma) if broken else torch.empty_like(x.float())
        spread = torch.zeros_like(answer)
        for dictionary in self._dictionaries(side):
            if dictionary.fixed:
                continue  # a corner: done
            queries = dictionary.queries(x).flatten(0, 1)
            mean, error = dictionary.screen(queries, sigma)
            rows, cols = dictionary.row.places, dictionary.col.places
            for whole, part in ((answer, mean), (spread, error)):
                part = part.view(len(x), len(rows), len(cols), -1).permute(0, 3, 1, 2)
                whole[:, :, rows.start : rows.stop, cols.start : cols.stop] = part
        return answer, spread

    def _dictionaries(self, side: int) -> list["Dictionary"]:
        """Of all classes of places; those of the last side are kept, with their cells."""
        if self._known[0] != side:
            self._known = (0, [])  # frees the memory of the last side's first
            images, boundary = self.exact.images, self.exact.boundary
            rows, cols = (_bands(size, side, boundary) for size in self.exact.shape[1:])
            wrap = (0, 0, 0, 0)
            if boundary != "broken":
                (row,), (col,) = rows, cols
                wrap = (col.centre, col.length - 1 - col.centre)
                wrap += (row.centre, row.length - 1 - row.centre)
            if boundary == "circular":
                images = pad(images, wrap, mode="circular")
            found = [
                Dictionary(images, row, col, wrap, self.keep, self.draw, self.seed)
                for row, col in product(rows, cols)
            ]
            self._known = (side, found)
        return self._known[1]


def _bands(size: int, side: int, boundary: str) -> list[Band]:
    """The classes of places along an axis of ``size`` pixels."""
    reach = side // 2
    if boundary != "broken":
        before, after = min(reach, size // 2), min(reach, (size - 1) // 2)
        starts = range(size) if boundary == "circular" else range(size - side + 1)
        return [Band(range(size), starts, before + after + 1, before)]
    inside = range(reach, size - reach)
    bands = [Band(inside, range(len(inside)), side, reach)] if len(inside) else []
    for place in (i for i in range(size) if i not in inside):
        low, high = max(0, place - reach), min(size, place + reach + 1)
        bands.append(Band(range(place, place + 1), range(low, low + 1), high - low, place - low))
    return bands


class Cells(NamedTuple):
    """A dictionary's patches in K cells, and a sample of them. A patch is where it starts."""

    basis: Tensor  # (d, r), the principal components
    middles: Tensor  # (K, r), the cells' means, projected
    starts: Tensor  # (M,) patches, cell after cell
    ends: Tensor  # (K + 1,), cell k is ends[k] ... ends[k + 1] - 1
    blank: float  # the commonest value of a pixel,
    blanks: int  # and the patches that hold nothing else; they are in no cell
    sample: Tensor  # (S,) patches drawn,
    drawn_from: Tensor  # (S,) their cells,
    log_stands: Tensor  # (S,) and the log of how many patches each stands for


class Dictionary:
    """All patches that the windows of one class of places may follow.

    Patches and windows are (C h w) vectors. Patches are named by the index of their first pixel
    among all of ``images`` (N, C, H, W), padded if they wrap around, and cut out when needed.
    """

    def __init__(
        self,
        images: Tensor,
        row: Band,
        col: Band,
        wrap: tuple[int, int, int, int],
        keep: int,
        draw: int,
        seed: int,
    ):
        self.images, self.row, self.col, self.wrap = images, row, col, wrap
        self.keep, self.draw, self.seed = keep, draw, seed
        _, channels, height, width = images.shape
        self.flat = images.flatten()
        self.lines = self.flat.as_strided((len(self.flat) - col.length + 1, col.length), (1, 1))
        line = torch.arange(channels)[:, None] * height + torch.arange(row.length)
        self.line = (line.flatten() * width).to(images.device)  # starts of a patch's lines
        area = row.length * col.length
        self.middle = torch.arange(channels, device=images.device) * area
        self.middle += row.centre * col.length + col.centre  # the centre pixel's index, (C,)
        self.pixels = channels * area
        # Millions of starts are kept: in half of the memory, where their numbers allow it.
        self.index = torch.int32 if len(self.flat) < 2**31 else torch.int64

    @property
    def fixed(self) -> bool:
        """Whether every window has its own place only."""
        return len(self.row.starts) == len(self.col.starts) == 1

    def __len__(self) -> int:
        return len(self.images) * len(self.row.starts) * len(self.col.starts)

    def places(self, height: int, width: int) -> Tensor:
        """The flat places of the class in an image, in the order of ``queries``."""
        rows, cols = torch.tensor(self.row.places), torch.tensor(self.col.places)
        return (rows[:, None] * width + cols).flatten()

    def queries(self, x: Tensor) -> Tensor:
        """The windows around the places of the class, (B, places, C h w) float32."""
        x = x.float()
        if any(self.wrap):
            x = pad(x, self.wrap, mode="circular")
        windows = x.unfold(2, self.row.length, 1).unfold(3, self.col.length, 1)
        rows, cols = (
            slice(band.places.start - band.centre + before, band.places.stop - band.centre + before)
            for band, before in ((self.row, self.wrap[2]), (self.col, self.wrap[0]))
        )
        return windows[:, :, rows, cols].permute(0, 2, 3, 1, 4, 5).flatten(1, 2).flatten(2)

    def starts(self) -> Iterator[Tensor]:
        """The first pixels of all patches, (n,) a block."""
        width = self.images.shape[3]
        rows, cols = torch.tensor(self.row.starts), torch.tensor(self.col.starts)
        one = (rows[:, None] * width + cols).flatten().to(self.images.device)
        few = max(1, BLOCK // (self.pixels * len(one)))
        firsts = torch.arange(len(self.images), device=one.device) * self.images[0].numel()
        for part in firsts.split(few):
            yield (part[:, None] + one).flatten().to(self.index)

    def cut(self, starts: Tensor) -> Tensor:
        """The patches that start there, (n, C h w)."""
        lines = (starts[:, None] + self.line).flatten()
        return self.lines.index_select(0, lines).view(len(starts), self.pixels)

    def compare_all(self, queries: Tensor, sigma: float) -> SoftmaxState:
        """Windows (Q, C h w) against every patch; the state's parts are (Q, 1) or (Q, C)."""
        state, queries = _nothing(queries, len(self.middle)), queries / sigma**2
        for starts in self.starts():
            _meet(state, queries, self.cut(starts), self.middle, sigma)
        return state

    def screen(self, queries: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Estimated posterior means of windows (Q, C h w) and their standard errors, (Q, C)."""
        cells, state = self.cells, _nothing(queries, len(self.middle))
        sample = self.cut(cells.sample)
        logs = cells.log_stands - sample.square().sum(1) / (2 * sigma**2)
        centres = sample[:, self.middle].T  # f, (C, S)
        sums = torch.cat([torch.ones_like(centres[:1]), centres, centres**2])
        # A patch that stands for itself alone adds no error; of t out of n, 1 - t / n remains.
        free = (1 - (-cells.log_stands).exp()) * sums
        asked = torch.empty(len(cells.middles), len(queries), dtype=torch.bool, device=logs.device)
        moments = []
        step = max(1, 4 * BLOCK // len(sample))
        for first in range(0, len(queries), step):
            part = slice(first, first + step)
            logits = ((queries[part] / sigma**2) @ sample.T).add_(logs)
            _, weights = softmax_weights(logits, dim=1)
            effective = weights.sum(1).square() / (weights.square_() @ free[0])
            near = self._near(queries[part], cells)
            near &= (effective < ENOUGH)[:, None]
            asked[:, part] = near.T
            logits.masked_fill_(near.index_select(1, cells.drawn_from), NOTHING_SEEN)
            peak, weights = softmax_weights(logits, dim=1)
            state.peak[part], state.total[part] = peak, weights.sum(1, keepdim=True)
            state.weighted[part] = linear(weights, centres)
            moments.append(linear(weights.square_(), free))
        alone = state.peak.clone()
        if cells.blanks:
            blank = torch.full_like(queries[:1], cells.blank)
            _meet(state, queries / sigma**2, blank, self.middle, sigma, times=cells.blanks)
        self._meet_cells(state, queries / sigma**2, asked, sigma)
        mean = state.mean()
        one, first, second = torch.cat(moments).split((1, mean.shape[1], mean.shape[1]), 1)
        square = (second - 2 * mean * first + mean**2 * one).clamp(min=0)
        return mean, square.sqrt() * (alone - state.peak).exp() / state.total

    def _near(self, queries: Tensor, cells: Cells) -> Tensor:
        """Which cells each window asks for, (Q, K): the nearest ones that hold ``keep`` patches."""
        middles, sizes = cells.middles, cells.ends.diff()
        closeness = torch.addmm(-middles.square().sum(1) / 2, queries @ cells.basis, middles.T)
        order = closeness.topk(
            min(len(middles), 4 * self.keep * len(middles) // len(self) + 1)
        ).indices
        held = sizes[order].cumsum(1)
        wanted = (held <= self.keep) | (held == sizes[order])  # at least the first that holds any
        return torch.zeros_like(closeness, dtype=torch.bool).scatter_(1, order, wanted)

    def _meet_cells(
        self, state: SoftmaxState, queries: Tensor, asked: Tensor, sigma: float
    ) -> None:
        """Every window meets all patches of the cells that it ``asked`` for, (K, Q)."""
        ends = self.cells.ends.tolist()
        for k, marked in enumerate(asked):
            who = marked.nonzero()[:, 0]
            if len(who) == 0 or ends[k] == ends[k + 1]:
                continue
            for starts in self.cells.starts[ends[k] : ends[k + 1]].split(BLOCK // self.pixels + 1):
                patches = self.cut(starts)
                _meet(state, queries, patches, self.middle, sigma, who=who)

    @cached_property
    def cells(self) -> Cells:
        """The dictionary, sorted; made when it is first asked for."""
        generator = torch.Generator().manual_seed(self.seed)
        device = self.images.device
        if len(self) <= WHOLE * self.keep:
            basis, middles = torch.zeros(self.pixels, 1), torch.zeros(1, 1)
            starts, ends = torch.cat(list(self.starts())), torch.tensor([0, len(self)])
            blank, blanks = 0.0, 0
            basis, middles, ends = basis.to(device), middles.to(device), ends.to(device)
        else:
            blank = _commonest(self.images)
            branches = min(BRANCHES, max(2, int((len(self) / CELL) ** 0.5)))
            some = self._some(TRAINED * branches**2, generator)
            basis = _components(self.cut(some[:COMPARED]))
            parts = some.split(max(1, BLOCK // self.pixels))
            points = torch.cat([self.cut(part) @ basis for part in parts])
            tree = Tree(points, branches, generator)
            found, codes = [], []
            for part in self.starts():
                patches = self.cut(part)
                lit = (patches != blank).any(1).nonzero()[:, 0]
                found.append(part[lit])
                codes.append(tree.cell((patches @ basis)[lit]))
            codes, middles = torch.cat(codes), tree.middles
            starts = torch.cat(found)[codes.argsort(stable=True)]
            ends = torch.bincount(codes, minlength=len(middles)).cumsum(0)
            ends = pad(ends, (1, 0))
            blanks = len(self) - len(starts)
        sizes = ends.diff()
        drawn = (sizes * (self.draw / max(1, len(starts)))).round().long().clamp(min=1)
        drawn = drawn.minimum(sizes)
        # One in each of t equal parts of the cell: every patch is drawn with the same probability.
        cell = torch.repeat_interleave(drawn)
        number = torch.arange(len(cell), device=device) - (drawn.cumsum(0) - drawn)[cell]
        number = number + torch.rand(len(cell), generator=generator).to(
            device, precise_dtype(device)
        )
        stands = sizes[cell] / drawn[cell].to(number)
        place = (number * stands).long().minimum(sizes[cell] - 1)
        sample = starts[ends[cell] + place]
        return Cells(
            basis, middles, starts, ends, blank, blanks, sample, cell, stands.log().float()
        )

    def _some(self, count: int, generator: torch.Generator) -> Tensor:
        """Patches drawn at random with replacement, (count,)."""
        width = self.images.shape[3]
        axes = (len(self.images), len(self.row.starts), len(self.col.starts))
        image, row, col = (torch.randint(n, (count,), generator=generator) for n in axes)
        row, col = row + self.row.starts.start, col + self.col.starts.start
        starts = image * self.images[0].numel() + row * width + col
        return starts.to(self.images.device)


class Tree:
    """K-means in two levels: ``branches`` cells, and as many in each of them."""

    def __init__(self, points: Tensor, branches: int, generator: torch.Generator):
        self.top = _kmeans(points, branches, generator)
        nearest = _nearest(points, self.top)
        self.leaves = [
            _kmeans(points[nearest == k], branches, generator) for k in range(len(self.top))
        ]
        self.firsts = [0]
        for leaf in self.leaves:
            self.firsts.append(self.firsts[-1] + len(leaf))
        self.middles = torch.cat(self.leaves)  # (K, r)

    def cell(self, points: Tensor) -> Tensor:
        """The cell of each point, (n,)."""
        codes, branch = points.new_empty(len(points), dtype=torch.int16), _nearest(points, self.top)
        order = branch.argsort()
        counts = torch.bincount(branch, minlength=len(self.top)).tolist()
        for k, who in enumerate(order.split(counts)):
            if len(who):
                codes[who] = (self.firsts[k] + _nearest(points[who], self.leaves[k])).short()
        return codes


def _kmeans(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Means of clusters, (k, r); k is ``count``, or less where there are few points."""
    count = max(1, min(count, len(points) // 4))
    if len(points) == 0:
        return points.new_zeros(1, points.shape[1])
    means = points[torch.randperm(len(points), generator=generator)[:count].to(points.device)]
    for _ in range(ROUNDS):
        nearest = _nearest(points, means)
        sizes = torch.bincount(nearest, minlength=count)[:, None]
        sums = torch.zeros_like(means).index_add_(0, nearest, points)
        means = torch.where(sizes > 0, sums / sizes.clamp(min=1), means)
    return means


def _nearest(points: Tensor, means: Tensor) -> Tensor:
    """The index of the nearest mean, (n,)."""
    half = -means.square().sum(1) / 2
    step = max(1, BLOCK // len(means))
    return torch.cat([(part @ means.T).add_(half).max(1).indices for part in points.split(step)])


def _components(patches: Tensor) -> Tensor:
    """The leading principal components of patches (n, d), (d, r)."""
    covariance = torch.cov(patches.T).view(patches.shape[1], -1)
    return (
        torch.linalg.eigh(covariance.to("cpu", torch.float64))[1]  # LAPACK lives on the CPU
        .flip(1)[:, :RANK]
        .to(patches)
    )


def _commonest(images: Tensor) -> float:
    """The commonest value of the pixels of the first images."""
    values, counts = images[:200].unique(return_counts=True)
    return values[counts.argmax()].item()


def _nothing(queries: Tensor, channels: int) -> SoftmaxState:
    """The state of windows that have met no patch."""
    none = queries.new_zeros(len(queries), 1)
    return SoftmaxState(none + NOTHING_SEEN, none.clone(), none.repeat(1, channels))


def _meet(
    state: SoftmaxState,
    queries: Tensor,
    patches: Tensor,
    middle: Tensor,
    sigma: float,
    *,
    who: Tensor | None = None,
    times: int = 1,
) -> None:
    """Add patches (n, d) to the state of the windows ``who`` (all if None), in place.

    ``queries`` are the windows over sigma^2; each patch counts ``times``.
    """
    logs = math.log(times) - patches.square().sum(1) / (2 * sigma**2)
    centres = patches[:, middle]
    if who is None:
        who = torch.arange(len(queries), device=queries.device)
    for part in who.split(max(1, 2 * BLOCK // len(patches))):
        peak, weights = softmax_weights((queries[part] @ patches.T).add_(logs), dim=1)
        old = SoftmaxState(state.peak[part], state.total[part], state.weighted[part])
        new = old.merge(SoftmaxState(peak, weights.sum(1, keepdim=True), weights @ centres))
        state.peak[part], state.total[part], state.weighted[part] = (
            new.peak,
            new.total,
            new.weighted,
        )
