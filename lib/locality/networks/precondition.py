"""Preconditioning: turns a raw network into a denoiser that maps (x, sigma) to an estimate of x0.

A network that sees `x = x0 + sigma * noise` directly would have to cope with inputs and targets
whose scale changes by four orders of magnitude. `NetworkDenoiser` wraps it with fixed scalings, so
that the network's input and its target have about unit variance at every noise level ("edm", Karras
et al. 2022, section 5), or so that it predicts the noise from DDPM's scaled image ("eps", Ho et al.
2020; the paper's own protocol).
"""

import torch
from torch import Tensor, nn

from ..schedule import DDPM_TIMESTEPS, alpha_bar_from_sigma, ddpm_alpha_bars

PARAMETRISATIONS = ("edm", "eps")


class NetworkDenoiser(nn.Module):
    """A denoiser: `denoiser(x, sigma) -> x0_hat`, all images (B, C, H, W), in [-1, 1] plus noise.

    `sigma` is a positive float or a (B,) tensor.

    Args:
        network: the raw network, called with the scaled image (B, C, H, W) and a noise label (B,).
        sigma_data: standard deviation of the data's pixels, in image units; used by "edm" only.
        parametrisation: "edm" or "eps".
    """

    def __init__(self, network: nn.Module, *, sigma_data: float, parametrisation: str = "edm"):
        super().__init__()
        if parametrisation not in PARAMETRISATIONS:
            raise ValueError(
                f"parametrisation {parametrisation!r} is not one of {PARAMETRISATIONS}"
            )
        if not sigma_data > 0:
            raise ValueError(f"sigma_data must be positive, got {sigma_data}")
        self.network = network
        self.sigma_data = float(sigma_data)
        self.parametrisation = parametrisation

    def forward(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """The network's estimate of x0, (B, C, H, W), from ``x`` = x0 + sigma * noise."""
        if x.ndim != 4:
            raise ValueError(f"x must have shape (B, C, H, W), got {tuple(x.shape)}")
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
        if sigma.shape not in ((), (1,), (len(x),)) or not (sigma > 0).all():
            raise ValueError(
                f"sigma must be a positive number or {len(x)} of them, one an image, got {sigma}"
            )
        sigma = sigma.expand(len(x))
        skip, out, scale, label = self.coefficients(sigma)
        column = (slice(None), None, None, None)
        prediction = self.network(scale[column] * x, label)
        return skip[column] * x + out[column] * prediction.to(x.dtype)

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(c_skip, c_out, c_in, label), each (B,): x0_hat = c_skip x + c_out F(c_in x, label).

        "edm" is table 1 of Karras et al. (2022), with a noise label of 10 ln(sigma) where they have
        ln(sigma) / 4: a matter of the embedding's units. "eps" solves x = x0 + sigma * F for x0.
        """
        if self.parametrisation == "eps":
            one = torch.ones_like(sigma)
            return one, -sigma, alpha_bar_from_sigma(sigma).sqrt(), _timestep(sigma)
        variance = sigma**2 + self.sigma_data**2
        skip = self.sigma_data**2 / variance
        out = sigma * self.sigma_data / variance.sqrt()
        return skip, out, variance.rsqrt(), 10 * sigma.log()

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """1 / c_out^2, (B,): makes the error of x0_hat that of the raw network's target."""
        return self.coefficients(sigma)[1] ** -2


def _timestep(sigma: Tensor) -> Tensor:
    """DDPM's timestep, 0 ... 999, of noise level ``sigma`` (B,), interpolated in log(sigma)."""
    alpha_bars = ddpm_alpha_bars()
    table = (((1 - alpha_bars) / alpha_bars).log() / 2).to(sigma.dtype).to(sigma.device)
    position = sigma.log()
    right = torch.searchsorted(table, position.contiguous()).clamp(1, DDPM_TIMESTEPS - 1)
    left_value, right_value = table[right - 1], table[right]
    fraction = ((position - left_value) / (right_value - left_value)).clamp(0, 1)
    return right - 1 + fraction
