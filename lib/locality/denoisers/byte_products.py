"""Local logits as products of whole numbers, for images of bytes.

Pixels come as bytes, and processors with matrix units multiply bytes some eight times as fast as
float32, and exactly. So the queries are written in whole numbers, too, of up to four digits in
base 256, one product a digit: with three they are as precise as in float32. The products are dense:
to leave out what a mask does not see would mean to copy what it sees, and copying bytes takes
longer than multiplying them by zero.

``LocalDenoiser``'s logits are sum_n W[m, n] (2 x[n] v_k[n] - v_k[n]^2) and a term that is the same
for all images k; W is the mask over 2 sigma^2 T. Of an image v_k = (2 s_k + 1) / 255, with bytes
s_k that run from -128 to 127. The first part is a product of the digits of 2 W x with s_k, the
second, the same for all queries, one of W's digits with those of (2 s_k + 1)^2.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

LARGEST = 2**12  # pixels of an image: more would need a gigabyte for the mask and its digits
EXACT = 2**24 // 128**2  # the sum of so many products of two bytes is exact in float32
ROWS = 2048  # of logits (output pixels times queries) at a time; in large images fewer,
DIGITS = 2**21  # with as many first digits
STEP = 64  # products run fastest over a multiple of as many bytes
MEMORY = 2**25  # bytes for the digits of the queries, for as many output pixels at a time
# Logits are in units of log 2: a power of two takes less time than one of e.
BITS = 1 / math.log(2)
CONTRAST = 0.5  # standard deviation of a pixel over the images of a set, about
MIDDLE = 128 * 257  # (2 s + 1)^2 less this has two signed digits


class Block(NamedTuple):
    """Some training images, and what products need of them that does not depend on the query.

    Packed is what is laid out as the processor wants it, with zeros up to a multiple of STEP.
    """

    images: Tensor  # (c, D), no copy
    packed: list[Tensor]  # their pixels' bytes s, less 128, packed
    squares: list[Tensor]  # the two digits of (2 s + 1)^2 - MIDDLE, packed

    def outputs(self, pixels: slice) -> Tensor:
        """One and the value of every one of ``pixels``, (r, 2, c) float32."""
        values = self.images[:, pixels].T
        both = torch.ones(len(values), 2, len(self.images))
        both[:, 1] = values
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
        whole = whole.to(torch.int16)
        square = (2 * whole + 1) ** 2  # 65,025 at most, if unsigned
        # Its bytes, less 128: as _digits, for two bytes in a way that takes less time.
        squares = [(square ^ -(2**15)) >> 8, square ^ 128]
        packed = [_pack(_padded(digit.to(torch.int8))) for digit in (whole, *squares)]
        found.append(Block(part, packed[:1], packed[1:]))
    return found


def digits_needed(
    query: Tensor, weights: Tensor, sigma: float, *, tolerance: float, precise: bool
) -> int | None:
    """How many digits of ``query`` (B, D) under ``weights`` (D, D) keep errors below ``tolerance``.

    By an estimate. Rounding leaves each of a mask's pixels an error that is uniform over one step
    of the last digit, and a logit sums them up, times how far an image's pixels are from the
    others', CONTRAST. An error in the logits moves the answer by as much times the standard
    deviation of the images that the softmax mixes: 1 at most, and about sigma under little noise.
    None if four digits would not do, which are all there are, if what all digits but the first add
    up to is too large for float32, if ``query`` is not finite, or if first digits should be
    ``precise`` (see ``ByteQueries``) and a mask sees too many pixels for that.
    """
    seen = weights.count_nonzero(1).max().item()
    if not bool(query.isfinite().all()) or (precise and seen > EXACT):
        return None
    seen = math.sqrt(seen)
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
    """Noisy images under the masks of R output pixels, for products with any block of images.

    Args:
        query: (B, D) float64.
        weights: W, or some rows of it, (R, D) float64.
        count: digits.
        precise: for logits too large for float32, whose differences are not.

    Attributes:
        pixels: output pixels that ``logits`` yields at a time.
        constant: what ``logits`` lack, in natural units, (B, R) float64.
    """

    def __init__(self, query: Tensor, weights: Tensor, count: int, *, precise: bool):
        self.queries, self.precise = len(query), precise
        self.pixels = max(1, min(ROWS, DIGITS // query.shape[1]) // len(query))
        scale = _scale(query, weights)
        self.scales = [scale / 256**i for i in range(count)]
        top = 127 * scale / BITS * 255 / 2
        self.rows = [
            _digits((part[:, None] * (2 * query)).flatten(0, 1), count, top)
            for part in weights.split(self.pixels)
        ]
        top = weights.max().item()
        masks = _digits(weights, 4, top)
        if not any(digit.any() for digit in masks[1:]):  # all weights alike
            masks = masks[:1]
        self.masks = masks
        self.mask_scales = [-BITS * top / 127 / 255**2 * 256.0 ** (1 - i) for i in range(5)]
        # What is left of sum_n W (2 x v - v^2 - x^2).
        self.constant = (2 * query / 255 - query.square() - MIDDLE / 255**2) @ weights.T

    def logits(self, block: Block) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits of the block's images without ``constant``, ``pixels`` output pixels at a time.

        In units of log 2, (r, B, c) float32; and what all of them lack besides, (r, B, 1).
        """
        squares, rest = self._squares(block)
        lacking = torch.zeros(1)
        first = 1 if self.precise else len(self.scales)
        for digits, square, left in zip(
            self.rows, squares.split(self.pixels), rest.split(self.pixels), strict=True
        ):
            # A copy, even of a single row: products are written onto it.
            found = square[:, None].repeat(1, self.queries, 1).flatten(0, 1)
            _products(digits[:first], block.packed, self.scales, onto=found)
            logits = found.view(len(square), self.queries, -1)
            if self.precise:
                # So far these are whole numbers of the first scale, and exact. Less the largest
                # they are small where they matter, and so is the rest.
                lacking = logits.amax(2, keepdim=True)
                logits.sub_(lacking)
                _products(digits[1:], block.packed, self.scales[1:], onto=found)
                logits.add_(left[:, None])
            yield logits, lacking

    def _squares(self, block: Block) -> tuple[Tensor, Tensor]:
        """What W sums up of -v_k^2, less what ``constant`` has of it, (R, c) float32, and its rest.

        Where that should be precise, the first is in whole numbers of the first scale; elsewhere
        there is no rest.
        """
        found = torch.zeros(self.constant.shape[1], len(block.images))
        if not self.precise:
            return _products(self.masks, block.squares, self.mask_scales, onto=found), found[:, :0]
        exact = found.double()  # in units of the first scale
        for i, mask in enumerate(self.masks):
            for j, square in enumerate(block.squares):
                product = _products([mask], [square], [1.0], onto=found.zero_())
                exact.add_(product, alpha=self.mask_scales[i + j] / self.scales[0])
        whole = exact.trunc()
        return tuple(part.float().mul_(self.scales[0]) for part in (whole, exact.sub_(whole)))


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
    rows: list[Tensor], columns: list[Tensor], scales: list[float], *, onto: Tensor
) -> Tensor:
    """Products of all digits of ``rows`` (r, D) with all packed ones of ``columns`` (c, D).

    Digit i of one and j of the other count ``scales[i + j]``; the sum is added to ``onto``, (r, c)
    float32. PyTorch offers such products as linear layers of quantised networks; these have no
    zero points, no bias, no function afterwards.
    """
    if not onto.is_contiguous():
        # The operator does not look at strides: it would write beyond the tensor's memory.
        raise ValueError(f"onto must be contiguous, got strides {onto.stride()}")
    ones, zeros = torch.ones(onto.shape[1]), torch.zeros(onto.shape[1], dtype=torch.int32)
    result = (None, 1.0, 0, torch.float32, 1.0, 0, "sum", 1.0, "none", [], "")
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            torch.ops.onednn.qlinear_pointwise.binary(
                row, scales[i + j], 0, column, ones, zeros, onto, *result
            )
    return onto
