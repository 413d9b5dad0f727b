"""Sensitivity fields: how much every input pixel moves one output pixel.

The field of a denoiser at a pixel is the gradient of that output pixel with respect to the
whole input (the paper, figure 1). Denoisers that know their Jacobian in closed form give it
exactly and fast; for everything else, networks included, autograd does.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .denoisers import Denoiser
from .schedule import check_sigma


def jacobian_rows(
    denoiser: Denoiser, x: Tensor, sigma: float, pixels: Sequence[int] | Tensor
) -> Tensor:
    """Rows dD[m]/dx of the Jacobian for flat output ``pixels`` m, (B, P, D), signed.

    Uses the denoiser's own ``jacobian_rows`` where it has one, else ``autograd_rows``.
    """
    pixels = torch.as_tensor(pixels, device=x.device)
    closed_form = getattr(denoiser, "jacobian_rows", None)
    if closed_form is not None:
        return closed_form(x, check_sigma(sigma), pixels)
    return autograd_rows(denoiser, x, sigma, pixels)


def autograd_rows(
    denoiser: Denoiser, x: Tensor, sigma: float, pixels: Sequence[int] | Tensor
) -> Tensor:
    """The same rows by differentiation, one backward pass a pixel; for any denoiser."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        answer = denoiser(x, check_sigma(sigma)).flatten(1)
        rows = [
            torch.autograd.grad(answer[:, m].sum(), x, retain_graph=True)[0].flatten(1)
            for m in torch.as_tensor(pixels).tolist()
        ]
    return torch.stack(rows, dim=1)


def sensitivity(denoiser: Denoiser, x: Tensor, sigma: float, pixel: tuple[int, int]) -> Tensor:
    """Field of output ``pixel`` (row, column): the gradient's norm at every input pixel.

    Args:
        x: (B, C, H, W) noisy images.
        pixel: which output pixel; all its channels count.

    Returns:
        (B, H, W), the root of the summed squares over input and output channels, as in the
        paper's figures. Average it over a batch to see what the denoiser does in general.
    """
    channels, height, width = x.shape[1:]
    row, col = pixel
    if not (0 <= row < height and 0 <= col < width):
        raise ValueError(f"pixel {pixel} lies outside images of {height} x {width}")
    flat = torch.arange(channels) * height * width + row * width + col
    rows = jacobian_rows(denoiser, x, sigma, flat)  # (B, C, D)
    return rows.view(len(x), channels, channels, height, width).square().sum((1, 2)).sqrt()


def effective_radius(field: Tensor, pixel: tuple[int, int]) -> Tensor:
    """Root mean square distance, in pixels, of a field's energy from its pixel.

    Args:
        field: (..., H, W), non-negative.

    Returns:
        (...): sqrt(sum f^2 d^2 / sum f^2), zero for a field that is one point.
    """
    energy, distance2 = field.square(), distances(field, pixel).square()
    return ((energy * distance2).sum((-2, -1)) / energy.sum((-2, -1))).sqrt()


def anisotropy(field: Tensor, pixel: tuple[int, int]) -> Tensor:
    """How far a field is from round: 0 if it depends on the distance from its pixel alone.

    The share of the field's energy, its own pixel left out, that the best function of the
    distance cannot explain (piecewise linear, with a knot at every whole distance). A second spot
    or arms raise it; a field that is narrower or wider, weaker or stronger, does not.

    Args:
        field: (..., H, W), non-negative.

    Returns:
        (...), between 0 and 1.
    """
    distance = distances(field, pixel).flatten().cpu().double()
    knots = torch.arange(1, math.ceil(distance.max()) + 1)
    hats = (1 - (distance[:, None] - knots).abs()).clamp_min(0)[distance > 0]  # (H W - 1, knots)
    values = field.flatten(-2).cpu().double()[..., distance > 0]  # (..., H W - 1)
    basis = torch.linalg.qr(hats).Q
    explained = (values @ basis).square().sum(-1)
    return (1 - explained / values.square().sum(-1)).to(field)


def mirror_ratio(field: Tensor, pixel: tuple[int, int]) -> Tensor:
    """How much a field prefers the mirror image of its pixel over other pixels as far away.

    The mean of the field in the 3 x 3 window at (row, W - 1 - column), over its mean at all other
    pixels whose distance from ``pixel`` is that of some pixel in the window.

    Args:
        field: (..., H, W), non-negative.

    Returns:
        (...): 1 without a preference, for every field that depends on distance alone about 1.

    Raises:
        ValueError: if the pixel is so near to the axis that the window would touch it, or so near
            to the border that the window would leave the field.
    """
    height, width = field.shape[-2:]
    mirrored = (pixel[0], width - 1 - pixel[1])
    if abs(mirrored[1] - pixel[1]) < 4:
        raise ValueError(f"pixel {pixel} is its own mirror image in a field {width} pixels wide")
    if not (0 < mirrored[0] < height - 1 and 0 < mirrored[1] < width - 1):
        raise ValueError(
            f"the window around the mirror image of {pixel} leaves a field of {height} x {width}"
        )
    distance = distances(field, pixel)
    offsets = torch.arange(-1, 2, device=field.device)
    window = torch.zeros_like(distance, dtype=torch.bool)
    window[mirrored[0] + offsets[:, None], mirrored[1] + offsets] = True
    ring = (distance >= distance[window].min()) & (distance <= distance[window].max()) & ~window
    return field[..., window].mean(-1) / field[..., ring].mean(-1)


def distances(field: Tensor, pixel: tuple[int, int]) -> Tensor:
    """Distance of every place of a field (..., H, W) from ``pixel``, (H, W), in pixels."""
    height, width = field.shape[-2:]
    rows = torch.arange(height, device=field.device) - pixel[0]
    cols = torch.arange(width, device=field.device) - pixel[1]
    return torch.hypot(rows[:, None].float(), cols.float())


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity of two fields (..., H, W): 1 for the same shape at any scale."""
    return torch.cosine_similarity(a.flatten(-2), b.flatten(-2), dim=-1)
