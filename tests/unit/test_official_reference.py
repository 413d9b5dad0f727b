"""Our documented switches against what the paper's released code returned on known input.

The reference file holds, for the first 2,000 Fashion-MNIST training images and six noised test
images at the ten official noise levels, the released code's Wiener filter and local denoiser (its
own mask; a softmax inside batches of 512 or of all images). It is not shipped: LOCALITY_REFERENCE
names its folder, or it lies in ../shared/reference; without it these tests are skipped.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from locality.denoisers import LocalDenoiser, WienerDenoiser, masks
from locality.schedule import ddpm_alpha_bars, ddpm_sigmas, sigma_from_alpha_bar
from locality.stats import PCA

FILE = "official_fashion_mnist_2000.npz"
THRESHOLDS = ("0.005", "0.02")


@pytest.fixture(scope="module")
def reference(root) -> dict[str, torch.Tensor]:
    folder = Path(os.environ.get("LOCALITY_REFERENCE") or root.parent / "shared" / "reference")
    if not (folder / FILE).is_file():
        pytest.skip(f"no {FILE} in {folder.name}; LOCALITY_REFERENCE can name its folder")
    with np.load(folder / FILE, allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


@pytest.fixture(scope="module")
def levels(reference) -> list[tuple[float, torch.Tensor]]:
    """(sigma, noised images (6, 1, 28, 28)) of each of the ten steps."""
    sigmas = sigma_from_alpha_bar(reference["alphas_cumprod"].double())
    clean, noise = reference["clean"].double(), reference["eps"].double()
    return [(s.item(), (clean + s * noise).float()) for s in sigmas]


def released_response(pca: PCA, sigma: float) -> torch.Tensor:
    """|W[m, n]| / W[n, n], (D, D), the response the released code thresholds."""
    wiener = pca.wiener_matrix(sigma)
    diagonal = wiener.diagonal()
    return torch.where(diagonal < 1e-6, 0.0, wiener.abs() / diagonal.clamp_min(1e-6))


def implied_largest(pca: PCA, sigma: float, threshold: str, density: float) -> float:
    """The largest |R| at which the released rule, |R| >= tau max|R|, gives that mask density."""
    response = released_response(pca, sigma).flatten().sort(descending=True).values
    return response[round(density * len(response)) - 1].item() / float(threshold)


def mask_with_largest(pca: PCA, sigma: float, threshold: str, largest: float) -> torch.Tensor:
    """``masks.pca_official`` as if the largest |R| were ``largest``."""
    own = released_response(pca, sigma).max().item()
    return masks.pca_official(pca, sigma, float(threshold) * largest / own)


def count_different(images, mask, x, sigma, reference, threshold: str, level: int) -> list[int]:
    """How many of the 4,704 outputs differ by more than 1e-3, for batches of 512 and of all."""
    counts = []
    for batch in (512, 2000):
        answer = LocalDenoiser(images, lambda _: mask, batch_average=batch)(x, sigma)
        difference = (answer - reference[f"pca_tau{threshold}_batch{batch}"][level]).abs()
        counts.append(int((difference > 1e-3).sum()))
        print(
            f"sigma {sigma:.3f}, tau {threshold}, batches of {batch}: {counts[-1]} of "
            f"{difference.numel()} differ by more than 1e-3, the mean by {difference.mean():.1e}"
        )
    return counts


def test_the_noise_levels_are_the_official_ones(reference):
    ours = ddpm_alpha_bars()[reference["t"]]
    torch.testing.assert_close(reference["alphas_cumprod"].double(), ours, rtol=1e-5, atol=0)
    sigmas = sigma_from_alpha_bar(reference["alphas_cumprod"].double()).float()
    torch.testing.assert_close(ddpm_sigmas(10), sigmas, rtol=1e-3, atol=0)


def test_the_queries_are_the_shipped_test_images(reference, fashion_test):
    torch.testing.assert_close(reference["clean"], fashion_test.images[:6], atol=1e-6, rtol=0)


def test_wiener_is_the_released_one(reference, levels, fashion_pca):
    # Their covariance is float32: its rounding, about 3.5e-6 in every eigenvalue, counts where
    # sigma^2 is as small, at the last level.
    for i, (sigma, x) in enumerate(levels):
        difference = (WienerDenoiser(fashion_pca)(x, sigma) - reference["wiener"][i]).abs().max()
        print(f"sigma {sigma:7.3f}: largest difference {difference:.1e}")
        assert difference < (1e-3 if sigma > 0.3 else 5e-2)


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_the_official_switch_as_it_is_agrees_at_the_highest_noise(
    reference, levels, fashion, fashion_pca, threshold
):
    sigma, x = levels[0]
    mask = masks.pca_official(fashion_pca, sigma, float(threshold))
    density = reference[f"mask_density_tau{threshold}"][0].item()
    assert mask.mean().item() == pytest.approx(density, abs=2e-3)
    assert max(count_different(fashion, mask, x, sigma, reference, threshold, 0)) < 65


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_the_official_switch_agrees_once_the_largest_response_is_theirs(
    reference, levels, fashion, fashion_pca, level
):
    # Their threshold is relative to the largest |R|, which a faint pixel sets whose variance is
    # rounding noise. The released mask density gives that one number away; the two thresholds
    # must imply the same, each must then predict the other's density, and all outputs must agree.
    sigma, x = levels[level]
    density = {t: reference[f"mask_density_tau{t}"][level].item() for t in THRESHOLDS}
    largest = {t: implied_largest(fashion_pca, sigma, t, density[t]) for t in THRESHOLDS}
    own = released_response(fashion_pca, sigma).max().item()
    print(f"sigma {sigma:.3f}: largest |R| implied by {largest}, ours {own:.3f}")
    assert largest["0.005"] == pytest.approx(largest["0.02"], rel=1e-3)
    for one, other in (THRESHOLDS, THRESHOLDS[::-1]):
        predicted = mask_with_largest(fashion_pca, sigma, one, largest[other]).mean().item()
        assert predicted == pytest.approx(density[one], abs=1e-3)
        mask = mask_with_largest(fashion_pca, sigma, one, largest[one])
        assert max(count_different(fashion, mask, x, sigma, reference, one, level)) < 65


def test_averaging_batches_is_another_answer_than_the_exact_softmax(reference):
    # The switch is not idle: the released code's two batch sizes disagree with each other.
    for tau in THRESHOLDS:
        one, other = (reference[f"pca_tau{tau}_batch{batch}"] for batch in (512, 2000))
        assert (one - other).abs().max() > 0.1
