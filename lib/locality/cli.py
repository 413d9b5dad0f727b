"""The command line: `python -m locality data|train|sample|score`, a thin door to the library."""

import argparse
import os
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from PIL import Image
from tqdm import tqdm

from . import data, scoreboard, zoo
from .denoisers import Denoiser, LocalDenoiser, OptimalDenoiser, WienerDenoiser, masks
from .distributed import Sharded, fit_pca, share
from .networks import NetworkDenoiser, architecture
from .sampling import ddim, initial_noise
from .schedule import ddpm_sigmas
from .stats import PCA
from .training import CheckpointError, TrainConfig, digest, load_checkpoint, train

METHODS = ("optimal", "wiener", "local")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status, with the error on standard error."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError, CheckpointError) as error:
        print(f"locality {options.command}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m locality", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(run, summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(run.__name__.removeprefix("run_"), help=summary)
        added.set_defaults(run=run)
        return added

    def add_data(added: argparse.ArgumentParser) -> None:
        added.add_argument("--images", type=int, help="only the first IMAGES images")
        added.add_argument("--size", type=int, help="resize to SIZE x SIZE pixels")
        added.add_argument("--gray", action="store_true", help="turn RGB into grey")

    added = command(run_data, "fetch and describe a data set")
    added.add_argument("data", metavar="DATA", help=f"one of {', '.join(data.NAMES)}")
    added.add_argument("--split", default="train")
    add_data(added)

    added = command(run_train, "train a network; run again to resume; under torchrun: in parallel")
    added.add_argument("name", help="the network is saved as FOLDER/NAME")
    added.add_argument("--data", default="fashion-mnist")
    add_data(added)
    added.add_argument("--network", default="unet", choices=("unet", "dit", "linear"))
    added.add_argument("--network-size", default="laptop", choices=("laptop", "paper"))
    added.add_argument("--parametrisation", default="edm", choices=("edm", "eps"))
    added.add_argument("--steps", type=int, default=5000)
    added.add_argument("--batch", type=int, default=64)
    added.add_argument("--lr", type=float, default=TrainConfig.lr)
    added.add_argument("--warmup", type=int, default=TrainConfig.warmup)
    added.add_argument("--flip", action="store_true", help="mirror half of the images")
    added.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    added.add_argument("--seed", type=int, default=0)
    added.add_argument("--device", type=_device, default="cpu", help="cpu, cuda or mps")
    added.add_argument("--folder", type=Path, default=Path("runs"))

    added = command(run_sample, "sample into a picture; under torchrun: images shared out")
    added.add_argument("name", help=f"{', '.join(METHODS)}, or a network of the zoo or of FOLDER")
    added.add_argument("picture", type=Path, help="the PNG file to write")
    added.add_argument("--data", default="fashion-mnist", help="the training images of a method")
    add_data(added)
    added.add_argument("--threshold", type=float, default=0.02, help="of local's masks")
    added.add_argument("--samples", type=int, default=8)
    added.add_argument("--steps", type=int, default=10)
    added.add_argument("--seed", type=int, default=42)
    added.add_argument("--device", type=_device, default="cpu")
    added.add_argument("--folder", type=Path, default=zoo.ZOO)

    added = command(run_score, "compare methods with a network, from the same noise; resumable")
    added.add_argument("data", metavar="DATA", help="what the network was trained on")
    added.add_argument("--network", help="of the zoo, or of FOLDER (default: unet/DATA)")
    added.add_argument("--methods", nargs="+", metavar="METHOD", help="by default all there are")
    added.add_argument("--images", type=int, help="methods hold only the first IMAGES of its set")
    added.add_argument("--seeds", type=int, default=128)
    added.add_argument("--queries", type=int, default=16, help="for the curves over sigma")
    added.add_argument("--steps", type=int, default=10, help="of DDIM (default: the paper's 10)")
    added.add_argument("--device", type=_device, default="cpu")
    added.add_argument("--folder", type=Path, default=zoo.ZOO)
    added.add_argument(
        "--output", type=Path, help="default: scoreboard-DATA.json in experiments/results"
    )
    return parser


def _device(name: str) -> str:
    """``name``, if tensors can be made there."""
    rank = os.environ.get("LOCAL_RANK")  # under torchrun: this process's GPU, not the first one
    try:
        torch.empty(0, device=f"cuda:{rank}" if name == "cuda" and rank else name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"no device {name!r} here: {reason}") from error
    return name


def run_data(options: argparse.Namespace) -> None:
    """Fetch a set and say what is in it."""
    images = _load(options, options.split)
    print(f"{images.name} {options.split}: {len(images)} images, (C, H, W) = {images.shape}")
    print(f"mean {images.images.mean():.4f}, deviation {images.images.std():.4f}")
    print(f"sha256 of the pixels {digest(images.images)}")


def run_train(options: argparse.Namespace) -> None:
    """Train a network and save it with its card, beside its checkpoint."""
    with _processes(options.device) as (device, first):
        images = _load(options).images
        about = {
            "name": options.name,
            "shape": tuple(images.shape[1:]),
            "network": architecture(
                options.network, tuple(images.shape[1:]), size=options.network_size
            ),
            "sigma_data": images.std().item(),
            "parametrisation": options.parametrisation,
            "data": {"name": options.data, "images": len(images), "sha256": digest(images)},
        }
        config = TrainConfig(
            steps=options.steps,
            batch=options.batch,
            lr=options.lr,
            warmup=options.warmup,
            flip=options.flip,
            bf16=options.bf16,
            seed=options.seed,
        )
        torch.manual_seed(options.seed)
        denoiser = zoo.build(about).to(device)
        checkpoint = options.folder / f"{options.name}.checkpoint"
        steps = train(denoiser, images, config=config, checkpoint=checkpoint)
        with tqdm(total=config.steps, unit="step", disable=not first) as bar:
            for step in steps:
                bar.update(step.step - bar.n)
                bar.set_postfix(loss=f"{step.loss:.4f}")
        if first:
            about["training"] = load_checkpoint(checkpoint, denoiser)
            zoo.save(options.name, denoiser, about, folder=options.folder)
            print(f"saved {options.folder / options.name}.safetensors")


def run_sample(options: argparse.Namespace) -> None:
    """Sample from a network or an analytical denoiser and write the images side by side."""
    with _processes(options.device) as (device, first):
        if options.name in METHODS:
            images = _load(options).images
            denoiser = _method(options.name, images, options.threshold, device)
            shape = tuple(images.shape[1:])
        else:
            denoiser = zoo.load(options.name, device=device, folder=options.folder)
            if not isinstance(denoiser, NetworkDenoiser):
                raise ValueError(f"{options.name} is a classifier and cannot denoise")
            shape = tuple(zoo.card(options.name, folder=options.folder)["shape"])
        samples = _samples(denoiser, shape, options, device)
        if first:
            pixels = ((samples + 1) * 127.5).round().byte()
            pixels = pixels.permute(2, 0, 3, 1).flatten(1, 2)  # (H, B W, C)
            Image.fromarray(pixels.squeeze(2).cpu().numpy()).save(options.picture)
            print(f"saved {options.picture}")


def run_score(options: argparse.Namespace) -> None:
    """Fill a results file with what it lacks, one method at a time, and print each."""
    output = options.output or Path("experiments/results") / f"scoreboard-{options.data}.json"
    bench = scoreboard.prepare(
        options.network or f"unet/{options.data}",
        images=options.images,
        seeds=options.seeds,
        queries=options.queries,
        steps=options.steps,
        folder=options.folder,
        device=options.device,
    )
    for entry in scoreboard.run(bench, options.methods, output=output):
        r2, copies = entry["r2"], entry["copies"]["share"]
        print(
            f"{entry['settings']['method']:20s} r2 {r2['mean']:.3f} "
            f"({r2['low']:.3f} to {r2['high']:.3f}), copies {copies:.0%}, "
            f"{entry['seconds']:.3g} s a sample",
            flush=True,
        )
    print(f"{output} holds {len(scoreboard.read(output))} results")


def _load(options: argparse.Namespace, split: str = "train") -> data.ImageSet:
    return data.load(options.data, split, n=options.images, size=options.size, gray=options.gray)


def _method(name: str, images: torch.Tensor, threshold: float, device: torch.device) -> Denoiser:
    """A denoiser of METHODS; where there are several processes, each keeps its share of images."""
    sharded = dist.is_initialized()
    images = (share(images) if sharded else images).to(device)
    if name == "optimal":
        denoiser = OptimalDenoiser(images)
    else:
        pca = (fit_pca if sharded else PCA.fit)(images).to(device)
        if name == "wiener":
            return WienerDenoiser(pca)
        denoiser = LocalDenoiser(
            images, lambda sigma: masks.pca(pca, sigma, threshold), centre=pca.mean
        )
    return Sharded(denoiser) if sharded else denoiser


def _samples(
    denoiser: Denoiser,
    shape: tuple[int, int, int],
    options: argparse.Namespace,
    device: torch.device,
) -> torch.Tensor:
    sigmas = ddpm_sigmas(options.steps)
    noise = initial_noise(options.samples, shape, sigma=sigmas[0], seed=options.seed, device=device)
    *_, last = ddim(denoiser, noise, sigmas)
    return last.x0


@contextmanager
def _processes(device: str):
    """(this process's device, whether it is the first), with a process group under torchrun."""
    if "RANK" not in os.environ:
        yield torch.device(device), True
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield torch.device(device), dist.get_rank() == 0
    finally:
        dist.destroy_process_group()
