"""Sampling: the closed form on a linear denoiser, the exact flow in the limit, bad input."""

from itertools import pairwise

import pytest
import torch

from locality.denoisers import LocalDenoiser, OptimalDenoiser, WienerDenoiser, masks
from locality.sampling import Step, ddim, initial_noise
from locality.schedule import ddpm_sigmas, karras_sigmas
from locality.stats import PCA


@pytest.fixture(scope="module")
def calm(small_pca) -> PCA:
    """Real components with a thirtieth of their variance about grey, so that nothing is clipped."""
    covariance = small_pca.covariance() / 30
    return PCA.from_covariance(torch.zeros(196), covariance, shape=(1, 14, 14), count=520)


def test_ddim_on_the_wiener_filter_is_a_product_of_shrinkages(calm):
    # Along component i every step multiplies by s_i + (sigma' / sigma) (1 - s_i).
    sigmas = ddpm_sigmas(10)
    noise = initial_noise(8, calm.shape, sigma=sigmas[0].item())
    steps = list(ddim(WienerDenoiser(calm), noise, sigmas))
    assert all(step.x0.abs().max() < 1 for step in steps), "clipped: the closed form is another"
    basis, values = calm.eigenvectors.double(), calm.eigenvalues.double()
    coefficients = noise.flatten(1).double() @ basis
    for i, step in enumerate(steps):
        shrinkage = values / (values + sigmas[i].double() ** 2)
        x0 = (coefficients * shrinkage) @ basis.T
        assert (step.x0.flatten(1) - x0).abs().max() < 1e-5
        assert (step.x.flatten(1) - coefficients @ basis.T).abs().max() < 1e-5 * max(1, step.sigma)
        if i + 1 < len(sigmas):
            ratio = sigmas[i + 1].double() / sigmas[i].double()
            coefficients = coefficients * (shrinkage + ratio * (1 - shrinkage))


def test_with_many_steps_samples_follow_the_exact_flow(calm):
    # The probability flow of a Gaussian keeps x / sqrt(L + sigma^2) along every component.
    values, errors = calm.eigenvalues.double(), []
    for steps in (50, 100, 200):
        sigmas = karras_sigmas(steps, sigma_min=0.002, sigma_max=60.0)
        noise = initial_noise(16, calm.shape, sigma=60.0)
        *_, last = ddim(WienerDenoiser(calm), noise, sigmas)
        start = noise.flatten(1).double() @ calm.eigenvectors.double()
        end = last.x.flatten(1).double() @ calm.eigenvectors.double()
        exact = start * ((values + 0.002**2) / (values + 60.0**2)).sqrt()
        errors.append((end - exact).abs().max().item())
    print("50, 100, 200 steps: largest error", errors)
    assert errors[-1] < 0.02
    for worse, better in pairwise(errors):
        assert 1.7 < worse / better < 2.4, "the method is of first order"


def test_a_constant_denoiser_returns_its_constant():
    constant = torch.linspace(-1, 1, 48).view(1, 3, 4, 4)
    noise = initial_noise(2, (3, 4, 4), sigma=60.8)
    sigmas = ddpm_sigmas(10)
    steps = list(ddim(lambda x, sigma: constant.expand_as(x), noise, sigmas))
    assert len(steps) == 10 and isinstance(steps[0], Step)
    for step in steps:
        assert torch.equal(step.x0, constant.expand(2, -1, -1, -1))
    # What is left of the noise falls with sigma: x = constant + (sigma / sigma_0) (x_0 - constant).
    expected = constant + (sigmas[9] / sigmas[0]) * (noise - constant)
    torch.testing.assert_close(steps[9].x, expected, atol=1e-5, rtol=0)


def test_the_generator_starts_at_the_noise_and_hands_out_every_level():
    noise, sigmas = initial_noise(3, (1, 2, 2), sigma=5.0), torch.tensor([5.0, 1.0, 0.1])
    asked = []

    def denoiser(x, sigma):
        asked.append(sigma)
        return torch.zeros_like(x)

    generator = ddim(denoiser, noise, sigmas)
    first = next(generator)
    assert asked == [5.0], "no step is taken before it is asked for"
    assert torch.equal(first.x, noise)
    rest = list(generator)
    assert [first.sigma] + [step.sigma for step in rest] == asked == sigmas.tolist()


