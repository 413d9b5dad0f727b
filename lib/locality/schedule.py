"""Noise levels: the only place that knows the variance-preserving parametrisation.

The library speaks of one noise variable, sigma, with ``x = x0 + sigma * eps``. The official
code and many papers write ``x_t = sqrt(a) x0 + sqrt(1 - a) eps`` instead (a is alpha-bar).
Dividing by ``sqrt(a)`` turns one into the other, with ``sigma^2 = (1 - a) / a``.
"""

import math

import torch
from torch import Tensor

DDPM_TIMESTEPS = 1000
DDPM_BETAS = (1e-4, 0.02)


def check_sigma(sigma: float | Tensor) -> float:
    """Return ``sigma`` as a float.

    Raises:
        ValueError: if it is not one positive, finite number.
    """
    value = sigma.item() if isinstance(sigma, Tensor) and sigma.numel() == 1 else sigma
    if isinstance(value, Tensor):
        raise ValueError(
            f"sigma must be one number for the whole batch, got a tensor of shape "
            f"{tuple(value.shape)}"
        )
    value = float(value)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"sigma must be a positive, finite noise level, got {value}")
    return value


def sigma_from_alpha_bar(alpha_bar: Tensor) -> Tensor:
    """Noise level sigma = sqrt((1 - a) / a) of alpha-bar ``a`` in (0, 1), any shape."""
    alpha_bar = torch.as_tensor(alpha_bar)
    if not bool(((alpha_bar > 0) & (alpha_bar < 1)).all()):
        raise ValueError(f"alpha-bar must lie strictly between 0 and 1, got {alpha_bar}")
    return ((1 - alpha_bar) / alpha_bar).sqrt()


def alpha_bar_from_sigma(sigma: Tensor) -> Tensor:
    """alpha-bar = 1 / (1 + sigma^2) of noise level ``sigma`` > 0, any shape."""
    sigma = torch.as_tensor(sigma)
    if not bool((torch.isfinite(sigma) & (sigma > 0)).all()):
        raise ValueError(f"sigma must be positive and finite, got {sigma}")
    return 1 / (1 + sigma**2)


def ddpm_alpha_bars() -> Tensor:
    """alpha-bar at t = 0 ... 999 of the linear DDPM schedule (Ho et al. 2020): (1000,) float64."""
    betas = torch.linspace(*DDPM_BETAS, DDPM_TIMESTEPS, dtype=torch.float64)
    return torch.cumprod(1 - betas, dim=0)


def ddpm_sigmas(steps: int = 10) -> Tensor:
    """Noise levels of ``steps`` evenly spaced DDPM timesteps, high to low: (steps,) float32.

    Ten steps are the paper's protocol, t = 900, 800, ..., 0, that is
    sigma = 60.8, 25.7, 12.0, 6.17, 3.44, 2.04, 1.24, 0.724, 0.342, 0.010. The spacing is
    1000 // steps, as in the usual DDPM scheduler. Take a divisor of 1000: other numbers start
    lower, where noise is not alone yet (600 at sigma = 6.1).
    """
    if not 1 <= steps <= DDPM_TIMESTEPS:
        raise ValueError(f"steps must lie between 1 and {DDPM_TIMESTEPS}, got {steps}")
    timesteps = torch.arange(steps).flip(0) * (DDPM_TIMESTEPS // steps)
    return sigma_from_alpha_bar(ddpm_alpha_bars()[timesteps]).float()


def karras_sigmas(
    steps: int, *, sigma_min: float = 0.01, sigma_max: float = 60.0, rho: float = 7.0
) -> Tensor:
    """Noise levels evenly spaced in sigma^(1/rho), high to low: (steps,) float32.

    Source: Karras et al. 2022, equation 5, without the final zero.
    """
    if steps < 2 or not 0 < sigma_min < sigma_max:
        raise ValueError(
            f"need steps >= 2 and 0 < sigma_min < sigma_max, got {steps}, {sigma_min}, {sigma_max}"
        )
    roots = torch.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), steps)
    return roots**rho
