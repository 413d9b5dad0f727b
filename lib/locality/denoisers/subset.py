"""The local denoiser, screened: every image is looked at once a tile, a few hundred once a pixel.

Neighbouring pixels have much the same mask, and at high noise all pixels have. So the image is cut
into tiles, or is one tile, and a tile's *mean* mask gives every training image a weight u_k there,
for a fraction of the cost of one for every pixel. Then images are drawn, each with a probability
that grows with u_k: at low noise the draw is that of the nearest images; at high noise, where
nearly all images count alike, it is a sample of all. Only for those drawn are the pixels' own
weights w_k computed. The softmax's sums over all images are estimated as

    sum_k w_k f_k  ~  sum_drawn w_k f_k / p_k  +  c (sum_all u_k f_k - sum_drawn u_k f_k / p_k)

with f = 1 and f = the pixel's value, p_k the probability to be drawn, and c the ratio of the two
sums over w and u. What is in brackets is zero on average; it takes away what the draw got wrong
about u. With all images drawn the sums are exact. Products whose rounding is small beside the
draw's error may round their factors to bfloat16 (`products`).

An error bound of the kind 2 R x (weight of the images left out) would need a lower bound on every
image's distance at every pixel. Those that are cheap to get (from a tile's common mask and the
range of the others) lose, under noise, tens of units in the exponent, and bound nothing. So the
error is measured instead, on pixels chosen at random: see ``denoise_with_bound``.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data import ImageSet
from .base import check_count, products
from .local import LocalDenoiser, Part, Tile, _squares
from .streaming import LOWEST_LOGIT, softmax_weights

# The whole image is one tile where masks hold more than WIDE of it: all are much alike. Else tiles
# have SIDE x SIDE pixels; or a quarter of the image's where masks hold fewer pixels than TINY:
# images near at so few are found in any large enough sample.
WIDE, TINY, SIDE = 0.4, 20, 4
ROUND = 256  # images drawn in a whole-image tile: a multiple of it
QUERIES = 8  # handled at a time: memory grows with queries x tiles x training images
FEWER = 2  # as small a part of the images wanted is drawn where nearly all weigh alike
NEGLIGIBLE = 1e-3  # share of a tile's weight beyond the images drawn
SHARE, CONFIDENCE = 0.95, 0.95  # what the bound claims, see denoise_with_bound


class Screened(NamedTuple):
    """What ``ScreenedLocalDenoiser.denoise_with_bound`` found out."""

    x0_hat: Tensor  # (B, C, H, W)
    estimate: Tensor  # (B, C, H, W), standard error of the draw: an estimate, no bound
    bound: Tensor  # (B,), holds for 95 % of an image's pixels, with 95 % confidence
    pixels: Tensor  # (P,), the flat pixels at which the exact answer was computed
    errors: Tensor  # (B, P), x0_hat minus the exact answer there


class ScreenedLocalDenoiser:
    """``LocalDenoiser``, approximately: for any mask, several times faster on many images.

    Without gradients; ``LocalDenoiser`` has them.

    Args:
        images: (N, C, H, W), or an ImageSet.
        mask: sigma -> (D, D) non-negative weights; see ``masks``.
        keep: images drawn for every query and tile, about; twice as many where the image is one
            tile, and half of that where nearly all weigh alike. With all N the answer is exact.
        seed: of the draw, which is the same in every call.
    """

    def __init__(
        self,
        images: ImageSet | Tensor,
        mask: Callable[[float], Tensor],
        *,
        keep: int = 1000,
        seed: int = 0,
    ):
        self.local = LocalDenoiser(images, mask)
        self.keep = check_count(keep, name="keep")
        self.seed = seed

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Approximate local posterior mean, (B, C, H, W) float32, of noisy ``x`` (B, C, H, W)."""
        return self._answer(x, self.local._weights(x, sigma), errors=False)[0]

    def denoise_with_bound(self, x: Tensor, sigma: float) -> Screened:
        """The same answer, and how wrong it is.

        At 59 pixels, drawn at random with replacement, the exact answer is computed too. The
        largest of 59 errors exceeds the 95th percentile of all pixels' errors with a probability
        of 1 - 0.95^59 > 95 %, whatever their distribution: this is ``bound``, one number an image.
        It holds over the choice of the pixels, which is the same in every call; at single pixels
        among the remaining 5 % the error may be larger. ``estimate`` says for every pixel how much
        another draw of images would change it; it knows nothing of images that a draw can hardly
        find, because only single pixels see them as near.
        """
        weights = self.local._weights(x, sigma)
        answer, estimate = self._answer(x, weights, errors=True)
        pixels = audited(len(weights), seed=self.seed).to(x.device)
        everywhere = torch.arange(len(weights), device=x.device)
        tile = Tile(torch.zeros_like(weights[0]), [Part(pixels, everywhere, weights[pixels])])
        exact = self.local._state(x, self.local.images, weights, [tile]).mean()  # (B, P)
        errors = answer.flatten(1)[:, pixels] - exact.to(x.dtype)
        return Screened(answer, estimate, errors.abs().amax(1), pixels, errors)

    @torch.no_grad()
    def _answer(self, x: Tensor, weights: Tensor, *, errors: bool) -> tuple[Tensor, Tensor]:
        """The answer and, if asked for, its standard errors (else zeros); both shaped as ``x``."""
        index = torch.arange(len(weights), device=x.device).view(self.local.shape)
        held = weights.count_nonzero().item() / len(weights)
        side = max(self.local.shape)
        if held < WIDE * len(weights):
            side = SIDE if held > TINY else max(SIDE, side // 2)
        tiles = [block.flatten() for block in _squares(index, side)]
        parts = [self._part(part, weights, tiles, errors) for part in x.split(QUERIES)]
        return tuple(torch.cat(found).to(x.dtype).view_as(x) for found in zip(*parts, strict=True))

    def _part(
        self, x: Tensor, weights: Tensor, tiles: list[Tensor], errors: bool
    ) -> tuple[Tensor, Tensor]:
        flat, centre = self.local.images.flatten(1), self.local.centre.flatten()
        coarse = self.keep < len(flat)
        if coarse:
            weights = weights.float()  # what float32 rounds away is little beside the draw
        query = (x.flatten(1) - centre).to(weights)  # (B, D)
        if len(tiles) == 1:
            used = tiles  # all pixels: copying some of the columns would take longer
        else:
            used = [weights[rows].any(0).nonzero()[:, 0] for rows in tiles]
        logits = self._tile_logits(x.flatten(1), weights, tiles)  # (T, B, N)
        drawn = self._draw(logits)
        rest = self._rest(logits, tiles, drawn)
        answer, spread = torch.empty_like(query), torch.zeros_like(query)
        for t, (rows, cols) in enumerate(zip(tiles, used, strict=True)):
            mask = weights[rows][:, cols].T  # (n, r)
            for b in range(len(x)):
                chosen, u, p = drawn[t][b]
                if coarse and len(tiles) == 1:
                    chosen, u, p = _padded(chosen, u, p)
                kept = flat.index_select(0, chosen)  # (k, D)
                if len(tiles) == 1:
                    inputs, outputs = kept, kept
                else:
                    inputs, outputs = (kept.index_select(1, at) for at in (cols, rows))
                inputs = (inputs - centre[cols]).to(weights)
                with products(coarse=coarse and len(tiles) == 1):
                    exact = inputs @ (2 * query[b, cols, None] * mask)
                    exact.addmm_(inputs.square_(), mask, alpha=-1)  # (k, r)
                _, w = softmax_weights(exact - p[:, None].log(), dim=0)  # w_k / p_k
                share = u / p
                # Relative to the peak; c is the ratio of both sums over the images drawn.
                c = w.sum(0) / share.sum()  # (r,)
                total, sums = w.sum(0), (w * outputs).sum(0)
                if rest is not None:  # what the draw got wrong about u
                    total = total + c * (rest[0][t, b] - share.sum())
                    sums = sums + c * (rest[1][t][b] - share @ outputs)
                answer[b, rows] = sums / total
                if errors:
                    wrong = w - c * share[:, None]
                    wrong *= (outputs - answer[b, rows]) * (1 - p[:, None]).clamp(min=0).sqrt()
                    spread[b, rows] = wrong.square().sum(0).sqrt() / total
        return answer, spread

    def _tile_logits(self, query: Tensor, weights: Tensor, tiles: list[Tensor]) -> Tensor:
        """log u_k, (T, B, N), the largest 0: every image's logit under every tile's mean mask.

        In float32 at any noise: they only say which images are drawn, and how likely.
        """
        means = torch.stack([weights[rows].mean(0) for rows in tiles]).float()  # (T, D)
        masked = (2 * query * means[:, None]).flatten(0, 1)  # (T B, D)
        logits = query.new_empty(len(means), len(query), len(self.local.images))
        chunks = self.local.images.flatten(1).split(self.local.chunk)
        for chunk, part in zip(chunks, logits.split(self.local.chunk, dim=2), strict=True):
            with products(coarse=True):
                cross = (masked @ chunk.T).view_as(part)
            torch.sub(cross, (means @ chunk.square().T)[:, None], out=part)
        return logits.sub_(logits.amax(2, keepdim=True))

    def _draw(self, logits: Tensor) -> list[list[tuple[Tensor, Tensor, Tensor]]]:
        """For every tile and query the images drawn, their u_k, and their probabilities p_k.

        Image k is drawn if log u_k plus Gumbel noise exceeds a threshold, which happens with
        probability 1 - exp(-exp(log u_k - threshold)), whatever happens to the others. So no
        sorting is needed: the threshold that lets about as many pass as wanted is found on a part
        of the images, with noise of its own.
        """
        images, generator = logits.shape[2], torch.Generator().manual_seed(self.seed)
        noise = torch.empty(2, images).exponential_(generator=generator).log().neg().to(logits)
        keep = self.keep if len(logits) > 1 else 2 * self.keep
        if keep >= images:
            threshold = torch.full_like(logits[..., :1], -math.inf)
        else:
            stride = max(1, keep // 100)
            sample, many = logits[..., ::stride], keep // stride
            scores = (sample + noise[1, ::stride]).topk(min(many, sample.shape[2]), dim=2).values
            # About as many images weigh: (sum u)^2 / sum u^2. If these are more than can be drawn,
            # they weigh nearly alike, and fewer show what all do.
            u = sample.clamp(min=LOWEST_LOGIT).exp_()  # subnormal numbers take long
            alike = stride * u.sum(2).square() / u.square().sum(2) > keep  # (T, B)
            few = scores[..., max(1, many // FEWER) - 1]
            threshold = torch.where(alike, few, scores[..., -1])[..., None]
        found = []
        for row, limits in zip(logits, threshold, strict=True):
            found.append([])
            for log_u, limit in zip(row, limits, strict=True):
                chosen = (log_u + noise[0] > limit).nonzero()[:, 0]
                if not len(chosen):
                    chosen = log_u.argmax(0, keepdim=True)
                log_u = log_u[chosen]
                found[-1].append((chosen, log_u.exp(), -torch.expm1(-(log_u - limit).exp())))
        return found

    def _rest(
        self, logits: Tensor, tiles: list[Tensor], drawn: list[list[tuple[Tensor, Tensor, Tensor]]]
    ) -> tuple[Tensor, list[Tensor]] | None:
        """Over all images: sums of u_k, (T, B), and of u_k x_k at a tile's pixels, (B, r) each.

        None where the images drawn hold nearly all the weight. Overwrites ``logits``.
        """
        share = logits.clamp_(min=LOWEST_LOGIT).exp_()
        total = share.sum(2)
        held = torch.stack([torch.stack([u.sum() for _, u, _ in row]) for row in drawn])
        if bool((1 - held / total < NEGLIGIBLE).all()):
            return None
        # All tiles in one product: those at the image's edges may be smaller, and are filled up.
        largest = max(map(len, tiles))
        index = torch.stack([F.pad(rows, (0, largest - len(rows))) for rows in tiles])  # (T, r)
        sums = share.new_zeros(*share.shape[:2], largest)
        chunks = self.local.images.flatten(1).split(self.local.chunk)
        for chunk, part in zip(chunks, share.split(self.local.chunk, dim=2), strict=True):
            if len(tiles) == 1:
                sums[0] += part[0] @ chunk
                continue
            columns = chunk.index_select(1, index.flatten()).view(-1, *index.shape)  # (c, T, r)
            sums.baddbmm_(part, columns.transpose(0, 1))
        return total, [found[:, : len(rows)] for found, rows in zip(sums, tiles, strict=True)]


def _padded(chosen: Tensor, u: Tensor, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The images drawn, filled up to a multiple of ROUND with some that weigh nothing (p = inf).

    A product of a new shape makes the processor's library write new code for it.
    """
    rest = -len(chosen) % ROUND
    return F.pad(chosen, (0, rest)), F.pad(u, (0, rest)), F.pad(p, (0, rest), value=math.inf)


def audited(pixels: int, *, seed: int) -> Tensor:
    """Flat pixels, of an image of ``pixels``, to compare with the exact answer; sorted, (P,).

    59 are drawn with replacement: the largest of so many errors exceeds the 95th percentile of all
    with more than 95 % probability.
    """
    count = math.ceil(math.log(1 - CONFIDENCE) / math.log(SHARE))
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(pixels, (count,), generator=generator).unique()