def test_predictions_are_clipped_to_the_range_of_images():
    noise = initial_noise(2, (1, 4, 4), sigma=5.0)
    steps = list(ddim(lambda x, sigma: 3 * x, noise, torch.tensor([5.0, 1.0])))
    assert torch.equal(steps[0].x0, (3 * noise).clamp(-1, 1))
    expected = steps[0].x0 + 0.2 * (noise - steps[0].x0)
    torch.testing.assert_close(steps[1].x, expected)


def test_optimal_samples_are_training_images_and_local_ones_are_not(small, small_pca):
    sigmas = ddpm_sigmas(10)
    noise = initial_noise(4, small.shape, sigma=sigmas[0].item())

    def nearest(denoiser) -> torch.Tensor:
        *_, last = ddim(denoiser, noise, sigmas)
        return torch.cdist(last.x0.double().flatten(1), small.images.double().flatten(1)).amin(1)

    assert nearest(OptimalDenoiser(small)).max() < 1e-4
    local = LocalDenoiser(small, lambda sigma: masks.pca(small_pca, sigma, 0.02))
    assert nearest(local).min() > 0.1


def test_no_gradient_is_recorded_and_the_callers_setting_is_kept(calm):
    x = initial_noise(2, calm.shape, sigma=5.0).requires_grad_()
    for step in ddim(WienerDenoiser(calm), x, torch.tensor([5.0, 1.0, 0.1])):
        assert torch.is_grad_enabled(), "between the steps the caller's code records gradients"
        assert not step.x0.requires_grad
    assert torch.is_grad_enabled()
    generator = ddim(WienerDenoiser(calm), x, torch.tensor([5.0, 1.0]))
    next(generator)
    generator.close()
    assert torch.is_grad_enabled(), "a generator left half way leaks nothing"


def test_initial_noise_is_the_same_image_by_image():
    # 25 pixels: torch draws sixteen at a time, so one large draw would not begin as a small one.
    many = initial_noise(10, (1, 5, 5), sigma=60.8, seed=7)
    for count in (1, 4):
        assert torch.equal(initial_noise(count, (1, 5, 5), sigma=60.8, seed=7), many[:count])
    assert not torch.equal(initial_noise(10, (1, 5, 5), sigma=60.8, seed=8), many)
    torch.testing.assert_close(initial_noise(10, (1, 5, 5), sigma=6.08, seed=7) * 10, many)


def test_initial_noise_is_standard_normal_times_sigma_and_leaves_the_global_seed_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    noise = initial_noise(200, (1, 16, 16), sigma=25.0)
    assert torch.equal(torch.rand(3), expected)
    assert noise.mean().item() == pytest.approx(0, abs=0.5)
    assert noise.std().item() == pytest.approx(25, rel=0.02)
    kurtosis = ((noise / 25) ** 4).mean().item()
    assert kurtosis == pytest.approx(3, abs=0.15)


@pytest.mark.parametrize("sigmas", [[1.0, 1.0], [1.0, 2.0], [5.0, 1.0, 3.0]])
def test_noise_levels_that_do_not_descend_are_refused(calm, sigmas):
    with pytest.raises(ValueError, match=r"descend strictly, got \["):
        next(ddim(WienerDenoiser(calm), initial_noise(1, calm.shape, sigma=1.0), sigmas))


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan")])
def test_noise_levels_that_are_none_are_refused(calm, sigma):
    noise = initial_noise(1, calm.shape, sigma=1.0)
    with pytest.raises(ValueError, match=f"positive, finite noise level, got {sigma}"):
        next(ddim(WienerDenoiser(calm), noise, torch.tensor([1.0, sigma])))
    with pytest.raises(ValueError, match=f"positive, finite noise level, got {sigma}"):
        initial_noise(1, calm.shape, sigma=sigma)


def test_noise_of_another_shape_is_refused(calm):
    noise = initial_noise(1, (3, 14, 14), sigma=1.0)
    with pytest.raises(ValueError, match="RGB images for a denoiser of grey ones"):
        next(ddim(WienerDenoiser(calm), noise, torch.tensor([1.0])))
