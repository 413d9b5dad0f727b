"""Metrics: does one denoiser predict another, and are its samples new?

``r2``, ``pearson`` and ``mse`` compare images pair by pair, as the paper compares the samples of
an analytical denoiser with those of a trained network from the same noise. ``copy_ratio``
tells a copy of a training image from a new one; ``frechet_distance`` compares two sets of images
as wholes.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .data import ImageSet, check_shape
from .denoisers.base import precise_dtype, training_images
from .denoisers.optimal import squared_distances


def _pairs(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape != y.shape or x.ndim < 2:
        raise ValueError(f"expected two batches of one shape, got {x.shape} and {y.shape}")
    return x.flatten(1).cpu().double(), y.flatten(1).cpu().double()


def mse(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared difference a pair, (B,), in squared image units."""
    x, y = _pairs(x, y)
    return (x - y).square().mean(1)


def r2(x: Tensor, y: Tensor) -> Tensor:
    """The paper's r2 a pair, (B,): 1 - ||x - y||^2 / (n var(y)), y the image to be predicted.

    1 is perfect, 0 is as good as predicting y's own mean grey, negative is worse. It is not a
    squared correlation: errors of brightness and contrast count.
    """
    x, y = _pairs(x, y)
    return 1 - (x - y).square().mean(1) / y.var(1, unbiased=False)


def pearson(x: Tensor, y: Tensor) -> Tensor:
    """Pearson correlation of the pixels a pair, (B,); blind to brightness and contrast.

    Kamb & Ganguli's released evaluation reports this under the name r2 (chapter 10).
    """
    x, y = _pairs(x, y)
    return torch.cosine_similarity(x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True))


def bootstrap_interval(
    values: Tensor,
    *,
    statistic: Callable[[Tensor], Tensor] = lambda v: v.mean(-1),
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of ``values`` (n,), resampling with replacement.

    Raises:
        ValueError: if there are fewer than two values.
    """
    values = torch.as_tensor(values).cpu().double()
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"need a vector of at least 2 values, got shape {tuple(values.shape)}")
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(len(values), (resamples, len(values)), generator=generator)
    tail = (1 - level) / 2
    low, high = torch.quantile(statistic(values[draws]), torch.tensor([tail, 1 - tail]).double())
    return low.item(), high.item()


def share_removed(ours: Tensor, theirs: Tensor) -> tuple[float, float, float]:
    """Share of what a rival leaves unexplained that a method removes: 1 - (1 - r2) / (1 - r2').

    Args:
        ours, theirs: r2 of the method and of its rival on the same seeds, (n,) each; of the longer
            one the first n count.

    Returns:
        The share, of the mean unexplained variances, and the ends of its 95 % bootstrap interval.
    """
    count = min(len(ours), len(theirs))
    left, right = (1 - torch.as_tensor(r)[:count].cpu().double() for r in (ours, theirs))

    def share(seeds: Tensor) -> Tensor:
        return 1 - left[seeds.long()].mean(-1) / right[seeds.long()].mean(-1)

    seeds = torch.arange(count)
    return share(seeds).item(), *bootstrap_interval(seeds, statistic=share)


def nearest_images(
    x: Tensor, images: ImageSet | Tensor, *, k: int = 2, chunk: int = 1024
) -> tuple[Tensor, Tensor]:
    """The ``k`` training images nearest to each of ``x`` (B, C, H, W).

    Returns:
        distances (B, k), Euclidean over all pixels, ascending, and their indices (B, k).
    """
    images = training_images(images)
    check_shape(x, tuple(images.shape[1:]))
    if not 1 <= k <= len(images):
        raise ValueError(f"k must lie between 1 and the {len(images)} images, got {k}")
    dtype = precise_dtype(x.device)
    query = x.flatten(1).to(dtype)
    best = torch.empty(len(x), 0, dtype=dtype, device=x.device)
    index = torch.empty(len(x), 0, dtype=torch.long, device=x.device)
    for start in range(0, len(images), chunk):
        part = images[start : start + chunk].flatten(1).to(dtype)
        distances = squared_distances(query, part).clamp_min(0)
        places = torch.arange(start, start + len(part), device=x.device).expand(len(x), -1)
        best, order = torch.cat([best, distances], 1).sort(1)
        index = torch.cat([index, places], 1).gather(1, order)[:, :k]
        best = best[:, :k]
    # x^2 + y^2 - 2 x y does not round to 0 for a copy: those found are measured once more.
    found = images[index].flatten(2).to(dtype)  # (B, k, D)
    exact, order = (found - query[:, None]).square().sum(2).sqrt().sort(1)
    return exact.float(), index.gather(1, order)


def copy_ratio(x: Tensor, images: ImageSet | Tensor) -> Tensor:
    """Distance to the nearest training image over that to the second nearest, (B,).

    Near 0 for a copy and near 1 for an image that resembles no training image in particular;
    below 1/3 is the usual sign of memorisation (Yoon et al. 2023). An exact copy of an image that
    the training set holds twice is a copy, 0, although both distances are.
    """
    nearest, second = nearest_images(x, images, k=2)[0].unbind(1)
    return torch.where(nearest == 0, 0.0, nearest / second)


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Squared Frechet distance of two Gaussians, fitted to features ``x`` (n, D) and ``y`` (m, D).

    |mean_x - mean_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)), S the covariances (Heusel et al. 2017).
    It depends on what the features are, and it is too large for small sets: compare distances that
    were taken with as many images.

    Raises:
        ValueError: if the two are not (n, D) and (m, D) with at least two rows each.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(
            f"expected features (n, D) and (m, D), two rows or more, got {tuple(x.shape)} and "
            f"{tuple(y.shape)}"
        )
    x, y = x.cpu().double(), y.cpu().double()
    values, vectors = torch.linalg.eigh(x.T.cov())
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    # S_x^(1/2) S_y S_x^(1/2) is symmetric and has the eigenvalues of S_x S_y.
    shared = torch.linalg.eigvalsh(root @ y.T.cov() @ root).clamp_min(0).sqrt().sum()
    means = (x.mean(0) - y.mean(0)).square().sum()
    return (means + x.var(0).sum() + y.var(0).sum() - 2 * shared).item()
