"""Mixtures of Gaussians: denoisers between the memorising one and the Wiener filter.

A training image is a Gaussian of no width, and the Wiener filter knows one Gaussian as wide as the
data. Between them lie many narrow Gaussians of one shape (``KernelMixtureDenoiser``) and a few
wide ones, each with a shape of its own (``WienerMixtureDenoiser``), of images or of small pieces of
them (``PatchMixtureDenoiser``). The posterior mean of a
mixture of Gaussians is known exactly: the Wiener filters of its components, weighted by how likely
each component is to have made the noisy image.
"""

import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import ImageSet, check_shape
from ..schedule import check_sigma
from ..stats import PCA
from .base import check_count, precise_dtype, training_images
from .streaming import SoftmaxState, accumulate, softmax_weights

# Noise in the likelihoods by which expectation maximisation shares out the images. Without any, the
# directions of least variance, in which clusters hardly differ, would decide.
EM_SIGMA = 0.25
# K-means looks at this many leading principal components, or at all if there are fewer.
CLUSTER_RANK = 30


class KernelMixtureDenoiser:
    """E[x0 | x] when x0 is a training image drawn towards the mean, plus Gaussian noise of its own.

    The components are N(mean + a (x_k - mean), h^2 S) with a = sqrt(1 - h^2) and S the covariance
    of the data, so the mixture has the mean and the covariance of the data for every h. h = 0
    is the optimal denoiser, h = 1 the Wiener filter. In the eigenbasis of S the components'
    covariance is diagonal and the answer, exact, costs as much as the optimal denoiser's:

    logit_k = -1/2 sum_i (z_i - a y_ki)^2 / (h^2 L_i + sigma^2), and
    D_i = g_i z_i + (1 - g_i) a sum_k softmax_k(logit_k) y_ki, g_i = h^2 L_i / (h^2 L_i + sigma^2),
    with z and y_k the coordinates of x and x_k from the mean.

    Source: this book. Kernel density estimates with a shrunk centre keep the moments (West 1993).

    Args:
        images: (N, C, H, W), or an ImageSet.
        pca: their statistics, with all D eigenvectors.
        width: h, from 0 to 1.
        chunk: training images handled at a time; changes the memory used, not the result.

    Raises:
        ValueError: if ``width`` lies outside [0, 1], or ``pca`` lacks eigenvectors.
    """

    def __init__(self, images: ImageSet | Tensor, pca: PCA, *, width: float, chunk: int = 1024):
        if not 0 <= width <= 1:
            raise ValueError(f"width must lie between 0 and 1, got {width}")
        if pca.eigenvectors.shape[1] < len(pca.mean):
            raise ValueError(
                f"the mixture needs all {len(pca.mean)} eigenvectors, "
                f"got {pca.eigenvectors.shape[1]}"
            )
        images = training_images(images)
        self.shape = tuple(images.shape[1:])
        self.pca = pca
        self.width = width
        self.chunk = check_count(chunk, name="chunk")
        parts = [self._coordinates(part).float() for part in images.split(1024)]
        self.coordinates = torch.cat(parts)  # (N, D)

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Posterior mean, (B, C, H, W) float32, of the noisy images ``x`` (B, C, H, W)."""
        check_shape(x, self.shape)
        z = self._coordinates(x)  # (B, D)
        variances = self.width**2 * self.pca.eigenvalues.to(z)
        precision = 1 / (variances + check_sigma(sigma) ** 2)
        a = math.sqrt(1 - self.width**2)

        def update(z: Tensor, chunk: Tensor) -> SoftmaxState:
            y = a * chunk.to(z)  # (c, D)
            logits = (z * precision) @ y.T - (y.square() @ precision) / 2
            peak, weights = softmax_weights(logits, dim=1)
            return SoftmaxState(peak, weights.sum(1, keepdim=True), weights @ y)

        centre = accumulate(update, z, self.coordinates.split(self.chunk)).mean()
        gain = variances * precision
        answer = (gain * z + (1 - gain) * centre) @ self.pca.eigenvectors.to(z).T
        return (answer + self.pca.mean.to(z)).to(x.dtype).view_as(x)

    def _coordinates(self, x: Tensor) -> Tensor:
        """Along the eigenvectors, from the mean, (B, D), in float64 where the device has it: at
        low noise squared distances are divided by 2e-4, as in the optimal denoiser."""
        dtype = precise_dtype(x.device)
        return (x.flatten(1).to(dtype) - self.pca.mean.to(dtype)) @ self.pca.eigenvectors.to(dtype)


class WienerMixtureDenoiser:
    """A few Wiener filters, one for each kind of image, mixed anew at every pixel.

    Component c has a weight p_c, a mean m_c and a covariance S_c; F_c is its Wiener filter. With
    the whitened residual r_c = (S_c + sigma^2 I)^(-1/2) (x - m_c) every pixel n gives evidence
    against c, e_c[n] = r_c[n]^2 + [log(S_c + sigma^2 I)]_nn, and every output pixel m weighs the
    evidence in a window of its own, V[m, n]:

    D(x)[m] = sum_c softmax_c( log p_c - 1/2 sum_n V[m, n] e_c[n] ) F_c(x)[m].

    Exact: where V is all ones. The evidence then sums to -2 log N(x; m_c, S_c + sigma^2 I) up to a
    constant, because the trace of a logarithm is the logarithm of the determinant, and D is the
    posterior mean of the Gaussian mixture. One component gives the Wiener filter, for every V.
    Exact, too, for any V of zeros and ones where the S_c are diagonal: the posterior given the
    pixels in the window. Heuristic: a window under correlated pixels. It leaves out terms of the
    log-likelihood, cut into one for each pixel; the symmetric root is the whitening that
    keeps every whitened pixel as close as possible to its own pixel.

    The cost of a query does not depend on the number of training images. Source: this book.

    The components differ in the span of the q leading principal components only. In the directions
    beyond, all have the mean and the variances of the whole data set: there a small cluster
    would give noise.

    Args:
        pca: statistics of the whole set, on the device where the queries are.
        weights: p_c, (K,), positive, of sum 1.
        means: (K, q), coordinates along the leading q principal components, from the mean.
        covariances: (K, q, q), in the same coordinates.
        window: sigma -> V, (D, D) weights like a mask's; None for all ones.

    Raises:
        ValueError: if shapes do not match or ``weights`` are no probabilities.
    """

    def __init__(
        self,
        pca: PCA,
        weights: Tensor,
        means: Tensor,
        covariances: Tensor,
        *,
        window: Callable[[float], Tensor] | None = None,
    ):
        count, rank = means.shape
        if weights.shape != (count,) or covariances.shape != (count, rank, rank):
            raise ValueError(
                f"weights and covariances should be ({count},) and ({count}, {rank}, {rank}) for "
                f"means of that shape, got {tuple(weights.shape)} and {tuple(covariances.shape)}"
            )
        if not bool((weights > 0).all()) or abs(weights.sum().item() - 1) > 1e-4:
            raise ValueError(f"weights must be positive and sum to 1, got {weights}")
        leading = pca.truncate(rank).eigenvectors  # (D, q)
        # float64 and LAPACK live on the CPU; some accelerators have neither.
        values, vectors = torch.linalg.eigh(covariances.to("cpu", torch.float64))
        self.pca = pca
        self.shape = pca.shape
        self.log_weights = weights.to(leading).log()
        self.means = means.to(leading)
        self.variances = values.clamp_min(0).to(leading)  # (K, q)
        self.rotations = vectors.to(leading)  # (K, q, q), from principal to own components
        self.window = window

    @classmethod
    def fit(
        cls,
        images: ImageSet | Tensor,
        pca: PCA,
        *,
        components: int,
        rank: int,
        pseudo_count: float,
        rounds: int = 0,
        window: Callable[[float], Tensor] | None = None,
        seed: int = 0,
    ) -> "WienerMixtureDenoiser":
        """Find the components by k-means and gather a mean and a covariance of each cluster.

        Clusters of k-means differ in their means. Rounds of expectation maximisation (Dempster,
        Laird & Rubin 1977) let them differ in their covariances, too: every image is shared out
        among the components, widened by ``EM_SIGMA``, that may have made it.

        Args:
            images: (N, C, H, W), or an ImageSet.
            pca: their statistics.
            components: K, the number of clusters.
            rank: q, the number of leading principal components in which they differ.
            pseudo_count: a covariance is that of its own n_c images and of this many more that
                have the covariance within clusters on average: S_c is shrunk towards that by
                pseudo_count / (n_c + pseudo_count), most where images are few (Friedman 1989).
            rounds: of expectation maximisation after k-means.
            window: sigma -> V, see the class.
            seed: of k-means.
        """
        check_count(components, name="components")
        if not pseudo_count > 0:
            raise ValueError(f"pseudo_count must be positive, got {pseudo_count}")
        if rounds < 0:
            raise ValueError(f"rounds must not be negative, got {rounds}")
        # Imported here: it takes as long as torch itself, and every process would wait for it.
        from sklearn.cluster import KMeans

        cluster_rank = min(CLUSTER_RANK, pca.eigenvectors.shape[1])
        leading = pca.truncate(max(rank, cluster_rank)).eigenvectors
        parts = training_images(images).split(1024)
        y = torch.cat([(part.flatten(1) - pca.mean) @ leading for part in parts]).cpu().double()
        kmeans = KMeans(components, n_init=4, random_state=seed)
        labels = torch.from_numpy(kmeans.fit_predict(y[:, :cluster_rank].numpy())).long()
        y = y[:, :rank]
        shares = F.one_hot(labels, components).to(y)  # (N, K): whose image it is
        for _ in range(rounds):
            shares = _shares(y, *_moments(y, shares, pseudo_count))
        return cls(pca, *_moments(y, shares, pseudo_count), window=window)

    def with_window(self, window: Callable[[float], Tensor] | None) -> "WienerMixtureDenoiser":
        """The same components with another window."""
        other = copy.copy(self)
        other.window = window
        return other

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Mixed linear posterior means, (B, C, H, W), of the noisy images ``x`` (B, C, H, W)."""
        check_shape(x, self.shape)
        noise = check_sigma(sigma) ** 2
        rank = self.means.shape[1]
        window = None if self.window is None else self.window(sigma).to(x).T
        leading = self.pca.eigenvectors[:, :rank]
        centred = x.flatten(1) - self.pca.mean
        # Beyond the leading components all clusters agree.
        beyond = self.pca.eigenvalues.clone()
        whiten, shrink = (beyond + noise).rsqrt(), beyond / (beyond + noise)
        whiten[:rank], shrink[:rank] = 0, 0
        common_residual = self.pca.apply(whiten, centred)  # (B, D)
        common_answer = self.pca.apply(shrink, centred)

        def update(both: Tensor, c: int) -> SoftmaxState:
            centred, common_residual = both.chunk(2, dim=1)
            own = leading @ self.rotations[c]  # (D, q)
            mean = leading @ self.means[c]  # (D,)
            z = (centred - mean) @ own  # (B, q)
            total = self.variances[c] + noise
            residual = (z * total.rsqrt()) @ own.T + common_residual
            # Counted from log sigma^2, which is the same for all components.
            evidence = residual.square() + own.square() @ (total / noise).log()
            if window is None:
                gathered = evidence.sum(1, keepdim=True)  # (B, 1)
            else:
                gathered = evidence @ window  # (B, D)
            answer = mean + (z * (self.variances[c] / total)) @ own.T
            logits = self.log_weights[c] - gathered / 2
            return SoftmaxState(logits, torch.ones_like(logits), answer)

        both = torch.cat([centred, common_residual], dim=1)
        mixed = accumulate(update, both, range(len(self.means))).mean()
        return (self.pca.mean + common_answer + mixed).view_as(x)


