"""Training: `train(...)` is a generator of steps, so a notebook can plot, stop and resume it.

The loss is denoising score matching: x = x0 + sigma * noise, and the squared error of the
denoiser's x0_hat times `NetworkDenoiser.loss_weight(sigma)`. Everything random in step t (which
images, which noise, dropout) is drawn from a generator seeded with (seed, t) alone. So the step
number *is* the sampler's state: a run that is killed and resumed repeats exactly what it would have
done, and each of several processes can take its share of the same global batch.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .denoisers.base import Denoiser, precise_dtype
from .networks import NetworkDenoiser

BANDS = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, math.inf)  # edges of the sigma bands of `Step.bands`
FORMAT = "locality-training-1"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, read, or used for this run."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train: with the network's first weights and the images, all the result depends on.

    Attributes:
        steps: optimiser steps (AdamW without weight decay, unless `sgd`).
        batch: images per step, over all processes.
        lr: the learning rate; rises linearly over the first `warmup` steps, then stays, then falls
            linearly to zero over the last `decay` share of the steps.
        ema: decay per step of the averaged weights.
        clip: the largest gradient norm; longer gradients are shortened to it.
        log_sigma_mean, log_sigma_std: ln(sigma) is normal, stratified within the batch. The default
            puts 95 % of the noise levels between 0.026 and 21 and reaches all of 0.01 ... 80.
        flip: mirror half of the images, for data that allow it.
        antithetic: use each drawn image twice in its batch, with opposite noise. The gradient of a
            linear denoiser is then free of its largest random part, the products of image and
            noise; half as many images are seen.
        bf16: run the network in bfloat16 autocast; weights and optimiser stay in float32.
        sgd: gradient descent with a momentum of 0.9 in place of AdamW. For one matrix at one noise
            level, a convex problem, it is far ahead.
        calm: the share of the learning rate that the `directions` of a linear denoiser take.
        seed: of the order of the images, the noise levels, the noise and dropout.
    """

    steps: int
    batch: int = 64
    lr: float = 1.5e-3
    warmup: int = 200
    decay: float = 0.4
    ema: float = 0.998
    clip: float = 1.0
    log_sigma_mean: float = -0.3
    log_sigma_std: float = 1.7
    flip: bool = False
    antithetic: bool = False
    bf16: bool = False
    sgd: bool = False
    calm: float = 1.0
    seed: int = 0

    def __post_init__(self):
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.antithetic and self.batch % 2:
            raise ValueError(f"antithetic noise needs an even batch, got {self.batch}")

    def lr_at(self, step: int) -> float:
        """The learning rate of step `step` = 0, 1, ..., steps - 1."""
        rise = (step + 1) / max(self.warmup, 1)
        fall = (self.steps - step) / max(self.decay * self.steps, 1)
        return self.lr * min(rise, fall, 1.0)


@dataclass(frozen=True)
class Step:
    """What one training step reports.

    Attributes:
        step: counts from 1.
        loss: weighted squared error per pixel, mean over the global batch; about 1 at the start,
            somewhat more where the pixels' mean is not 0.
        bands: the same by noise level (edges `BANDS`); NaN where the batch had none.
        images_per_second: of this step, over all processes.
        averaged: the denoiser with the averaged weights, always the same object: the one to keep.
    """

    step: int
    loss: float
    bands: tuple[float, ...]
    images_per_second: float
    averaged: NetworkDenoiser


