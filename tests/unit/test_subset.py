"""The screened denoiser against the exact one, and its statements about its own error."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from locality.data import ImageSet
from locality.denoisers import LocalDenoiser, ScreenedLocalDenoiser, masks
from locality.stats import PCA


def largest(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


def rms(a: Tensor, b: Tensor) -> float:
    return (a - b).square().mean().sqrt().item()


def mask_of(kind: str, pca: PCA):
    """sigma -> mask, of three kinds."""
    return {
        "pca": lambda sigma: masks.pca(pca, sigma, 0.02),
        "square": lambda sigma: masks.square(pca.shape, 5),
        "soft": lambda sigma: masks.soft(pca, sigma),
    }[kind]


@pytest.mark.parametrize("kind", ["pca", "square", "soft"])
def test_with_every_image_kept_the_answer_is_exact(
    fashion, fashion_pca, fashion_test, noised, official_sigmas, kind
):
    images, mask = fashion.images[:300], mask_of(kind, fashion_pca)
    exact = LocalDenoiser(images, mask)
    screened = ScreenedLocalDenoiser(images, mask, keep=10_000)
    for sigma in official_sigmas[::3]:
        x = noised(fashion_test.images[:2], sigma)
        found = screened.denoise_with_bound(x, sigma)
        assert found.x0_hat.shape == x.shape and found.x0_hat.dtype == torch.float32
        # Both round logits of some hundreds to float32, which may move the fifth digit.
        assert largest(found.x0_hat, exact(x, sigma)) < 5e-5
        assert found.bound.max() < 5e-5
        assert found.estimate.max() == 0


@pytest.mark.parametrize("kind", ["pca", "square"])
def test_the_bound_holds_for_the_share_of_pixels_that_it_claims(
    fashion, fashion_pca, fashion_test, noised, official_sigmas, kind
):
    images, mask = fashion.images[:500], mask_of(kind, fashion_pca)
    exact = LocalDenoiser(images, mask)
    held = []
    for i, sigma in enumerate(official_sigmas):
        x = noised(fashion_test.images[:2], sigma)
        screened = ScreenedLocalDenoiser(images, mask, keep=60, seed=i)
        found = screened.denoise_with_bound(x, sigma)
        truth = exact(x, sigma)
        assert torch.equal(found.x0_hat, screened(x, sigma))
        wrong = (found.x0_hat - truth).flatten(1)
        # At the audited pixels it is no statistics: those errors are the errors.
        assert largest(found.errors, wrong[:, found.pixels]) < 5e-5
        assert torch.allclose(found.bound, found.errors.abs().amax(1))
        held += [(wrong.abs() <= found.bound[:, None] + 1e-6).float().mean(1)]
    share = torch.cat(held)
    # 20 images; each keeps its 95 % of the pixels with a probability of 95 %. Four failures or more
    # would happen once in 60 times, if all images were independent; the seeds are fixed.
    assert (share >= 0.95).sum() >= 17, f"shares of pixels within the bound: {share}"


def test_the_estimate_is_the_spread_over_draws(fashion, fashion_pca, fashion_test, noised):
    # Oracle: draw again. At high noise the standard error of one draw is the spread over many.
    mask, sigma = mask_of("pca", fashion_pca), 12.0
    x = noised(fashion_test.images[:1], sigma)
    found = [
        ScreenedLocalDenoiser(fashion, mask, keep=200, seed=seed).denoise_with_bound(x, sigma)
        for seed in range(8)
    ]
    spread = torch.stack([f.x0_hat for f in found]).var(0).mean().sqrt()
    claimed = torch.stack([f.estimate for f in found]).square().mean().sqrt()
    assert 0.7 < claimed / spread < 1.4
    truth = LocalDenoiser(fashion, mask)(x, sigma)
    mean = torch.stack([f.x0_hat for f in found]).mean(0)
    assert rms(mean, truth) < 0.7 * rms(found[0].x0_hat, truth)  # the draws' errors cancel


@pytest.mark.parametrize("sigma", [25.736, 6.1735, 1.2402, 0.3423])
def test_keeping_more_images_is_more_exact(fashion, fashion_pca, fashion_test, noised, sigma):
    mask = mask_of("pca", fashion_pca)
    x = noised(fashion_test.images[:2], sigma)
    truth = LocalDenoiser(fashion, mask)(x, sigma)
    few, many = (
        rms(ScreenedLocalDenoiser(fashion, mask, keep=keep)(x, sigma), truth) for keep in (40, 640)
    )
    assert many < 0.6 * few
    assert many < 0.05


def test_it_beats_a_random_subset_and_the_nearest_images(
    fashion, fashion_pca, fashion_test, noised
):
    mask, sigma, keep = mask_of("pca", fashion_pca), 12.0248, 200
    x = noised(fashion_test.images[:2], sigma)
    truth = LocalDenoiser(fashion, mask)(x, sigma)
    ours = rms(ScreenedLocalDenoiser(fashion, mask, keep=keep)(x, sigma), truth)
    at_random = rms(LocalDenoiser(fashion.images[:keep], mask)(x, sigma), truth)
    assert ours < 0.7 * at_random
    for i in range(2):
        distance = (fashion.images - x[i]).square().sum((1, 2, 3))
        near = fashion.images[distance.topk(keep, largest=False).indices]
        nearest = rms(LocalDenoiser(near, mask)(x[i : i + 1], sigma), truth[i : i + 1])
        assert ours < 0.7 * nearest


def test_colour_odd_sizes_and_many_queries():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(40, 3, 9, 10, generator=generator) * 2 - 1
    x = torch.randn(11, 3, 9, 10, generator=generator)

    def mask(_: float) -> Tensor:
        return masks.square((3, 9, 10), 3)

    whole = ScreenedLocalDenoiser(images, mask, keep=20)(x, 0.7)
    assert whole.shape == x.shape
    singly = [ScreenedLocalDenoiser(images, mask, keep=20)(part, 0.7) for part in x.split(1)]
    assert largest(whole, torch.cat(singly)) < 1e-5
    assert (
        largest(
            ScreenedLocalDenoiser(images, mask, keep=40)(x, 0.7),
            LocalDenoiser(images, mask)(x, 0.7),
        )
        < 1e-5
    )


def test_coarse_products_change_little_and_leave_no_trace(
    fashion, fashion_pca, fashion_test, noised, monkeypatch
):
    before = torch.get_float32_matmul_precision()
    screened = ScreenedLocalDenoiser(fashion, mask_of("pca", fashion_pca), keep=600)
    x = noised(fashion_test.images[:2], 6.1735)  # the image is one tile
    coarse = screened(x, 6.1735)
    assert torch.get_float32_matmul_precision() == before
    monkeypatch.setattr("locality.denoisers.subset.products", lambda **_: nullcontext())
    fine = screened(x, 6.1735)
    # Without units for bfloat16 the two are equal.
    assert rms(coarse, fine) < 2e-3


def test_bad_input_is_refused(fashion):
    def mask(_: float) -> Tensor:
        return masks.square((1, 28, 28), 3)

    with pytest.raises(ValueError, match="keep must be a whole number, at least 1, got 0"):
        ScreenedLocalDenoiser(fashion, mask, keep=0)
    denoiser = ScreenedLocalDenoiser(ImageSet(fashion.images[:20], None, "few"), mask)
    with pytest.raises(ValueError, match="expected shape"):
        denoiser(torch.zeros(1, 1, 14, 14), 1.0)
    with pytest.raises(ValueError, match="sigma must be"):
        denoiser(torch.zeros(1, 1, 28, 28), -1.0)
    with pytest.raises(ValueError, match="sigma must be"):
        denoiser.denoise_with_bound(torch.zeros(1, 1, 28, 28), float("nan"))
