"""Statistics of a data set: principal components, and the Wiener filter they define.

Everything the paper needs to know about the data is in its mean and its covariance.
``PCA.fit`` gathers both in one pass over chunks of images, in float64, so the memory does not
depend on the number of images; ``PCA.wiener_matrix`` turns them into the best linear denoiser.
``single_frequency_share`` and ``radial_power`` compare the components with a Fourier basis.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import scipy.fft
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .data import ImageSet
from .schedule import check_sigma

BASES = Path(__file__).parent / "_bases"


@dataclass(frozen=True)
class Moments:
    """Count, mean (D,) and scatter (D, D) of images, in float64 on the CPU.

    The scatter is the sum of (x - mean)(x - mean)^T. Moments of two sets of images merge exactly.
    """

    count: int
    mean: Tensor
    scatter: Tensor
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, images: ImageSet | Tensor | Iterable[Tensor], *, chunk: int = 1024) -> "Moments":
        """Moments of ``images`` (N, C, H, W), or of an iterable of such chunks, in one pass.

        The sums run about the first chunk's mean, because a sum of squares minus a squared sum
        loses digits when the mean is large beside the spread.
        """
        if isinstance(images, ImageSet):
            images = images.images
        chunks = images.split(chunk) if isinstance(images, Tensor) else images
        count, shape = 0, None
        for part in chunks:
            # float64 and LAPACK live on the CPU; some accelerators have neither.
            flat = part.flatten(1).to("cpu", torch.float64)  # (b, D)
            if shape is None:
                shape, origin = tuple(part.shape[1:]), flat.mean(0)
                total = torch.zeros_like(origin)
                outer = torch.zeros(origin.numel(), origin.numel(), dtype=torch.float64)
            flat = flat - origin
            total += flat.sum(0)
            outer.addmm_(flat.T, flat)
            count += len(flat)
        if count == 0:
            raise ValueError("a covariance needs at least 2 images, got 0")
        outer -= torch.outer(total, total) / count
        return cls(count, origin + total / count, outer, shape)

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both sets of images together (Chan, Golub & LeVeque 1983)."""
        count, apart = self.count + other.count, other.mean - self.mean
        scatter = torch.outer(apart, apart) * (self.count * other.count / count)
        scatter += self.scatter + other.scatter
        return Moments(count, self.mean + apart * (other.count / count), scatter, self.shape)


