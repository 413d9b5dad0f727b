"""The UNet of Ho et al. (2020): residual blocks, skip connections, one attention block.

With `UNet(1, channels=(64, 128, 128), blocks=2, groups=32, dropout=0.15)` this is the paper's
network for 28x28 grey images. The laptop's network is the same code, narrower and shallower.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .embedding import NoiseEmbedding


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around the noise level's embedding, added to a skip path."""

    def __init__(self, inputs: int, outputs: int, *, embedding: int, groups: int, dropout: float):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.project = nn.Linear(embedding, outputs)
        self.norm2 = nn.GroupNorm(groups, outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, inputs, H, W) and (B, embedding) to (B, outputs, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.project(F.silu(embedding))[:, :, None, None]
        return self.skip(x) + self.conv2(self.dropout(F.silu(self.norm2(h))))


class Attention(nn.Module):
    """Self-attention over all positions, one head, added to its input."""

    def __init__(self, channels: int, *, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to the same shape."""
        qkv = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)  # (B, H*W, 3*C)
        h = F.scaled_dot_product_attention(*qkv.chunk(3, dim=2))  # (B, H*W, C)
        return x + self.out(h.transpose(1, 2).reshape(x.shape))


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by two, then a 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, channels, 2 H, 2 W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class UNet(nn.Module):
    """Maps an image (B, C, H, W) and a noise label (B,) to an image of the same shape.

    Args:
        image_channels: C, 1 for grey and 3 for RGB.
        channels: the width per resolution, finest first; H and W must be divisible by
            2 ** (len(channels) - 1).
        blocks: residual blocks per resolution on the way down (one more on the way up).
        groups: of every GroupNorm; divides all widths.
        dropout: share of a residual block's features dropped in training.
    """

    def __init__(
        self,
        image_channels: int,
        *,
        channels: Sequence[int] = (16, 32, 64),
        blocks: int = 1,
        groups: int = 8,
        dropout: float = 0.0,
    ):
        super().__init__()
        if any(width % groups for width in channels):
            raise ValueError(f"channels {channels} must all be divisible by groups={groups}")
        self.factor = 2 ** (len(channels) - 1)
        width = channels[0]
        self.embed = NoiseEmbedding(width, 4 * width)
        options = {"embedding": 4 * width, "groups": groups, "dropout": dropout}
        self.first = nn.Conv2d(image_channels, width, 3, padding=1)
        self.down, skips = nn.ModuleList(), [width]
        for level, outputs in enumerate(channels):
            for _ in range(blocks):
                self.down.append(ResidualBlock(width, outputs, **options))
                width = outputs
                skips.append(width)
            if level < len(channels) - 1:
                self.down.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)
        self.middle = nn.ModuleList(
            [
                ResidualBlock(width, width, **options),
                Attention(width, groups=groups),
                ResidualBlock(width, width, **options),
            ]
        )
        self.up = nn.ModuleList()
        for level, outputs in reversed(list(enumerate(channels))):
            for _ in range(blocks + 1):
                self.up.append(ResidualBlock(width + skips.pop(), outputs, **options))
                width = outputs
            if level > 0:
                self.up.append(Upsample(width))
        self.norm = nn.GroupNorm(groups, width)
        self.last = zero(nn.Conv2d(width, image_channels, 3, padding=1))

    def forward(self, x: Tensor, noise_label: Tensor) -> Tensor:
        """(B, C, H, W) and (B,) to (B, C, H, W)."""
        if x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise ValueError(
                f"height and width must be divisible by {self.factor}, got {tuple(x.shape[2:])}"
            )
        embedding = self.embed(noise_label)
        x = self.first(x)
        skips = [x]
        for layer in self.down:
            x = layer(x, embedding) if isinstance(layer, ResidualBlock) else layer(x)
            skips.append(x)
        for layer in self.middle:
            x = layer(x, embedding) if isinstance(layer, ResidualBlock) else layer(x)
        for layer in self.up:
            if isinstance(layer, ResidualBlock):
                x = layer(torch.cat([x, skips.pop()], dim=1), embedding)
            else:
                x = layer(x)
        return self.last(F.silu(self.norm(x)))


def zero(layer: nn.Module) -> nn.Module:
    """The layer with all its parameters set to zero, so that its block starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
