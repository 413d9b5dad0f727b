"""The smoothed denoiser: an average over noisy copies, seeded, that makes new images."""

import pytest
import torch

from locality.denoisers import OptimalDenoiser, SmoothedDenoiser, WienerDenoiser


def test_it_is_the_mean_over_noisy_copies(tiny, noised):
    optimal, x = OptimalDenoiser(tiny), noised(tiny.images[:3], 0.724)
    z = torch.randn(10, 1, 6, 6, generator=torch.Generator().manual_seed(5))
    expected = torch.stack([optimal(x + 0.5 * copy, 0.724) for copy in z]).mean(0)
    for width in (0.5, lambda sigma: 0.5 * sigma / 0.724):
        answer = SmoothedDenoiser(optimal, width, seed=5)(x, 0.724)
        assert answer.shape == x.shape and answer.dtype == torch.float32
        torch.testing.assert_close(answer, expected, atol=1e-6, rtol=0)
    other = SmoothedDenoiser(optimal, 0.5, seed=6)(x, 0.724)
    assert (other - expected).abs().max() > 1e-2, "the seed matters"


def test_the_answer_depends_neither_on_the_batch_nor_on_earlier_calls(tiny, noised):
    smoothed, x = SmoothedDenoiser(OptimalDenoiser(tiny), 0.5), noised(tiny.images[:5], 0.342)
    whole = smoothed(x, 0.342)
    torch.rand(3)  # moves the global generator, which must not matter
    for i in range(5):
        torch.testing.assert_close(smoothed(x[i : i + 1], 0.342), whole[i : i + 1])


def test_no_width_is_no_smoothing(tiny, noised):
    optimal, x = OptimalDenoiser(tiny), noised(tiny.images[:3], 0.724)
    torch.testing.assert_close(SmoothedDenoiser(optimal, 0.0)(x, 0.724), optimal(x, 0.724))


def test_linear_denoisers_only_move_by_the_mean_of_the_noise(small, small_pca, noised):
    wiener, x = WienerDenoiser(small_pca), noised(small.images[:2], 0.724)
    z = torch.randn(10, 1, 14, 14, generator=torch.Generator().manual_seed(0))
    expected = wiener(x + 0.3 * z.mean(0), 0.724)
    answer = SmoothedDenoiser(wiener, 0.3)(x, 0.724)
    torch.testing.assert_close(answer, expected, atol=1e-5, rtol=0)


def test_smoothing_mixes_training_images_where_the_optimal_denoiser_copies_one(tiny):
    # Between two images at little noise the optimal denoiser picks one, the smoothed one mixes.
    first, second = tiny.images[:1], tiny.images[1:2]
    optimal, x, sigma = OptimalDenoiser(torch.cat([first, second])), 0.55 * first, 0.1
    x = x + 0.45 * second
    torch.testing.assert_close(optimal(x, sigma), first, atol=1e-4, rtol=0)
    mixture = SmoothedDenoiser(optimal, 2.0, copies=50)(x, sigma)
    share = ((mixture - second) * (first - second)).sum() / (first - second).square().sum()
    torch.testing.assert_close(mixture, second + share * (first - second), atol=1e-4, rtol=0)
    assert 0.2 < share < 0.9


def test_bad_input_is_refused(tiny):
    optimal = OptimalDenoiser(tiny)
    with pytest.raises(ValueError, match="copies must be a whole number, at least 1, got 0"):
        SmoothedDenoiser(optimal, 0.5, copies=0)
    for width in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"width must be finite and not negative, got {width}"):
            SmoothedDenoiser(optimal, width)(tiny.images[:1], 1.0)
    with pytest.raises(ValueError, match="positive, finite noise level, got 0"):
        SmoothedDenoiser(optimal, 0.5)(tiny.images[:1], 0.0)
    with pytest.raises(ValueError, match="expected shape"):
        SmoothedDenoiser(optimal, 0.5)(tiny.images[:1, :, :5], 1.0)
