"""Trains the networks of the zoo: `python experiments/train_zoo.py [NAME ...]` (default: all).

In any order, resumable: a run is checkpointed in runs/zoo (ignored by git) and continues from there
when it was stopped; a network that is in the zoo already is skipped. A finished network goes into
the zoo in float16 with its card. Every number of the card is measured here, on images that neither
the networks nor the statistics have seen. `--device cuda` trains on a GPU.

One thread per process is the fastest setting on two shared CPU cores: with two, the convolutions'
backward pass waits in spin locks whenever another program takes a core (see benchmarks/training).
"""

import argparse
import hashlib
import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from locality import zoo
from locality.data import load
from locality.denoisers import OptimalDenoiser, WienerDenoiser
from locality.metrics import r2
from locality.networks import MatrixDenoiser, NetworkDenoiser, architecture, build
from locality.shapes import add_shape, letter_w
from locality.stats import PCA
from locality.training import (
    TrainConfig,
    digest,
    held_out_loss,
    load_checkpoint,
    train,
    write_atomically,
)

RUNS = Path(__file__).resolve().parents[1] / "runs" / "zoo"
SIGMAS = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.724, 1.24, 2.04, 3.0, 3.44, 6.17, 12.0, 25.7, 60.8)
HELD_OUT = 1000


@dataclass(frozen=True)
class Recipe:
    """One network of the zoo.

    Attributes:
        data: arguments of `locality.data.load`; and "shape": "W" to hide a W in the images, "part":
            (start, stop, step) to use these of the training images only.
        network: an `architecture` of `locality.networks`.
        training: how it is trained.
        matrix: for a linear network: how one matrix, for one noise level, is trained first, from
            whose eigenvectors the network then starts.
        refinements: further trainings, one after the other, each of the stored network.
    """

    data: dict
    network: dict
    training: TrainConfig
    refinements: tuple[TrainConfig, ...] = ()
    matrix: TrainConfig | None = None