def _moments(y: Tensor, shares: Tensor, pseudo_count: float) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (K,), means (K, q) and shrunk covariances (K, q, q) of points (N, q) shared out."""
    counts = shares.sum(0)
    means = shares.T @ y / counts[:, None]
    scatters = []
    for share, mean in zip(shares.T, means, strict=True):
        own = share > 1e-9  # nearly all points belong nearly wholly to one component
        centred = y[own] - mean
        scatters.append((centred * share[own, None]).T @ centred)
    scatters = torch.stack(scatters)
    within = scatters.sum(0) / len(y)
    covariances = (scatters + pseudo_count * within) / (counts + pseudo_count)[:, None, None]
    return counts / len(y), means, covariances


def _shares(y: Tensor, weights: Tensor, means: Tensor, covariances: Tensor) -> Tensor:
    """(N, K): how probably each component, widened by EM_SIGMA, has made each point."""
    noise = EM_SIGMA**2 * torch.eye(y.shape[1], dtype=y.dtype)
    logits = []
    for weight, mean, covariance in zip(weights, means, covariances, strict=True):
        root = torch.linalg.cholesky(covariance + noise)
        z = torch.linalg.solve_triangular(root, (y - mean).T, upper=False)  # (q, N), white
        logits.append(weight.log() - z.square().sum(0) / 2 - root.diagonal().log().sum())
    return torch.stack(logits, dim=1).softmax(dim=1)


class PatchMixtureDenoiser:
    """Wiener filters mixed anew in every square patch; where patches overlap, their mean.

    The model of a patch is a ``WienerMixtureDenoiser`` without a window, the same at every place:
    its answer is the exact posterior mean of the patch given the noisy patch. That it may be
    averaged over the patches that cover a pixel is an assumption, as in PSPC.

    Source: Zoran & Weiss (2011), who iterate and update an image under such a prior; this is
    their first step, with clusters from k-means.

    Args:
        images: (N, C, H, W), or an ImageSet.
        side: of the patches, in pixels.
        components: K, the number of clusters.
        pseudo_count: see ``WienerMixtureDenoiser.fit``.
        patches: that the clusters are found in, drawn at random places of random images.
        seed: of the draw.

    Raises:
        ValueError: if a patch does not fit into the images.
    """

    def __init__(
        self,
        images: ImageSet | Tensor,
        side: int,
        *,
        components: int,
        pseudo_count: float,
        patches: int = 20_000,
        seed: int = 0,
    ):
        images = training_images(images)
        self.shape = tuple(images.shape[1:])
        self.side = check_count(side, name="side")
        if self.side > min(self.shape[1:]):
            raise ValueError(f"patches of side {side} do not fit into images of {self.shape}")
        windows = images.unfold(2, side, 1).unfold(3, side, 1)  # (N, C, H', W', side, side)
        generator = torch.Generator().manual_seed(seed)
        image, row, column = (
            torch.randint(windows.shape[axis], (patches,), generator=generator)
            for axis in (0, 2, 3)
        )
        drawn = windows[image, :, row, column]  # (patches, C, side, side)
        statistics = PCA.fit(drawn)
        self.model = WienerMixtureDenoiser.fit(
            drawn,
            statistics,
            components=components,
            rank=len(statistics.mean),
            pseudo_count=pseudo_count,
        )

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Mean of the patches' answers, (B, C, H, W), of the noisy images ``x`` (B, C, H, W)."""
        check_shape(x, self.shape)
        noisy = F.unfold(x, self.side)  # (B, C * side * side, places)
        patches = noisy.mT.reshape(-1, *self.model.shape)
        answers = self.model(patches, sigma).view_as(noisy.mT).mT
        total, covered = (
            F.fold(part, x.shape[2:], self.side) for part in (answers, torch.ones_like(noisy))
        )
        return total / covered
