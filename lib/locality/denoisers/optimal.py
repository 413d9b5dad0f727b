"""The optimal denoiser: the exact minimiser of the diffusion loss over a finite training set."""

import torch
from torch import Tensor

from ..data import ImageSet, check_shape
from ..schedule import check_sigma
from .base import check_count, precise_dtype, training_images
from .streaming import SoftmaxState, accumulate, softmax_weights


class OptimalDenoiser:
    """E[x0 | x] when x0 is one of the N training images, each as likely as any other.

    With w_k = softmax_k(-||x - x_k||^2 / (2 sigma^2)) the answer is sum_k w_k x_k (the paper,
    section 3). It reproduces training images: it memorises.

    Distances are taken in float64 where the device has it: at the lowest noise level they are
    divided by 2e-4, and float32 would leave no correct digit in the weights.

    Args:
        images: (N, C, H, W), or an ImageSet.
        neighbours: None for all images. A number keeps only that many, the nearest to each query;
            the paper's released code keeps 200. For comparison only.
        chunk: training images handled at a time; changes the memory used, not the result.
    """

    def __init__(
        self, images: ImageSet | Tensor, *, neighbours: int | None = None, chunk: int = 1024
    ):
        self.images = training_images(images)
        self.shape = tuple(self.images.shape[1:])
        self.neighbours = neighbours
        if neighbours is not None:
            check_count(neighbours, name="neighbours")
        self.chunk = check_count(chunk, name="chunk")
        self.dtype = precise_dtype(self.images.device)

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Posterior mean, (B, C, H, W) float32, of the noisy images ``x`` (B, C, H, W)."""
        if self.neighbours is not None:
            parts = self.log_weights(x, sigma).exp().split(self.chunk, dim=1)
            chunks = self.images.split(self.chunk)
            mean = sum(w @ c.flatten(1).to(w) for w, c in zip(parts, chunks, strict=True))
            return mean.to(x.dtype).view_as(x)

        return self.state(x, sigma).mean().to(x.dtype).view_as(x)

    def state(self, x: Tensor, sigma: float) -> SoftmaxState:
        """The streaming softmax over this denoiser's images; states of several sets merge."""
        check_shape(x, self.shape)
        if self.neighbours is not None:
            raise ValueError("state knows the exact softmax only; neighbours is set")
        scale = 2 * check_sigma(sigma) ** 2

        def update(x: Tensor, chunk: Tensor) -> SoftmaxState:
            values = chunk.flatten(1).to(self.dtype)
            peak, weights = softmax_weights(-squared_distances(x, values) / scale, dim=1)
            return SoftmaxState(peak, weights.sum(1, keepdim=True), weights @ values)

        return accumulate(update, x.flatten(1).to(self.dtype), self.images.split(self.chunk))

    def log_weights(self, x: Tensor, sigma: float) -> Tensor:
        """log w_k, (B, N): the log posterior probability of every training image."""
        check_shape(x, self.shape)
        query = x.flatten(1).to(self.dtype)
        distances = [
            squared_distances(query, chunk.flatten(1).to(self.dtype))
            for chunk in self.images.split(self.chunk)
        ]
        logits = -torch.cat(distances, 1) / (2 * check_sigma(sigma) ** 2)
        if self.neighbours is not None and self.neighbours < len(self.images):
            nearest = logits.topk(self.neighbours, dim=1)
            logits = torch.full_like(logits, -torch.inf).scatter(1, nearest.indices, nearest.values)
        return torch.log_softmax(logits, dim=1)

    def jacobian_rows(self, x: Tensor, sigma: float, pixels: Tensor) -> Tensor:
        """Rows of dD/dx for the flat output ``pixels``, (B, P, D).

        The Jacobian of a posterior mean is the posterior covariance over sigma^2 (the second
        Tweedie formula), here a weighted covariance of the training images.
        """
        weights = self.log_weights(x, sigma).exp()  # (B, N)
        mean = self(x, sigma).flatten(1).to(self.dtype)
        rows = 0
        for chunk, w in zip(
            self.images.split(self.chunk), weights.split(self.chunk, dim=1), strict=True
        ):
            centred = chunk.flatten(1).to(self.dtype) - mean[:, None]  # (B, c, D)
            rows = rows + torch.einsum("bk,bkp,bkd->bpd", w, centred[:, :, pixels], centred)
        return (rows / check_sigma(sigma) ** 2).to(x.dtype)


def squared_distances(x: Tensor, images: Tensor) -> Tensor:
    """||x_b - x_k||^2, (B, K), for flat ``x`` (B, D) and ``images`` (K, D) of one precise dtype."""
    cross = x @ images.T
    return x.square().sum(1, keepdim=True) + images.square().sum(1) - 2 * cross
