"""A linear denoiser: for every noise level one matrix and one bias, all made from the same factors.

A full matrix per noise level would be large (784 x 784 numbers for a 28x28 image), and each would
learn from its own noise level only. Instead all noise levels share one learned matrix V of `rank`
rows, and a small hypernetwork maps the noise level to `rank` gains g, a bias b and one scalar s:
D(x) = V^T diag(g) V x + s x + b. This loses nothing: the best linear denoisers of all noise levels
(the Wiener filters) are symmetric and share their eigenvectors, so they lie in this family when
`rank` is the number of pixels; and the scalar keeps the many directions of little variance right
when `rank` is smaller. Nothing in it knows about principal components: the matrix starts random and
is learned by the same loss as the UNet's.

But gain and direction must be learned together: while the gains of two directions are alike nothing
turns the directions, and while the directions are wrong nothing sets the gains apart. From a random
V that takes very long for the many directions in which the data vary little. One matrix for one
noise level has no such difficulty, its problem is convex: `MatrixDenoiser`. Once it is learned, V
starts from its eigenvectors.

With two matrices in the place of V^T and V nothing would be given away about symmetry, but twice as
many numbers would carry the noise of the gradient, and training comes near the Wiener filter later.
"""

import torch
from torch import Tensor, nn

from .embedding import NoiseEmbedding


class LinearDenoiser(nn.Module):
    """Maps an image (B, C, H, W) and a noise label (B,) to V^T diag(g(label)) V x + s x + b.

    For a fixed noise label it is affine in the image, and its matrix is symmetric.

    Args:
        shape: (C, H, W) of one image.
        rank: rows of V, at most C * H * W (the default).
        features: width of the hypernetwork.
    """

    def __init__(self, shape: tuple[int, int, int], *, rank: int | None = None, features: int = 64):
        super().__init__()
        pixels = shape[0] * shape[1] * shape[2]
        rank = rank or pixels
        if not 1 <= rank <= pixels:
            raise ValueError(f"rank must lie between 1 and {pixels}, got {rank}")
        self.shape = tuple(shape)
        self.embed = NoiseEmbedding(features, features)
        self.directions = nn.Parameter(torch.empty(rank, pixels))  # V
        self.gains = nn.Linear(features, rank)
        self.bias = nn.Linear(features, pixels)
        self.scale = nn.Linear(features, 1)
        nn.init.orthogonal_(self.directions)
        for layer in (self.gains, self.bias, self.scale):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, noise_label: Tensor) -> Tensor:
        """(B, C, H, W) and (B,) to (B, C, H, W)."""
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"expected images of shape {self.shape}, got {tuple(x.shape[1:])}")
        embedding = nn.functional.silu(self.embed(noise_label))
        flat = x.flatten(1)
        answer = (self.gains(embedding) * (flat @ self.directions.T)) @ self.directions
        answer = answer + self.scale(embedding) * flat + self.bias(embedding)
        return answer.view_as(x)

    @torch.no_grad()
    def start_from(self, matrix: "MatrixDenoiser") -> None:
        """Let the directions be the eigenvectors of a learned matrix, those of most effect."""
        weight = matrix.weight.cpu().double()
        values, vectors = torch.linalg.eigh((weight + weight.T) / 2)
        # At the common value of most directions (of all in which the data hardly vary) the scalar
        # serves; a direction is worth a row of V by its distance to that.
        most = (values - values.median()).abs().argsort(descending=True)[: len(self.directions)]
        self.directions.copy_(vectors[:, most].T)


class MatrixDenoiser(nn.Module):
    """Maps an image (B, C, H, W) to one matrix times it plus a bias, for one noise level only.

    Args:
        shape: (C, H, W) of one image.
    """

    def __init__(self, shape: tuple[int, int, int]):
        super().__init__()
        pixels = shape[0] * shape[1] * shape[2]
        self.weight = nn.Parameter(torch.zeros(pixels, pixels))
        self.bias = nn.Parameter(torch.zeros(pixels))

    def forward(self, x: Tensor, noise_label: Tensor) -> Tensor:
        """(B, C, H, W) to the same; the noise label (B,) is not looked at."""
        return nn.functional.linear(x.flatten(1), self.weight, self.bias).view_as(x)
