"""Embedding of the noise level: sinusoids of the noise label, then an MLP (Ho et al. 2020)."""

import math

import torch
from torch import Tensor, nn


class NoiseEmbedding(nn.Module):
    """Maps noise labels (B,) to features (B, outputs).

    The MLP sees `features` sinusoids of the label, with periods from 2 pi to 20,000 pi: made for
    DDPM's timesteps 0 ... 999, and as good for any label with a range of about a hundred.
    """

    def __init__(self, features: int, outputs: int):
        super().__init__()
        half = features // 2
        frequencies = torch.exp(-math.log(10_000.0) * torch.arange(half) / half)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.mlp = nn.Sequential(
            nn.Linear(2 * half, outputs), nn.SiLU(), nn.Linear(outputs, outputs)
        )

    def forward(self, noise_label: Tensor) -> Tensor:
        """(B,) to (B, outputs)."""
        angles = noise_label[:, None] * self.frequencies  # (B, features // 2)
        return self.mlp(torch.cat([angles.sin(), angles.cos()], dim=1))
