"""Local logits as products of whole numbers, for small images of bytes.

Pixels come as bytes, and processors with matrix units multiply bytes some eight times as fast as
float32, and exactly. So the queries are written in whole numbers, too, of up to four digits in
base 256, one product a digit: with three they are as precise as in float32. The products are dense:
to leave out what a mask does not see would mean to copy what it sees, and copying bytes takes
longer than multiplying them by zero.

``LocalDenoiser``'s logits are sum_n W[m, n] (2 x[n] v_k[n] - v_k[n]^2) and a term that is the same
for all images k; W is the mask over 2 sigma^2 T. Of an image v_k = (2 s_k + 1) / 255, with bytes
s_k that run from -128 to 127. The first part is a product of s_k with the digits of 2 W x, the
second, the same for all queries, one of W's digits with those of (2 s_k + 1)^2.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# A sum of this many products of two bytes is less than 2^24, and exact in float32. More pixels
# would make dense products slower than those that leave out what masks do not see, besides.
PIXELS = 2**24 // 128**2
ROWS = 2048  # of logits (output pixels times queries) at a time
STEP = 64  # products run fastest over a multiple of as many bytes
MEMORY = 2**26  # bytes for the digits of the queries that are handled at a time
# Logits are in units of log 2: a power of two takes less time than one of e.
BITS = 1 / math.log(2)
CONTRAST = 0.5  # standard deviation of a pixel over the images of a set, about
MIDDLE = 128 * 257  # (2 s + 1)^2 less this has two signed digits


class Block(NamedTuple):
    """Some training images."""

    whole: Tensor  # (c, K) int8, their pixels' bytes, less 128, and zeros up to a multiple of STEP
    packed: Tensor  # the same, laid out as the processor wants them

    def outputs(self, pixels: int) -> Tensor:
        """One and the bytes of every pixel, (D, 2, c) float32."""
        both = torch.ones(pixels, 2, len(self.whole))
        both[:, 1] = self.whole.T[:pixels]
        return both


def supported(device: torch.device) -> bool:
    """Whether ``device`` is a processor with matrix units for bytes, which PyTorch can use."""
    able = getattr(torch.cpu, "get_capabilities", dict)()
    return (
        device.type == "cpu"
        and able.get("amx_int8", False)
        and hasattr(torch.ops.onednn, "qlinear_pointwise")
    )


def blocks(images: Tensor, size: int) -> list[Block] | None:
    """``images`` (N, C, H, W), ``size`` at a time; None if their pixels are not bytes."""
    found = []
    for part in images.flatten(1).split(size):
        values = part * 127.5 - 0.5
        whole = values.round()
        if whole.min() < -128 or whole.max() > 127 or (values - whole).abs().max() > 1e-3:
            return None
        whole = _padded(whole.to(torch.int8))
        found.append(Block(whole, _pack(whole)))
    return found


def digits_needed(query: Tensor, weights: Tensor, sigma: float, *, tolerance: float) -> int | None:
    """How many digits of ``query`` (B, D) under ``weights`` (D, D) keep errors below ``tolerance``.

    By an estimate. Rounding leaves each of a mask's pixels an error that is uniform over one step
    of the last digit, and a logit sums them up, times how far an image's pixels are from the
    others', CONTRAST. An error in the logits moves the answer by as much times the standard
    deviation of the images that the softmax mixes: 1 at most, and about sigma under little noise.
    None if four digits would not do, which are all there are, if what all digits but the first add
    up to is too large for float32, or if ``query`` is not finite.
    """
    if not bool(query.isfinite().all()):
        return None
    seen = math.sqrt(weights.count_nonzero(1).max().item())
    scale = _scale(query, weights) / BITS
    # Two bytes have a standard deviation of 256 / sqrt(12) each, and the second digit counts a
    # 256th of the first. Of the sums that matter the largest are several times as large, and take
    # part in several additions: 16. Images may tie, so here the standard deviation is 1.
    if 16 * 256 / 12 * seen * scale * 2**-24 > 2 * tolerance:
        return None
    for count in (1, 2, 3, 4):
        step = scale * 255 / 2 / 256 ** (count - 1)
        if step / math.sqrt(12) * CONTRAST * seen * min(1.0, sigma) <= tolerance:
            return count
    return None


class ByteQueries:
    """Noisy images under a mask, for products with any block of training images.

    Args:
        query: (B, D) float64.
        weights: W, (D, D) float64.
        count: digits.
        precise: for logits too large for float32, whose differences are not.

    Attributes:
        pixels: output pixels that ``logits`` yields at a time.
        constant: what ``logits`` lack, in natural units, (B, D) float64.
    """

    def __init__(self, query: Tensor, weights: Tensor, count: int, *, precise: bool):
        self.queries, self.pixels, self.precise = len(query), max(1, ROWS // len(query)), precise
        scale = _scale(query, weights)
        self.scales = [scale / 256**i for i in range(count)]
        top = 127 * scale / BITS * 255 / 2
        self.rows = [
            _digits((part[:, None] * (2 * query)).flatten(0, 1), count, top)
            for part in weights.split(self.pixels)
        ]
        # The masks take part in products as images do: what is multiplied is on the other side.
        top = weights.max().item()
        masks = _digits(weights, 4, top)
        if not any(digit.any() for digit in masks[1:]):  # all weights alike
            masks = masks[:1]
        self.masks = [_pack(digit) for digit in masks]
        self.mask_scales = [BITS * top / 127 / 255**2 * 256.0 ** (1 - i) for i in range(5)]
        # What is left of sum_n W (2 x v - v^2 - x^2).
        self.constant = (2 * query / 255 - query.square() - MIDDLE / 255**2) @ weights.T

    def logits(self, block: Block) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits of the block's images without ``constant``, ``pixels`` output pixels at a time.

        In units of log 2, (r, B, c) float32; and what all of them lack besides, (r, B, 1).
        """
        squares, rest = self._squares(block)
        width, lacking = len(block.whole), torch.zeros(1)
        first = 1 if self.precise else len(self.scales)
        for digits, square, left in zip(
            self.rows, squares.split(self.pixels), rest.split(self.pixels), strict=True
        ):
            found = square[:, None].expand(-1, self.queries, -1).flatten(0, 1)
            found = _products(digits[:first], [block.packed], self.scales, width, onto=found)
            logits = found.view(len(square), self.queries, -1)
            if self.precise:
                # So far these are whole numbers of the first scale, and exact. Less the largest
                # they are small where they matter, and so is the rest.
                lacking = logits.amax(2, keepdim=True)
                logits.sub_(lacking)
                _products(digits[1:], [block.packed], self.scales[1:], width, onto=found)
                logits.add_(left[:, None])
            yield logits, lacking

    def _squares(self, block: Block) -> tuple[Tensor, Tensor]:
        """What W sums up of -v_k^2, less what ``constant`` has of it, (D, c) float32, and its rest.

        Where that should be precise, the first is in whole numbers of the first scale; elsewhere
        there is no rest.
        """
        odd = 2 * block.whole.to(torch.int16) + 1
        square = odd * odd  # 65,025 at most, if unsigned
        # Its bytes, less 128: as _digits, for two bytes in a way that takes less time.
        digits = [((square ^ -(2**15)) >> 8).to(torch.int8), (square ^ 128).to(torch.int8)]
        width = len(self.constant[0])
        if not self.precise:
            found = _products(digits, self.masks, self.mask_scales, width).neg_().T.contiguous()
            return found, found.new_zeros(width, 0)
        # In units of the first scale, in float64.
        found = torch.zeros(len(square), width, dtype=torch.float64)
        for i, digit in enumerate(digits):
            for j, mask in enumerate(self.masks):
                product = _products([digit], [mask], [1.0], width)
                found.add_(product, alpha=-self.mask_scales[i + j] / self.scales[0])
        return tuple(
            (part.float() * self.scales[0]).T.contiguous() for part in (found.trunc(), found.frac())
        )