def train(
    denoiser: NetworkDenoiser,
    images: Tensor,
    *,
    config: TrainConfig,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 200,
) -> Iterator[Step]:
    """Train `denoiser` in place on `images` (N, C, H, W) in [-1, 1]; yields a `Step` per step.

    Runs on the denoiser's device. With a `checkpoint` path the state is written there every
    `checkpoint_every` steps and at the end, atomically; if the file exists, the run continues from
    it. Under `torchrun` (an initialised process group) every process calls this with the same
    arguments, and the result is that of one process, to rounding, where the network has no dropout
    (of which every process draws its own).

    Raises:
        ValueError: if the batch doesn't fit the data or the number of processes.
        CheckpointError: if the checkpoint is damaged, belongs to another run, or cannot be written.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if config.batch > len(images):
        raise ValueError(f"batch={config.batch} is more than the {len(images)} images")
    if config.batch % world:
        raise ValueError(f"batch={config.batch} must be divisible by {world} processes")
    network, device = denoiser.network, next(denoiser.parameters()).device
    parameters = list(network.parameters())
    seconds = 0.0
    optimizer = _optimizer(network, config)
    averaged = deepcopy(denoiser).eval().requires_grad_(False)
    averages = list(averaged.network.parameters())
    start = 0
    if checkpoint is not None:
        path = Path(checkpoint)
        run = {"config": asdict(config), "images": digest(images)}
        if path.exists():
            start, seconds = _resume(path, run, network, averaged.network, optimizer)
        elif rank == 0:
            _save(path, run | {"step": 0, "seconds": 0.0}, network, averaged.network, optimizer)
    forward = nn.parallel.DistributedDataParallel(denoiser) if world > 1 else denoiser
    denoiser.train()
    for step in range(start, config.steps):
        began = time.perf_counter()
        mine = slice(rank, None, world)
        x0, sigma, noise = (t[mine].to(device) for t in draw(images, step, config=config))
        for group in optimizer.param_groups:
            group["lr"] = config.lr_at(step) * group["share"]
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(_seed(config.seed + 1 + rank, step))  # for dropout
            with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
                x0_hat = forward(x0 + sigma[:, None, None, None] * noise, sigma)
            losses = (x0_hat - x0).square().mean((1, 2, 3)) * denoiser.loss_weight(sigma)
            optimizer.zero_grad()
            losses.mean().backward()
        nn.utils.clip_grad_norm_(parameters, config.clip)
        optimizer.step()
        decay = min(config.ema, (1 + step) / (10 + step))  # forget the first weights quickly
        with torch.no_grad():
            torch._foreach_lerp_(averages, parameters, 1 - decay)
        losses, sigma = _gather(losses.detach(), world), _gather(sigma, world)
        loss = losses.mean().item()  # waits for the device, so that the time is the step's
        done = step + 1
        elapsed = time.perf_counter() - began
        seconds += elapsed
        if (
            checkpoint is not None
            and rank == 0
            and (done % checkpoint_every == 0 or done == config.steps)
        ):
            progress = {"step": done, "seconds": seconds}
            _save(path, run | progress, network, averaged.network, optimizer)
        yield Step(
            step=done,
            loss=loss,
            bands=_by_band(losses, sigma),
            images_per_second=config.batch / elapsed,
            averaged=averaged,
        )


def draw(images: Tensor, step: int, *, config: TrainConfig) -> tuple[Tensor, Tensor, Tensor]:
    """The global batch of a step: x0 (B, C, H, W), sigma (B,) and noise (B, C, H, W), on the CPU.

    Every image appears once per epoch, in an order of its own; an incomplete last batch is left
    out. The same step of the same run always draws the same.
    """
    epoch, position = divmod(step, len(images) // config.batch)
    order = torch.randperm(len(images), generator=_rng(config.seed, -1 - epoch))
    chosen = order[position * config.batch : (position + 1) * config.batch]
    x0 = images[chosen.to(images.device)].cpu()
    rng, count = _rng(config.seed, step), len(x0)
    # One uniform number per stratum: every batch covers all noise levels, which steadies the loss.
    uniform = (torch.randperm(count, generator=rng) + torch.rand(count, generator=rng)) / count
    z = math.sqrt(2) * torch.erfinv((2 * uniform - 1).clamp(-0.9999, 0.9999))
    sigma = (config.log_sigma_mean + config.log_sigma_std * z).exp()
    if config.flip:
        mirrored = torch.rand(count, generator=rng) < 0.5
        x0 = torch.where(mirrored[:, None, None, None], x0.flip(3), x0)
    noise = torch.randn(x0.shape, generator=rng)
    if config.antithetic:
        half = count // 2
        x0, sigma = (torch.cat([t[:half], t[:half]]) for t in (x0, sigma))
        noise = torch.cat([noise[:half], -noise[:half]])
    return x0, sigma, noise


@torch.no_grad()
def held_out_loss(
    denoiser: Denoiser, images: Tensor, sigmas: Sequence[float], *, seed: int = 0, chunk: int = 250
) -> list[float]:
    """Mean squared error per pixel of ``denoiser`` on noised ``images`` (N, C, H, W), per sigma.

    The noise depends on the seed and the noise level's place in ``sigmas`` only: every denoiser
    sees the same noisy images, whatever the chunk.
    """
    losses = []
    for index, sigma in enumerate(sigmas):
        noise = torch.randn(images.shape, generator=_rng(seed, index)).to(images.device)
        total = 0.0
        for x0, z in zip(images.split(chunk), noise.split(chunk)):
            x0_hat = denoiser(x0 + sigma * z, sigma)
            total += (x0_hat - x0).square().sum(dtype=precise_dtype(x0.device)).item()
        losses.append(total / images.numel())
    return losses


def digest(images: Tensor) -> str:
    """SHA-256 of the images' shape and float32 values: the data's checksum in checkpoints."""
    sha = hashlib.sha256(repr(tuple(images.shape)).encode())
    for chunk in images.split(4096):
        sha.update(chunk.contiguous().cpu().numpy().tobytes())
    return sha.hexdigest()


def _seed(seed: int, step: int) -> int:
    """One of 2^32 streams, far apart for different seeds: the generator ignores higher bits."""
    return (step + 0x9E3779B1 * seed) % 2**32


def _rng(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(_seed(seed, step))


def _gather(values: Tensor, world: int) -> Tensor:
    if world == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(world)]
    dist.all_gather(parts, values)
    return torch.stack(parts, dim=1).flatten()


def _by_band(losses: Tensor, sigma: Tensor) -> tuple[float, ...]:
    bands = pairwise(BANDS)
    return tuple(losses[(sigma >= low) & (sigma < high)].mean().item() for low, high in bands)


def _optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    calm, others = [], []
    for name, parameter in network.named_parameters():
        (calm if name == "directions" else others).append(parameter)
    groups = [{"params": calm, "share": config.calm}, {"params": others, "share": 1.0}]
    groups = [group for group in groups if group["params"]]
    if config.sgd:
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9)
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.99), weight_decay=0.0)


# --- checkpoints: one safetensors file, its header holds the run's description as JSON ----------


def _kept(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """What the optimiser remembers of every parameter, beside AdamW's count of steps."""
    return ("momentum_buffer",) if "momentum" in optimizer.defaults else ("exp_avg", "exp_avg_sq")


