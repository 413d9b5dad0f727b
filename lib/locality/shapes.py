"""Shapes to hide in a data set: a pattern of random amplitude correlates the pixels it covers.

The paper shows that locality can be manipulated: if every image gets ``a * shape`` with its own
random ``a``, the covariance of the data gains one rank-one term, and trained networks look along
the shape. `letter_w` is the paper's example, `drawing` is for yours.
"""

from itertools import pairwise

import torch
from torch import Tensor


def letter_w(height: int, width: int) -> Tensor:
    """A W of lines one pixel wide, (height, width): 1 on the letter, 0 elsewhere.

    It fills the middle three fifths of the image in both directions.
    """
    if min(height, width) < 10:
        raise ValueError(f"a W needs at least 10 x 10 pixels, got {height} x {width}")
    top, bottom = round(0.2 * height), round(0.8 * height) - 1
    left, right = round(0.2 * width), round(0.8 * width) - 1
    middle = round((top + bottom) / 2)
    corners = [(top, 0.0), (bottom, 0.25), (middle, 0.5), (bottom, 0.75), (top, 1.0)]
    shape = torch.zeros(height, width)
    for (row0, at0), (row1, at1) in pairwise(corners):
        for t in torch.linspace(0, 1, 4 * height).tolist():
            row = round(row0 + t * (row1 - row0))
            column = round(left + (at0 + t * (at1 - at0)) * (right - left))
            shape[row, column] = 1
    return shape


def drawing(text: str) -> Tensor:
    """A shape drawn in text, one line a row, (rows, columns): 1 at every ``#``, else 0.

    Empty lines and spaces around a line do not count; mark empty pixels with a dot.

    Raises:
        ValueError: if the rows differ in length, or there is no ``#``.
    """
    rows = text.split()
    widths = sorted({len(row) for row in rows})
    if len(widths) != 1 or "#" not in text:
        raise ValueError(f"a drawing has rows of one length and some '#', got lengths {widths}")
    return torch.tensor([[float(mark == "#") for mark in row] for row in rows])


def add_shape(images: Tensor, shape: Tensor, *, deviation: float = 0.5, seed: int = 0) -> Tensor:
    """``images`` (N, C, H, W) plus ``a * shape``, one a ~ N(0, deviation^2) per image.

    The covariance of the result is the images' plus deviation^2 times the outer product of
    ``shape`` (H, W) with itself, over all channels. Values may leave [-1, 1].
    """
    if shape.shape != images.shape[2:]:
        raise ValueError(
            f"shape must be {tuple(images.shape[2:])}, as the images, got {tuple(shape.shape)}"
        )
    amplitude = torch.randn(len(images), generator=torch.Generator().manual_seed(seed)) * deviation
    return images + amplitude.to(images)[:, None, None, None] * shape.to(images)