FASHION = {"name": "fashion-mnist-full"}
FASHION_W = {"name": "fashion-mnist-full", "shape": "W"}
CELEBA = {"name": "celeba", "size": 32}
CIFAR = {"name": "cifar10"}
CIFAR_GRAY = {"name": "cifar10", "gray": True}
CIFAR_GRAY_W = {**CIFAR_GRAY, "shape": "W"}
CATS = {"name": "afhq-cat", "size": 32}
UNET, DIT = architecture("unet", (1, 28, 28)), architecture("dit", (1, 28, 28))
UNET_RGB, DIT_RGB = architecture("unet", (3, 32, 32)), architecture("dit", (3, 32, 32))
LINEAR = architecture("linear", (1, 28, 28))
SHORT = TrainConfig(steps=4000, bf16=True)
# bfloat16 rounds the image away some of the noise of sigma = 0.01, and is slow on a CPU without
# units for it: the later networks were trained in float32, with fewer steps.
EXACT = TrainConfig(steps=1600)
EXACT_FLIP = TrainConfig(steps=3000, flip=True)
# The linear network is to come near a known answer, the Wiener filter, at all noise levels. Trained
# from random directions, with any of a dozen settings, it stayed 6 to 9 % away after 80,000 steps:
# see `locality.networks.linear`. From those of a learned matrix few steps are enough, and they must
# not be large. The matrix is that of a low noise level, at which many directions count.
MATRIX = TrainConfig(
    steps=24_000,
    batch=256,
    lr=2.0,
    decay=0.5,
    ema=0.9995,
    antithetic=True,
    log_sigma_mean=math.log(0.3),
    log_sigma_std=0.0,
    sgd=True,
)
LINEAR_TRAINING = TrainConfig(
    steps=8000,
    batch=256,
    lr=4e-3,
    calm=0.025,
    decay=0.7,
    ema=0.9985,
    antithetic=True,
    log_sigma_mean=-0.2,
    log_sigma_std=2.0,
    seed=1,
)
# The highest noise levels have hardly been asked for until then.
LINEAR_HIGH = replace(
    LINEAR_TRAINING, steps=4000, lr=1e-3, log_sigma_mean=1.5, log_sigma_std=2.2, seed=2
)
# In colour the first training sees little of sigma = 0.01, and may end behind Wiener there.
LOW_NOISE = TrainConfig(
    steps=800,
    lr=1e-3,
    warmup=50,
    decay=0.8,
    ema=0.99,
    log_sigma_mean=-2.5,
    log_sigma_std=2.2,
    flip=True,
    seed=1,
)
# After it the highest noise levels are the worst ones.
HIGH_NOISE = replace(LOW_NOISE, lr=5e-4, log_sigma_mean=1.5, log_sigma_std=2.2, seed=2)
RECIPES = {
    "unet/fashion-mnist": Recipe(FASHION, UNET, SHORT),
    "linear/fashion-mnist": Recipe(FASHION, LINEAR, LINEAR_TRAINING, (LINEAR_HIGH,), matrix=MATRIX),
    "dit/fashion-mnist": Recipe(FASHION, DIT, SHORT),
    "unet/celeba": Recipe(
        CELEBA,
        UNET_RGB,
        TrainConfig(steps=3000, bf16=True, flip=True),
        (LOW_NOISE, HIGH_NOISE),
    ),
    "unet/fashion-mnist-w": Recipe(FASHION_W, UNET, EXACT),
    "dit/fashion-mnist-w": Recipe(FASHION_W, DIT, EXACT),
    "unet/cifar10-gray": Recipe(CIFAR_GRAY, UNET, EXACT_FLIP),
    "dit/cifar10-gray": Recipe(CIFAR_GRAY, DIT, replace(EXACT_FLIP, steps=2400)),
    "unet/mnist": Recipe({"name": "mnist"}, UNET, EXACT),
    "unet/afhq-cat": Recipe(CATS, UNET_RGB, EXACT_FLIP),
    "unet/cifar10": Recipe(CIFAR, UNET_RGB, EXACT_FLIP, (LOW_NOISE, HIGH_NOISE)),
    "unet/cifar10-gray-w": Recipe(
        CIFAR_GRAY_W,
        UNET,
        replace(EXACT, flip=True),
        (
            replace(HIGH_NOISE, log_sigma_std=1.5),
            replace(LOW_NOISE, steps=400, lr=5e-4, log_sigma_std=2.6, seed=3),
            replace(HIGH_NOISE, steps=300, lr=3e-4, log_sigma_mean=1.0, log_sigma_std=1.8, seed=4),
        ),
    ),
    "dit/celeba": Recipe(
        CELEBA, DIT_RGB, replace(EXACT_FLIP, steps=2400), (replace(LOW_NOISE, steps=300, lr=5e-4),)
    ),
    "linear/celeba": Recipe(
        CELEBA,
        architecture("linear", (3, 32, 32)),
        replace(LINEAR_TRAINING, steps=3000, flip=True),
        (replace(LINEAR_HIGH, steps=1000, flip=True),),
        matrix=replace(MATRIX, steps=1000, ema=0.995, flip=True),
    ),
    "linear/cifar10-gray": Recipe(
        CIFAR_GRAY,
        architecture("linear", (1, 32, 32)),
        replace(LINEAR_TRAINING, steps=5000, flip=True),
        (replace(LINEAR_HIGH, steps=2000, flip=True),),
        matrix=replace(MATRIX, steps=12_000, flip=True),
    ),
    "unet/fashion-mnist-even": Recipe({**FASHION, "part": (0, None, 2)}, UNET, EXACT),
    "unet/fashion-mnist-odd": Recipe({**FASHION, "part": (1, None, 2)}, UNET, EXACT),
}
# Data and epochs. CIFAR-10's objects are harder than digits and clothes, and its images fewer.
CLASSIFIERS = {
    "classifier/fashion-mnist": (FASHION, 5),
    "classifier/mnist": ({"name": "mnist"}, 5),
    "classifier/cifar10-gray": (CIFAR_GRAY, 15),
    "classifier/cifar10": (CIFAR, 15),
}


