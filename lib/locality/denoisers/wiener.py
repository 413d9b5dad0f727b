"""The Wiener filter: the best linear denoiser, and the yardstick beside every claim."""

from torch import Tensor

from ..data import check_shape
from ..stats import PCA


class WienerDenoiser:
    """E[x0 | x] when x0 is Gaussian with the data's mean and covariance.

    D(x) = mean + U diag(L / (L + sigma^2)) U^T (x - mean) (the paper, section 4). Among all
    affine denoisers it has the least mean squared error on the data itself.

    Args:
        pca: the statistics, on the device where the queries are.
    """

    def __init__(self, pca: PCA):
        self.pca = pca
        self.shape = pca.shape

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Linear posterior mean, (B, C, H, W), of the noisy images ``x`` (B, C, H, W)."""
        check_shape(x, self.shape)
        centred = x.flatten(1) - self.pca.mean
        return (self.pca.mean + self.pca.apply(self.pca.shrinkage(sigma), centred)).view_as(x)

    def jacobian_rows(self, x: Tensor, sigma: float, pixels: Tensor) -> Tensor:
        """Rows of dD/dx for the flat output ``pixels``, (B, P, D): the same W for every x."""
        return self.pca.wiener_rows(sigma, pixels).expand(len(x), -1, -1)
