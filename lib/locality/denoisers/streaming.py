"""The streaming softmax: an average over any number of images in constant memory, exactly.

A softmax-weighted mean needs three numbers a coordinate: the largest logit seen, the sum of the
weights relative to it, and the weighted sum of the values. Two such states merge associatively,
so the mean does not depend on how the images were cut into chunks, in which order they came, or
on which process saw them. (The paper's released code instead averages one softmax per batch,
which does depend on all of these; see chapter 10.)
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# exp(-80) is 1.8e-35: far below float32 resolution beside the largest weight, which is 1, and
# still a normal number. Smaller results would be subnormal, and those are slow on most CPUs.
LOWEST_LOGIT = -80.0


@dataclass(frozen=True)
class SoftmaxState:
    """A partial softmax mean; the three tensors broadcast against each other.

    Attributes:
        peak: the largest logit so far.
        total: sum of exp(logit - peak).
        weighted: sum of exp(logit - peak) * value.
    """

    peak: Tensor
    total: Tensor
    weighted: Tensor

    def merge(self, other: "SoftmaxState") -> "SoftmaxState":
        """The state of both sets of images together."""
        peak = torch.maximum(self.peak, other.peak)
        mine, theirs = (self.peak - peak).exp(), (other.peak - peak).exp()
        return SoftmaxState(
            peak,
            self.total * mine + other.total * theirs,
            self.weighted * mine + other.weighted * theirs,
        )

    def mean(self) -> Tensor:
        """The softmax-weighted mean of the values seen."""
        return self.weighted / self.total


def softmax_weights(logits: Tensor, *, dim: int) -> tuple[Tensor, Tensor]:
    """The peak of ``logits`` along ``dim`` (kept) and exp(logits - peak), never subnormal."""
    peak = logits.detach().amax(dim, keepdim=True)
    return peak, (logits - peak).clamp_(min=LOWEST_LOGIT).exp_()


def accumulate(
    update: Callable[[Tensor, Any], SoftmaxState], x: Tensor, chunks: Iterable[Any]
) -> SoftmaxState:
    """Merge ``update(x, chunk)`` over all chunks, of images or of what else ``update`` takes.

    When ``x`` asks for gradients each chunk is computed again in the backward pass, so that memory
    stays that of one chunk there too. Only ``x`` gets them: whatever else ``update`` takes from
    outside must not depend on it. And only a state's mean has them right, not its parts.
    """
    if x.requires_grad:
        return SoftmaxState(*_Accumulate.apply(x, update, chunks))
    return reduce(SoftmaxState.merge, (update(x, chunk) for chunk in chunks))


class _Accumulate(torch.autograd.Function):
    """The merged state of all chunks. Its graph keeps ``x`` and the peaks, and no chunk's state."""

    @staticmethod
    def forward(ctx, x: Tensor, update: Callable, chunks: Iterable[Any]) -> tuple[Tensor, ...]:
        state = accumulate(update, x.detach(), chunks)
        ctx.update, ctx.chunks = update, chunks
        ctx.save_for_backward(x, state.peak)
        ctx.mark_non_differentiable(state.peak)
        return state.peak, state.total, state.weighted

    @staticmethod
    @once_differentiable
    def backward(ctx, _, for_total: Tensor, for_weighted: Tensor) -> tuple[Tensor, None, None]:
        x, peak = ctx.saved_tensors
        gradient = torch.zeros_like(x)
        for chunk in ctx.chunks:
            with torch.enable_grad():
                part = x.detach().requires_grad_()
                state = ctx.update(part, chunk)
                share = (state.peak - peak).exp()
                merged = (state.total * share * for_total).sum()
                merged = merged + (state.weighted * share * for_weighted).sum()
            gradient += torch.autograd.grad(merged, part)[0]
        return gradient, None, None