def images_of(data: dict, split: str, *, n: int | None = None) -> Tensor:
    """The images a recipe's "data" describes, (N, C, H, W)."""
    options = dict(data)
    shape, part = options.pop("shape", None), options.pop("part", None)
    images = load(**options, split=split, n=n).images
    if part and split == "train":
        images = images[slice(*part)]
    if shape:
        images = add_shape(images, letter_w(*images.shape[2:]), seed=0 if split == "train" else 1)
    return images


def baselines(data: dict, images: Tensor, held_out: Tensor) -> dict[str, list[float]]:
    """Held-out losses of the Wiener filter and the optimal denoiser, kept for the next network."""
    key = hashlib.sha256(json.dumps([data, SIGMAS, digest(held_out)]).encode()).hexdigest()[:16]
    path = RUNS / f"baselines-{key}.json"
    if not path.exists():
        # The optimal denoiser wants images in [-1, 1], which a hidden shape may leave; scaling the
        # images, the query and sigma by one factor scales its answer by the same factor.
        scale = max(images.abs().max().item(), 1.0)
        optimal = OptimalDenoiser(images / scale)
        denoisers = {
            "wiener": WienerDenoiser(PCA.fit(images)),
            "optimal": lambda x, sigma: scale * optimal(x / scale, sigma / scale),
        }
        losses = {name: held_out_loss(d, held_out, SIGMAS) for name, d in denoisers.items()}
        write_atomically(path, lambda part: part.write_text(json.dumps(losses)))
    return json.loads(path.read_text())


def half_precision_cost(denoiser: NetworkDenoiser, stored: NetworkDenoiser, x0: Tensor) -> float:
    """The largest 1 - r2 between the stored and the trained network over SIGMAS."""
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    costs = []
    for sigma in SIGMAS:
        x = x0 + sigma * noise
        costs.append(1 - r2(stored(x, sigma), denoiser(x, sigma)).mean().item())
    return max(costs)


@torch.no_grad()
def add_to_zoo(
    name: str, denoiser: NetworkDenoiser, images: Tensor, seconds: float, *, refined: int
) -> dict:
    """Store a trained network with its card; returns the card."""
    recipe = RECIPES[name]
    refinements = recipe.refinements[:refined]
    trainings = [c for c in (recipe.matrix, recipe.training, *refinements) if c]
    held_out = images_of(recipe.data, "test")[:HELD_OUT]
    about = {
        "name": name,
        "network": recipe.network,
        "shape": tuple(images.shape[1:]),
        "parameters": sum(p.numel() for p in denoiser.parameters()),
        "sigma_data": denoiser.sigma_data,
        "parametrisation": denoiser.parametrisation,
        "data": {**recipe.data, "images": len(images), "sha256": digest(images)},
        "training": asdict(recipe.training),
        "refinements": [asdict(refinement) for refinement in refinements],
        **({"matrix": asdict(recipe.matrix)} if recipe.matrix else {}),
        "images_seen": sum(c.steps * c.batch for c in trainings),
        "optimiser": "AdamW(betas=(0.9, 0.99), weight_decay=0)",
        "minutes": round(seconds / 60, 1),
        "held_out": {
            "images": len(held_out),
            "sigma": SIGMAS,
            "network": held_out_loss(denoiser, held_out, SIGMAS),
            **baselines(recipe.data, images, held_out),
        },
    }
    zoo.save(name, denoiser, about)
    stored = zoo.load(name)
    about["half_precision_cost"] = half_precision_cost(denoiser.cpu(), stored, held_out[:64])
    zoo.save(name, denoiser, about)
    return about


def run(
    name: str, denoiser: NetworkDenoiser, images: Tensor, config: TrainConfig, *, suffix: str = ""
) -> float:
    """Train, from the checkpoint of the same name if there is one; leaves the averaged weights in
    the denoiser, on the CPU, and returns the seconds that it took in all."""
    path = RUNS / f"{name.replace('/', '-')}{suffix}.safetensors"
    smooth, began = None, time.time()
    for step in train(denoiser, images, config=config, checkpoint=path):
        smooth = step.loss if smooth is None else 0.98 * smooth + 0.02 * step.loss
        if step.step % 100 == 0:
            print(
                f"{name}{suffix} {step.step}/{config.steps}: loss {smooth:.4f}, "
                f"{step.images_per_second:.0f} images/s, {time.time() - began:.0f} s",
                flush=True,
            )
    return load_checkpoint(path, denoiser.cpu().eval())["seconds"]


