"""Masks: which input pixels an output pixel may look at.

A mask is a (D, D) float32 matrix over the D = C * H * W pixels. Row m weighs the squared
differences that decide output pixel m: 1 looks, 0 does not, and soft masks lie between. Full,
square and PCA masks turn the same denoiser (``LocalDenoiser``) into the memorising optimal one,
the patch model of Kamb & Ganguli (LS), and the paper's.
"""

import torch
from torch import Tensor

from ..stats import PCA
from .base import precise_dtype

# Below this response a pixel is constant in the data (a border that is always black): its row
# of W is rounding noise, and any normalisation by it would be too.
FAINT = 1e-6


def full(shape: tuple[int, int, int]) -> Tensor:
    """Every pixel looks at all pixels: the optimal denoiser."""
    pixels = shape[0] * shape[1] * shape[2]
    return torch.ones(pixels, pixels)


def square(shape: tuple[int, int, int], side: int) -> Tensor:
    """Every pixel looks at the ``side`` x ``side`` window around it, in all channels.

    This is the local score machine (LS) of Kamb & Ganguli 2025; at the border the window is cut.

    Raises:
        ValueError: if ``side`` is not odd and positive.
    """
    if side < 1 or side % 2 == 0:
        raise ValueError(f"side must be odd and positive so that a window has a centre, got {side}")
    channels, height, width = shape
    reach = side // 2
    near_rows = (torch.arange(height)[:, None] - torch.arange(height)).abs() <= reach
    near_cols = (torch.arange(width)[:, None] - torch.arange(width)).abs() <= reach
    window = torch.kron(near_rows.float(), near_cols.float())  # (H*W, H*W)
    return window.repeat(channels, channels)


def response(pca: PCA, sigma: float) -> Tensor:
    """R[m, n] = W[m, n] / W[m, m], (D, D): the Wiener filter's field, relative to its centre.

    Rows of pixels that hardly vary (W[m, m] < 1e-6) become rows of the identity.
    """
    wiener = pca.wiener_matrix(sigma)
    diagonal = wiener.diagonal()
    relative = wiener / diagonal.clamp_min(FAINT)[:, None]
    faint = diagonal < FAINT
    relative[faint] = torch.eye(len(wiener), device=wiener.device)[faint]
    return relative


def pca(pca: PCA, sigma: float, threshold: float) -> Tensor:
    """The paper's mask: look where |R[m, n]| >= ``threshold``, with R normalised by the output.

    Source: the paper, section 5. A pixel always looks at itself.
    """
    _check_threshold(threshold)
    mask = (response(pca, sigma).abs() >= threshold).float()
    return mask.fill_diagonal_(1)


def pca_official(pca: PCA, sigma: float, threshold: float) -> Tensor:
    """The mask of the paper's released code, which departs from the formula in two ways.

    It normalises by the *input* pixel, |W[m, n]| / W[n, n], and its threshold is relative to the
    largest entry of that matrix, not to the diagonal's 1. For comparison with published numbers;
    a pixel that would look nowhere looks at itself here, where the released code has it look at
    nothing.
    """
    _check_threshold(threshold)
    wiener = pca.wiener_matrix(sigma)
    diagonal = wiener.diagonal()
    relative = torch.where(diagonal < FAINT, 0.0, wiener / diagonal.clamp_min(FAINT)).abs()
    mask = (relative >= threshold * relative.max()).float()
    empty = mask.sum(1) == 0
    mask[empty] = torch.eye(len(mask), device=mask.device)[empty]
    return mask


def soft(pca: PCA, sigma: float, *, power: float = 1.0) -> Tensor:
    """Weights min(|R[m, n]|, 1)^``power`` in place of a threshold: far pixels count less.

    ``power`` 1 weighs by the sensitivity of the Wiener filter, 2 by its square, which falls off
    faster; towards 0 every pixel counts alike. ``LocalDenoiser``'s temperature divides all logits:
    at 1 a pixel of weight 1 counts as in the optimal denoiser; higher ones let more images in.
    """
    if not power > 0:
        raise ValueError(f"power must be positive, got {power}")
    return response(pca, sigma).abs().clamp_max(1) ** power


def top_share(maps: Tensor, share: float) -> Tensor:
    """The places that hold the top ``share`` of each map: patches for PSPC-Flex, 0 and 1, (P, n).

    Args:
        maps: (P, n), non-negative, e.g. the sensitivity fields of P pixels (n = H W), averaged
            over images.
        share: in (0, 1]. Places are taken from the largest down until they hold this share of
            their row's sum (Niedoba et al. 2025).

    Raises:
        ValueError: if a value is negative or not finite, or a row holds nothing.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], got {share}")
    if maps.ndim != 2 or not bool((torch.isfinite(maps) & (maps >= 0)).all()):
        raise ValueError(
            f"maps must be (P, n), finite, not negative; got shape {tuple(maps.shape)}"
        )
    if bool((maps.amax(1) == 0).any()):
        raise ValueError(f"map {int((maps.amax(1) == 0).nonzero()[0])} is zero everywhere")
    values, order = maps.to(precise_dtype(maps.device)).sort(dim=1, descending=True)
    held = values.cumsum(1)
    before = (held - values) / held[:, -1:]  # what the larger ones hold already
    return torch.zeros_like(maps).scatter_(1, order, (before < share).to(maps))


def top_places(maps: Tensor, count: int) -> Tensor:
    """The ``count`` largest places of each map: patches of one size and any form, (P, n).

    Args:
        maps: (P, n), e.g. fields of the Wiener filter.
        count: from 1 to n. Of equal places the first are taken.

    Raises:
        ValueError: if there are not so many places.
    """
    if not 1 <= count <= maps.shape[1]:
        raise ValueError(f"count must lie between 1 and {maps.shape[1]}, got {count}")
    order = maps.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return torch.zeros_like(maps).scatter_(1, order, 1)


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is relative to 1 and must lie in (0, 1], got {threshold}")