def _tensors(network: nn.Module, averaged: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    tensors = {f"network.{k}": v for k, v in network.state_dict().items()}
    tensors |= {f"averaged.{k}": v for k, v in averaged.state_dict().items()}
    for name, parameter in network.named_parameters():
        state = optimizer.state[parameter]
        for key in _kept(optimizer):
            tensors[f"{key}.{name}"] = state.get(key, torch.zeros_like(parameter))
    return {k: v.detach().cpu().contiguous() for k, v in tensors.items()}


def _checksum(tensors: dict[str, Tensor]) -> str:
    sha = hashlib.sha256()
    for name in sorted(tensors):
        sha.update(name.encode())
        sha.update(tensors[name].numpy().tobytes())
    return sha.hexdigest()


def _save(path: Path, run: dict, *modules) -> None:
    tensors = _tensors(*modules)
    header = {"format": FORMAT, "sha256": _checksum(tensors), **run}
    write_atomically(path, lambda part: save_file(tensors, part, {"locality": json.dumps(header)}))


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write(part)` with a temporary path beside `path`, then put the file in place at once.

    Whatever happens, `path` holds either its old content or all of the new one.

    Raises:
        CheckpointError: if the file cannot be written; the message says why.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(part)
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot write {path}: {error}; the file of that name, if any, is unchanged"
        ) from error


def load_checkpoint(path: str | Path, denoiser: NetworkDenoiser) -> dict:
    """Give ``denoiser`` the averaged weights of a checkpoint of `train`; returns what it tells.

    That is "step", "seconds" (training time so far), "config" and "images" (the data's checksum).

    Raises:
        CheckpointError: if the file is damaged, no checkpoint, or of another network.
    """
    header, tensors = _read(Path(path))
    _check_shapes(path, _starting(tensors, "averaged."), denoiser.network.state_dict())
    denoiser.network.load_state_dict(_starting(tensors, "averaged."))
    return {key: header[key] for key in ("step", "seconds", "config", "images")}


def _read(path: Path) -> tuple[dict, dict[str, Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get("locality", "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged or no checkpoint: {error}; expected a safetensors file"
        ) from error
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is no checkpoint of this trainer: its format is {header.get('format')!r}, "
            f"expected {FORMAT!r}"
        )
    if header["sha256"] != _checksum(tensors):
        raise CheckpointError(f"{path} is damaged: its tensors do not match their checksum")
    return header, tensors


def _check_shapes(path: Path, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    sizes = [{k: tuple(v.shape) for k, v in tensors.items()} for tensors in (found, expected)]
    for name in sorted(sizes[0].keys() | sizes[1].keys()):
        there, here = (size.get(name) for size in sizes)
        if there != here:
            raise CheckpointError(
                f"{path} belongs to another network: {name} has shape {there}, expected {here}"
            )


def _starting(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _resume(
    path: Path, run: dict, network: nn.Module, averaged: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, float]:
    """Put the state of a checkpoint of this very run in place; returns its step and seconds."""
    header, tensors = _read(path)
    if header["images"] != run["images"]:
        raise CheckpointError(f"{path} belongs to a run on other images; choose another path")
    for key, here in run["config"].items():
        there = header["config"].get(key)
        if there != here:
            raise CheckpointError(
                f"{path} belongs to a run with {key}={there}, this one has {key}={here}; "
                "choose another path"
            )
    _check_shapes(path, tensors, _tensors(network, averaged, optimizer))
    network.load_state_dict(_starting(tensors, "network."))
    averaged.load_state_dict(_starting(tensors, "averaged."))
    if header["step"] > 0:
        for name, parameter in network.named_parameters():
            state = {k: tensors[f"{k}.{name}"].to(parameter.device) for k in _kept(optimizer)}
            optimizer.state[parameter] = {"step": torch.tensor(float(header["step"])), **state}
    return header["step"], header["seconds"]
