"""The diffusion transformer of Peebles & Xie (2023): patches, sinusoidal positions, adaLN-zero.

The noise level reaches every block through six vectors (adaptive layer norm): shift, scale and gate
of the attention and of the MLP. The gates start at zero: every block starts as the identity.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .embedding import NoiseEmbedding


class Block(nn.Module):
    """Self-attention and an MLP, each normalised, shifted, scaled and gated by the noise level."""

    def __init__(self, width: int, *, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        self.modulate = _zero(nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Tokens (B, T, width) and the noise level's (B, width) to tokens (B, T, width)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulate(F.silu(embedding))[
            :, None
        ].chunk(6, dim=2)  # (B, 1, width) each
        h = self.norm1(x) * (1 + scale1) + shift1
        q, k, v = (
            t.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, T, width / heads)
            for t in self.qkv(h).chunk(3, dim=2)
        )
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + gate1 * self.out(h)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class DiT(nn.Module):
    """Maps an image (B, C, H, W) and a noise label (B,) to an image of the same shape.

    Args:
        image_channels: C, 1 for grey and 3 for RGB.
        patch: side of a patch in pixels; divides H and W. One token a patch.
        width: length of a token; divisible by 4 and by `heads`.
        depth: number of blocks.
        heads: attention heads per block.
    """

    def __init__(
        self,
        image_channels: int,
        *,
        patch: int = 2,
        width: int = 96,
        depth: int = 4,
        heads: int = 3,
    ):
        super().__init__()
        if width % 4 or width % heads:
            raise ValueError(f"width={width} must be divisible by 4 and by heads={heads}")
        self.patch, self.width = patch, width
        self.embed = NoiseEmbedding(width, width)
        self.first = nn.Linear(image_channels * patch**2, width)
        self.blocks = nn.ModuleList(Block(width, heads=heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = _zero(nn.Linear(width, 2 * width))
        self.last = _zero(nn.Linear(width, image_channels * patch**2))

    def forward(self, x: Tensor, noise_label: Tensor) -> Tensor:
        """(B, C, H, W) and (B,) to (B, C, H, W)."""
        if x.shape[2] % self.patch or x.shape[3] % self.patch:
            raise ValueError(
                f"height and width must be divisible by {self.patch}, got {tuple(x.shape[2:])}"
            )
        grid = (x.shape[2] // self.patch, x.shape[3] // self.patch)
        embedding = self.embed(noise_label)
        patches = F.pixel_unshuffle(x, self.patch)  # (B, C * patch^2, rows, columns)
        tokens = self.first(patches.flatten(2).transpose(1, 2))  # (B, T, width)
        tokens = tokens + positions(grid, self.width, device=x.device)
        for block in self.blocks:
            tokens = block(tokens, embedding)
        shift, scale = self.modulate(F.silu(embedding))[:, None].chunk(2, dim=2)
        tokens = self.last(self.norm(tokens) * (1 + scale) + shift)
        return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, grid), self.patch)


def positions(grid: tuple[int, int], width: int, *, device: torch.device | None = None) -> Tensor:
    """Sinusoidal positions of a grid of patches, (rows * columns, width), row by row.

    A quarter of the features each for the sine and cosine of the row and of the column.
    """
    steps = torch.arange(width // 4, device=device) / (width // 4)
    frequencies = torch.exp(-math.log(10_000.0) * steps)
    rows, columns = (torch.arange(n, device=device)[:, None] * frequencies for n in grid)
    rows = rows[:, None].expand(*grid, -1)
    columns = columns[None, :].expand(*grid, -1)
    return torch.cat([rows.sin(), rows.cos(), columns.sin(), columns.cos()], dim=2).flatten(0, 1)


def _zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
