"""One data set over several processes: each holds a share, and the answers are exact.

Started by `torchrun`, every process builds a denoiser of its own share of the images. For each
query the processes exchange their streaming-softmax states, three tensors of the size of an image
batch whatever the number of images, and merge them. The result is that of one process with all the
images, so a data set may be larger than one machine's memory. All processes must ask for the same
queries in the same order; each gets the whole answer.
"""

from functools import reduce
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from .denoisers.streaming import SoftmaxState
from .stats import PCA, Moments


class Mergeable(Protocol):
    """A denoiser that tells its softmax state: `OptimalDenoiser`, `LocalDenoiser`."""

    def state(self, x: Tensor, sigma: float) -> SoftmaxState:
        """The softmax over this process's images for the queries ``x``."""
        ...


class Sharded:
    """The denoiser of all processes' images together: ``denoiser(x, sigma) -> x0_hat``.

    Args:
        denoiser: of this process's share of the images. Local denoisers should be given one
            ``centre`` in all processes, say the mean of `fit_pca`.
    """

    def __init__(self, denoiser: Mergeable):
        self.denoiser = denoiser

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Posterior mean over all processes' images, shaped as ``x``; the same in each."""
        state = self.denoiser.state(x, sigma)
        parts = [_gather(part) for part in (state.peak, state.total, state.weighted)]
        states = [SoftmaxState(*shares) for shares in zip(*parts, strict=True)]
        return reduce(SoftmaxState.merge, states).mean().to(x.dtype).view_as(x)


def share(images: Tensor) -> Tensor:
    """This process's share of ``images`` (N, C, H, W): every world-size-th, from its rank on.

    Raises:
        ValueError: if there are fewer images than processes.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    if len(images) < world:
        raise ValueError(f"{len(images)} images cannot be shared among {world} processes")
    return images[rank::world].clone()  # a view would keep all the images in memory


def fit_pca(images: Tensor) -> PCA:
    """Principal components of all processes' images, from each one's share (n, C, H, W)."""
    own = Moments.of(images)
    counts = _gather(torch.tensor(own.count))
    means, scatters = _gather(own.mean), _gather(own.scatter)
    shares = zip(counts, means, scatters, strict=True)
    moments = [Moments(int(n), mean, scatter, own.shape) for n, mean, scatter in shares]
    return PCA.from_moments(reduce(Moments.merge, moments))


def _gather(values: Tensor) -> list[Tensor]:
    """``values`` of every process, in the order of their ranks."""
    # nccl carries tensors of the GPU only, and the moments are on the CPU.
    carried = values.cuda() if dist.get_backend() == "nccl" else values
    parts = [torch.empty_like(carried) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, carried.contiguous())
    return [part.to(values.device) for part in parts]