@dataclass(frozen=True)
class PCA:
    """Mean and principal components of images of D = C * H * W pixels.

    Attributes:
        mean: (D,) float32, the mean image, in image units [-1, 1].
        eigenvalues: (D,) float32, variances along the components, descending.
        eigenvectors: (D, k) float32, one component a column. Where k < D the components that are
            missing count as all alike: they share the mean of what their eigenvalues give
            (probabilistic PCA, Tipping & Bishop 1999).
        shape: (C, H, W) of one image.
        count: number of images the statistics were gathered from.
    """

    mean: Tensor
    eigenvalues: Tensor
    eigenvectors: Tensor
    shape: tuple[int, int, int]
    count: int

    @classmethod
    def fit(cls, images: ImageSet | Tensor | Iterable[Tensor], *, chunk: int = 1024) -> "PCA":
        """Principal components of ``images``, in one pass.

        Args:
            images: (N, C, H, W), or an iterable of such chunks when N does not fit in memory.
            chunk: images handled at a time; changes the memory used, not the result.

        Raises:
            ValueError: if there are fewer than two images, or a pixel is not finite.
        """
        return cls.from_moments(Moments.of(images, chunk=chunk))

    @classmethod
    def from_moments(cls, moments: "Moments") -> "PCA":
        """Principal components of the images whose ``moments`` these are."""
        if moments.count < 2:
            raise ValueError(f"a covariance needs at least 2 images, got {moments.count}")
        if not bool(torch.isfinite(moments.scatter).all()):
            raise ValueError("images hold NaN or infinite pixels, expected finite ones")
        return cls.from_covariance(
            moments.mean,
            moments.scatter / (moments.count - 1),
            shape=moments.shape,
            count=moments.count,
        )

    @classmethod
    def from_covariance(
        cls, mean: Tensor, covariance: Tensor, *, shape: tuple[int, int, int], count: int
    ) -> "PCA":
        """Principal components of a given mean (D,) and covariance (D, D)."""
        values, vectors = torch.linalg.eigh(covariance.to("cpu", torch.float64))
        # eigh sorts ascending; rounding can leave tiny negative variances.
        values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
        return cls(mean.cpu().float(), values.float(), vectors.float(), tuple(shape), count)

    def to(self, device: torch.device | str) -> "PCA":
        """The same statistics on another device."""
        return replace(
            self,
            mean=self.mean.to(device),
            eigenvalues=self.eigenvalues.to(device),
            eigenvectors=self.eigenvectors.to(device),
        )

    def truncate(self, k: int) -> "PCA":
        """Keep the eigenvectors of the ``k`` largest eigenvalues (all eigenvalues stay)."""
        available = self.eigenvectors.shape[1]
        if not 1 <= k <= available:
            raise ValueError(f"k must lie between 1 and {available}, got {k}")
        return replace(self, eigenvectors=self.eigenvectors[:, :k])

    def covariance(self) -> Tensor:
        """S = U diag(L) U^T, (D, D)."""
        return self._rows(self.eigenvalues, slice(None))

    def shrinkage(self, sigma: float) -> Tensor:
        """s_i = L_i / (L_i + sigma^2), (D,): how much of each component survives the noise."""
        return self.eigenvalues / (self.eigenvalues + check_sigma(sigma) ** 2)

    def wiener_matrix(self, sigma: float) -> Tensor:
        """W = U diag(s) U^T, (D, D), the Wiener filter of the paper (section 4)."""
        return self._rows(self.shrinkage(sigma), slice(None))

    def wiener_rows(self, sigma: float, pixels: Sequence[int] | Tensor) -> Tensor:
        """Rows of W for the flat output ``pixels``, (P, D), at a cost of P * k * D only."""
        return self._rows(self.shrinkage(sigma), torch.as_tensor(pixels, device=self.mean.device))

    def wiener_rows_with(
        self, sigma: float, pixels: Sequence[int] | Tensor, direction: Tensor, *, variance: float
    ) -> Tensor:
        """Rows of W, (P, D), had every image gained a * ``direction`` with a random a.

        Args:
            direction: (D,), the pattern that is added.
            variance: of a, which is independent of the image.

        The covariance gains variance * direction direction^T, and by Sherman & Morrison (1950) W
        gains g g^T / (sigma^2 / variance + direction . g), where g = direction - W direction is
        what the filter removes from the pattern. No new eigenvectors are needed.
        """
        if direction.shape != self.mean.shape or not variance >= 0:
            raise ValueError(
                f"direction must have shape {tuple(self.mean.shape)} and variance be at least 0, "
                f"got {tuple(direction.shape)} and {variance}"
            )
        direction = direction.to(self.mean)
        removed = direction - self.apply(self.shrinkage(sigma), direction[None])[0]
        gain = variance / (sigma**2 + variance * (direction @ removed))
        rows = self.wiener_rows(sigma, pixels)
        return rows + gain * torch.outer(removed[torch.as_tensor(pixels)], removed)

    def apply(self, values: Tensor, x: Tensor) -> Tensor:
        """U diag(values) U^T x for flat ``x`` (B, D), without forming the matrix."""
        leading, rest = self._split(values)
        return ((x @ self.eigenvectors) * leading) @ self.eigenvectors.T + rest * x

    def _rows(self, values: Tensor, pixels: slice | Tensor) -> Tensor:
        leading, rest = self._split(values)
        rows = (self.eigenvectors[pixels] * leading) @ self.eigenvectors.T
        places = torch.arange(len(self.mean), device=self.mean.device)[pixels]
        rows[torch.arange(len(places), device=places.device), places] += rest
        return rows

    def _split(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Values (D,) as a common part of all directions and what the k kept ones add to it."""
        k = self.eigenvectors.shape[1]
        rest = values[k:].mean() if k < len(values) else values.new_zeros(())
        return values[:k] - rest, rest

    def save(self, path: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write to ``path`` (safetensors); ``dtype`` is that of the stored eigenvectors."""
        tensors = {
            "mean": self.mean.cpu(),
            "eigenvalues": self.eigenvalues.cpu(),
            "eigenvectors": self.eigenvectors.cpu().to(dtype).contiguous(),
        }
        about = {"shape": json.dumps(self.shape), "count": str(self.count)}
        save_file(tensors, str(path), metadata=about)

    @classmethod
    def load(cls, path: str | Path) -> "PCA":
        """Read what ``save`` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is not one of ours.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no principal components at {path}")
        expected = {"mean", "eigenvalues", "eigenvectors"}
        try:
            with safe_open(str(path), framework="pt") as file:
                found, about = set(file.keys()), file.metadata() or {}
                if found != expected or not {"shape", "count"} <= set(about):
                    raise ValueError(
                        f"{path} should hold {sorted(expected)}, it holds {sorted(found)}"
                    )
                tensors = {key: file.get_tensor(key).float() for key in expected}
        except SafetensorError as error:
            raise ValueError(f"{path} is no complete safetensors file: {error}") from error
        shape, count = tuple(json.loads(about["shape"])), int(about["count"])
        return cls(shape=shape, count=count, **tensors)


def load_basis(name: str) -> PCA:
    """The principal components that ship with the package for a set whose images cannot.

    Means, all eigenvalues and the leading eigenvectors (float16) of CelebA, AFHQ cats, CIFAR-10,
    MNIST and Olivetti at up to 32 x 32; the card beside each file says from which images.

    Raises:
        ValueError: if there is no basis of that name.
    """
    path = BASES / f"{name}.safetensors"
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in BASES.glob("*.safetensors")))
        raise ValueError(
            f"no principal components of {name!r} ship with locality; there are {names}"
        )
    return PCA.load(path)


def single_frequency_share(pca: PCA, k: int) -> Tensor:
    """How nearly each of the ``k`` leading components is a wave of one spatial frequency, (k,).

    A component's power over the cosines of the DCT-II, the Fourier basis of a patch that does not
    repeat beyond its border, is counted in the ring |f - f0| <= 1/2 that holds the most of it, f
    in half cycles per image side. A ring and not a single cosine, because an isotropic set gives
    all directions of a frequency the same variance, and PCA may return any mixture of them.

    Returns:
        shares between 0 and 1, 1 for a wave of one frequency; channels are summed.

    Raises:
        ValueError: if images are not square, or the basis has fewer than ``k`` eigenvectors.
    """
    available = pca.eigenvectors.shape[1]
    if not 1 <= k <= available:
        raise ValueError(f"k must lie between 1 and {available}, got {k}")
    power, frequency = _cosine_power(pca.truncate(k)).sum(1), _frequencies(pca)
    centres = torch.arange(0, frequency.max().item() + 0.25, 0.25, dtype=frequency.dtype)
    rings = (frequency - centres[:, None, None]).abs() <= 0.5  # (rings, H, W)
    return torch.einsum("khw,rhw->kr", power, rings.to(power)).amax(1).float()


def radial_power(pca: PCA) -> tuple[Tensor, Tensor]:
    """Mean variance of the data along the cosines of each radial frequency.

    Returns:
        frequencies (H,), 0 to H - 1 in half cycles per image side, and the variance a cosine,
        (H,), in squared image units: the mean over the cosines whose frequency rounds to it and
        over channels. About frequency^-2 for photographs (Field 1987).

    Raises:
        ValueError: if images are not square.
    """
    leading, rest = pca._split(pca.eigenvalues.cpu().double())
    power = (torch.einsum("k,kchw->chw", leading, _cosine_power(pca)) + rest).mean(0)  # (H, W)
    ring = _frequencies(pca).round()
    frequencies = torch.arange(pca.shape[1])
    return frequencies, torch.stack([power[ring == f].mean() for f in frequencies]).float()


def _cosine_power(pca: PCA) -> Tensor:
    """Squared DCT-II coefficients of every component, (k, C, H, W) float64, on the CPU."""
    waves = pca.eigenvectors.T.reshape(-1, *pca.shape).cpu().double().numpy()
    return torch.from_numpy(scipy.fft.dctn(waves, axes=(2, 3), norm="ortho")).square()


def _frequencies(pca: PCA) -> Tensor:
    """Radial frequency of each cosine, (H, W) float64, in half cycles per image side."""
    _, height, width = pca.shape
    if height != width:
        raise ValueError(f"radial frequencies need square images, got {height} x {width}")
    places = torch.arange(height, dtype=torch.float64)
    return torch.hypot(places[:, None], places)