def _scale(query: Tensor, weights: Tensor) -> float:
    """What one of a first digit's products counts in a logit.

    No number of 2 W x may need more than 127. A power of two leaves products what they are, whole
    numbers.
    """
    largest = 2 * (query.abs().amax(0) * weights.amax(0)).max().item() or 1.0
    return 2.0 ** math.ceil(math.log2(BITS * largest / 127 * 2 / 255))


def _digits(values: Tensor, count: int, largest: float) -> list[Tensor]:
    """``values`` (r, D) in ``count`` signed digits, (r, K) int8, most significant first.

    127 stands for ``largest``.
    """
    whole = (values * (127 * 256 ** (count - 1) / largest)).round_().to(torch.int32)
    # With 128 added to each, digits are the bytes of a number that has no sign.
    whole += (128 * sum(256**i for i in range(count)) + 2**31) % 2**32 - 2**31
    places = whole.view(torch.uint8).view(*whole.shape, 4)  # the least significant is the first
    return [_padded((places[..., i] ^ 128).view(torch.int8)) for i in reversed(range(count))]


def _padded(whole: Tensor) -> Tensor:
    return F.pad(whole, (0, -whole.shape[1] % STEP))


def _pack(whole: Tensor) -> Tensor:
    return torch.ops.onednn.qlinear_prepack(whole, [ROWS, whole.shape[1]])


def _products(
    rows: list[Tensor],
    columns: list[Tensor],
    scales: list[float],
    width: int,
    *,
    onto: Tensor | None = None,
) -> Tensor:
    """Products of all digits of ``rows`` (r, D) with all packed ones of ``columns`` (c, D).

    Digit i of one and j of the other count ``scales[i + j]``; ``width`` is c. The sum is (r, c)
    float32; with ``onto`` it is added to that, in place. PyTorch offers such products as linear
    layers of quantised networks; these have no zero points, no bias, no function afterwards.
    """
    ones, zeros = torch.ones(width), torch.zeros(width, dtype=torch.int32)
    result = (None, 1.0, 0, torch.float32)
    found = onto
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            layer = (row, scales[i + j], 0, column, ones, zeros)
            if found is None:
                found = torch.ops.onednn.qlinear_pointwise(*layer, *result, "none", [], "")
            else:
                found = torch.ops.onednn.qlinear_pointwise.binary(
                    *layer, found, *result, 1.0, 0, "sum", 1.0, "none", [], ""
                )
    return found
