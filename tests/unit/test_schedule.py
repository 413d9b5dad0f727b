"""Noise levels: the paper's list, numbers computed independently, round trips, bad input."""

import numpy as np
import pytest
import torch

from locality.schedule import (
    alpha_bar_from_sigma,
    check_sigma,
    ddpm_alpha_bars,
    ddpm_sigmas,
    karras_sigmas,
    sigma_from_alpha_bar,
)

PAPER = [60.8, 25.7, 12.0, 6.17, 3.44, 2.04, 1.24, 0.724, 0.342, 0.010]


def test_ten_steps_are_the_papers_list():
    sigmas = ddpm_sigmas(10).numpy()
    rounded = [float(f"{s:.3g}") for s in sigmas[:9]] + [round(float(sigmas[9]), 3)]
    assert rounded == PAPER


@pytest.mark.parametrize("steps", [1, 3, 10, 50, 1000])
def test_ddpm_sigmas_match_the_schedule_written_out(steps):
    # As the usual DDPM scheduler does: linear betas, cumulative product, leading timesteps.
    alpha_bar, alpha_bars = 1.0, []
    for t in range(1000):
        alpha_bar *= 1 - (1e-4 + (0.02 - 1e-4) * t / 999)
        alpha_bars.append(alpha_bar)
    timesteps = [i * (1000 // steps) for i in reversed(range(steps))]
    expected = [np.sqrt((1 - alpha_bars[t]) / alpha_bars[t]) for t in timesteps]
    np.testing.assert_allclose(ddpm_sigmas(steps).numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(ddpm_alpha_bars().numpy(), alpha_bars, rtol=1e-12)


def test_alpha_bar_and_sigma_are_inverse_to_each_other():
    alpha_bars = ddpm_alpha_bars()
    back = alpha_bar_from_sigma(sigma_from_alpha_bar(alpha_bars))
    torch.testing.assert_close(back, alpha_bars, rtol=1e-12, atol=0)
    # One half: as much signal as noise.
    assert sigma_from_alpha_bar(torch.tensor(0.5)).item() == pytest.approx(1)


def test_dividing_by_the_root_of_alpha_bar_turns_one_parametrisation_into_the_other():
    alpha_bar = ddpm_alpha_bars()[400]
    clean, eps = torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    preserving = alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * eps
    exploding = clean + sigma_from_alpha_bar(alpha_bar) * eps
    torch.testing.assert_close(preserving / alpha_bar.sqrt(), exploding)


def test_karras_sigmas_have_the_given_ends_and_equation_5_between():
    sigmas = karras_sigmas(18, sigma_min=0.002, sigma_max=80, rho=7)
    i = np.arange(18)
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(sigmas.numpy(), expected, rtol=1e-4)
    assert sigmas[0].item() == pytest.approx(80, rel=1e-5)
    assert sigmas[-1].item() == pytest.approx(0.002, rel=1e-4)
    assert (sigmas.diff() < 0).all()


@pytest.mark.parametrize("sigma", [0, 0.0, -1.5, float("nan"), float("inf"), torch.tensor(-2.0)])
def test_check_sigma_names_a_value_that_is_no_noise_level(sigma):
    with pytest.raises(ValueError, match=rf"positive, finite noise level, got {float(sigma)}"):
        check_sigma(sigma)


def test_check_sigma_refuses_several_values_and_takes_one():
    with pytest.raises(ValueError, match=r"one number for the whole batch.*shape \(3,\)"):
        check_sigma(torch.ones(3))
    assert check_sigma(torch.tensor([0.5])) == 0.5
    assert isinstance(check_sigma(torch.tensor(2)), float)


@pytest.mark.parametrize("alpha_bar", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_alpha_bar_outside_0_to_1_is_refused(alpha_bar):
    with pytest.raises(ValueError, match="strictly between 0 and 1, got"):
        sigma_from_alpha_bar(torch.tensor([0.5, alpha_bar]))


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf")])
def test_alpha_bar_of_no_noise_level_is_refused(sigma):
    with pytest.raises(ValueError, match="positive and finite, got"):
        alpha_bar_from_sigma(torch.tensor([1.0, sigma]))


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_ddpm_sigmas_refuse_a_number_of_steps_that_the_schedule_has_not(steps):
    with pytest.raises(ValueError, match=f"between 1 and 1000, got {steps}"):
        ddpm_sigmas(steps)


@pytest.mark.parametrize(
    ("steps", "low", "high"), [(1, 0.1, 1.0), (5, 0.0, 1.0), (5, 2.0, 1.0), (5, -1.0, 1.0)]
)
def test_karras_sigmas_refuse_bad_ends(steps, low, high):
    with pytest.raises(ValueError, match=rf"got {steps}, {low}, {high}"):
        karras_sigmas(steps, sigma_min=low, sigma_max=high)
