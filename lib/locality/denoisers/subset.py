"""The local denoiser, screened: every image is looked at once a tile, a few hundred once a pixel.

Neighbouring pixels have much the same mask, so the image is cut into tiles, and a tile's *mean*
mask gives every training image a weight u_k there, for a fraction of the cost of one for every
pixel. Then images are drawn, each with a probability that grows with u_k: at low noise the draw is
that of the nearest images; at high noise, where nearly all images count alike, it is a sample of
all. Only for those drawn are the pixels' own weights w_k computed. The softmax's sums over all
images are estimated as

    sum_k w_k f_k  ~  sum_drawn w_k f_k / p_k  +  c (sum_all u_k f_k - sum_drawn u_k f_k / p_k)

with f = 1 and f = the pixel's value, p_k the probability to be drawn, and c the ratio of the two
sums over w and u. What is in brackets is zero on average; it takes away what the draw got wrong
about u. With all images drawn the sums are exact.

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

from ..data import ImageSet
from .base import check_count
from .local import LocalDenoiser, Tile, _square_tiles
from .streaming import LOWEST_LOGIT, softmax_weights

# Side of a tile where masks are wide, and where they hold less than SPARSE of the pixels: there
# smaller tiles are needed, since the masks of neighbours overlap less, and cost less.
WIDE, NARROW, SPARSE = 7, 4, 0.4
QUERIES = 8  # handled at a time: memory grows with queries x tiles x training images
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
        keep: images drawn for every query and tile, up to four times as many where the masks
            are small. With all N the answer is exact.
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
        count = math.ceil(math.log(1 - CONFIDENCE) / math.log(SHARE))
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randint(len(weights), (count,), generator=generator)
        pixels = drawn.unique().to(x.device)
        everywhere = torch.arange(len(weights), device=x.device)
        tile = Tile(pixels, everywhere, weights[pixels], torch.zeros_like(weights[pixels, :1]))
        exact = self.local._state(x, self.local.images, weights, [tile]).mean()  # (B, P)
        errors = answer.flatten(1)[:, pixels] - exact.to(x.dtype)
        return Screened(answer, estimate, errors.abs().amax(1), pixels, errors)

    @torch.no_grad()
    def _answer(self, x: Tensor, weights: Tensor, *, errors: bool) -> tuple[Tensor, Tensor]:
        """The answer and, if asked for, its standard errors (else zeros); both shaped as ``x``."""
        narrow = (weights != 0).float().mean() < SPARSE
        tiles = list(_square_tiles(self.local.shape, NARROW if narrow else WIDE))
        tiles = [rows.to(x.device) for rows in tiles]
        parts = [self._part(part, weights, tiles, errors) for part in x.split(QUERIES)]
        return tuple(torch.cat(found).to(x.dtype).view_as(x) for found in zip(*parts, strict=True))

    def _part(
        self, x: Tensor, weights: Tensor, tiles: list[Tensor], errors: bool
    ) -> tuple[Tensor, Tensor]:
        flat, centre = self.local.images.flatten(1), self.local.centre.flatten()
        query = (x.flatten(1) - centre).to(weights)  # (B, D)
        used = [weights[rows].any(0).nonzero()[:, 0] for rows in tiles]
        widest = max(len(cols) for cols in used)
        logits = self._tile_logits(x.flatten(1), weights, tiles)  # (B, T, N)
        chosen, p = self._draw(logits, self.keep * min(4, query.shape[1] // widest))
        u = logits.gather(2, chosen).exp()  # (B, T, k)
        rest_total, rest_sums = self._rest(logits, chosen, u, p, tiles)
        drawn_total = (u / p).sum(2)  # (B, T)
        answer, spread = torch.empty_like(query), torch.zeros_like(query)
        for t, (rows, cols) in enumerate(zip(tiles, used, strict=True)):
            mask = weights[rows][:, cols].T  # (n, r)
            for b in range(len(x)):
                kept = flat.index_select(0, chosen[b, t])  # (k, D)
                inputs = (kept.index_select(1, cols) - centre[cols]).to(weights)
                exact = inputs @ (2 * query[b, cols, None] * mask)
                exact -= inputs.square_() @ mask  # (k, r)
                _, w = softmax_weights(exact - p[b, t, :, None].log(), dim=0)  # w_k / p_k
                outputs = kept[:, rows]
                # Relative to the peak; c is the ratio of both sums over the images drawn.
                c = w.sum(0) / drawn_total[b, t]  # (r,)
                total = w.sum(0) + c * rest_total[b, t]
                answer[b, rows] = ((w * outputs).sum(0) + c * rest_sums[t][b]) / total
                if errors:
                    wrong = w - c * (u / p)[b, t, :, None]
                    wrong *= (outputs - answer[b, rows]) * (1 - p[b, t, :, None]).sqrt()
                    spread[b, rows] = wrong.square().sum(0).sqrt() / total
        return answer, spread

    def _tile_logits(self, query: Tensor, weights: Tensor, tiles: list[Tensor]) -> Tensor:
        """log u_k, (B, T, N), the largest 0: every image's logit under every tile's mean mask.

        In float32 at any noise: they only say which images are drawn, and how likely.
        """
        means = torch.stack([weights[rows].mean(0) for rows in tiles]).float()  # (T, D)
        masked = (2 * query[:, None] * means).flatten(0, 1)  # (B T, D)
        logits = query.new_empty(len(query), len(means), len(self.local.images))
        chunks = self.local.images.flatten(1).split(self.local.chunk)
        for chunk, part in zip(chunks, logits.split(self.local.chunk, dim=2), strict=True):
            cross = (masked @ chunk.T).view_as(part)
            torch.sub(cross, means @ chunk.square().T, out=part)
        return logits.sub_(logits.amax(2, keepdim=True))

    def _draw(self, logits: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        """Images (B, T, k) drawn without replacement, and the probability of each to be drawn.

        The k largest of log u_k plus Gumbel noise are such a draw; given the largest of the
        others, image k is among them with probability 1 - exp(-exp(log u_k - largest)) (Kool et
        al. 2019).
        """
        images = logits.shape[2]
        if keep >= images:
            everyone = torch.arange(images, device=logits.device)
            return everyone.expand_as(logits), logits.new_ones(1).expand_as(logits)
        generator = torch.Generator().manual_seed(self.seed)
        gumbel = -torch.empty(images).exponential_(generator=generator).log()
        score, chosen = (logits + gumbel.to(logits)).topk(keep + 1, dim=2)
        log_u = logits.gather(2, chosen[..., :-1])
        return chosen[..., :-1], -torch.expm1(-(log_u - score[..., -1:]).exp())

    def _rest(
        self, logits: Tensor, chosen: Tensor, u: Tensor, p: Tensor, tiles: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """sum_all u_k f_k - sum_drawn u_k f_k / p_k for f = 1, (B, T), and f = pixels, T x (B, r).

        Overwrites ``logits``.
        """
        share = logits.clamp_(min=LOWEST_LOGIT).exp_()
        left = 1 - u.sum(2) / share.sum(2)
        share.scatter_(2, chosen, u - u / p)
        total = share.sum(2)
        sums = [share.new_zeros(len(share), len(rows)) for rows in tiles]
        if bool((left < NEGLIGIBLE).all()):
            return torch.zeros_like(total), sums
        order, sizes = torch.cat(tiles), [len(rows) for rows in tiles]
        chunks = self.local.images.flatten(1).split(self.local.chunk)
        for chunk, part in zip(chunks, share.split(self.local.chunk, dim=2), strict=True):
            outputs = chunk.index_select(1, order).split(sizes, dim=1)
            for t, values in enumerate(outputs):
                sums[t] += part[:, t] @ values
        return total, sums