def train_denoiser(name: str, device: str, *, refined: int) -> None:
    """Train one network of RECIPES, from its checkpoint if there is one, and add it to the zoo.

    Its first training, or the refinement of number ``refined`` = 1, 2, ...
    """
    recipe = RECIPES[name]
    images = images_of(recipe.data, "train")
    options = {"sigma_data": images.std().item()}
    if refined:
        denoiser, config = zoo.load(name).requires_grad_(True), recipe.refinements[refined - 1]
        before = zoo.card(name)["minutes"] * 60
    else:
        with torch.random.fork_rng([]):
            torch.manual_seed(recipe.training.seed)
            network = build(recipe.network)
        denoiser, config, before = NetworkDenoiser(network, **options), recipe.training, 0.0
        if recipe.matrix:
            first = NetworkDenoiser(MatrixDenoiser(images.shape[1:]), **options).to(device)
            before = run(name, first, images, recipe.matrix, suffix="-matrix")
            network.start_from(first.network)
    suffix = f"-refined-{refined}" if refined else ""
    seconds = before + run(name, denoiser.to(device), images, config, suffix=suffix)
    about = add_to_zoo(name, denoiser, images, seconds, refined=refined)
    for sigma, *losses in zip(*(about["held_out"][k] for k in ("sigma", "network", "wiener"))):
        print(f"  sigma {sigma:6.3f}: network {losses[0]:.5f}, Wiener {losses[1]:.5f}")


def train_classifier(name: str, device: str) -> None:
    """Train one of CLASSIFIERS and add it to the zoo."""
    data, epochs = CLASSIFIERS[name]
    config = {"epochs": epochs, "batch": 128, "lr": 2e-3, "seed": 0}
    train_set, test_set = load(**data), load(**data, split="test")
    torch.manual_seed(config["seed"])
    model = build(architecture("classifier", train_set.shape)).to(device)
    steps = config["epochs"] * (len(train_set) // config["batch"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=config["lr"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config["lr"], total_steps=steps)
    for epoch in range(config["epochs"]):
        order = torch.randperm(len(train_set)).split(config["batch"])
        for chosen in order[: steps // config["epochs"]]:
            logits = model(train_set.images[chosen].to(device))
            loss = F.cross_entropy(logits, train_set.labels[chosen].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"{name} epoch {epoch + 1}/{config['epochs']}: loss {loss:.3f}", flush=True)
    about = {
        "name": name,
        "network": architecture("classifier", train_set.shape),
        "shape": train_set.shape,
        "data": {**data, "images": len(train_set), "sha256": digest(train_set.images)},
        "training": config,
    }
    zoo.save(name, model, about)
    stored = zoo.load(name)
    hits = [
        (stored(images).argmax(1) == labels).float()
        for images, labels in zip(test_set.images.split(500), test_set.labels.split(500))
    ]
    about["test_accuracy"] = torch.cat(hits).mean().item()
    zoo.save(name, model, about)
    print(f"{name}: test accuracy {about['test_accuracy']:.3f}")


def main() -> None:
    """Train the networks named on the command line, skipping those the zoo holds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    everything = [*CLASSIFIERS, *RECIPES]
    parser.add_argument("names", nargs="*", metavar="NAME", default=everything)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(everything)
    if unknown:
        parser.error(f"unknown names {sorted(unknown)}, expected some of {', '.join(everything)}")
    torch.set_num_threads(arguments.threads)
    for name in arguments.names:
        if name in CLASSIFIERS:
            if name not in zoo.names():
                train_classifier(name, arguments.device)
            continue
        if name not in zoo.names():
            train_denoiser(name, arguments.device, refined=0)
        done = len(zoo.card(name).get("refinements", ()))
        for refined in range(done + 1, len(RECIPES[name].refinements) + 1):
            train_denoiser(name, arguments.device, refined=refined)
        print(f"{name} is in the zoo")


if __name__ == "__main__":
    main()
