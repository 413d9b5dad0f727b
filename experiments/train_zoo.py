"""Trains the networks of the zoo: `python experiments/train_zoo.py NAME ...` (default: all).

Each run is checkpointed in runs/zoo (ignored by git) and continues from there when it was stopped.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from locality.data import load
from locality.networks import NetworkDenoiser, UNet
from locality.training import TrainConfig, train

RUNS = Path(__file__).parents[1] / "runs" / "zoo"


@dataclass(frozen=True)
class Recipe:
    """One network of the zoo: its data, its architecture and how it is trained."""

    data: dict
    network: dict
    training: TrainConfig


FASHION = {"name": "fashion-mnist-full"}
UNET = {"kind": "unet", "channels": (16, 32, 64), "blocks": 1, "groups": 8}
RECIPES = {
    "unet/fashion-mnist": Recipe(FASHION, UNET, TrainConfig(steps=5000, bf16=True)),
}


def build(network: dict, images: torch.Tensor, *, seed: int) -> NetworkDenoiser:
    """The untrained denoiser of a recipe; the seed fixes its first weights."""
    options = dict(network)
    options.pop("kind")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        raw = UNet(images.shape[1], **options)
    return NetworkDenoiser(raw, sigma_data=images.std().item())


def main() -> None:
    """Train the networks named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(RECIPES))
    for name in parser.parse_args().names:
        recipe = RECIPES[name]
        images = load(**recipe.data).images
        denoiser = build(recipe.network, images, seed=recipe.training.seed)
        path = RUNS / f"{name.replace('/', '-')}.safetensors"
        count = sum(p.numel() for p in denoiser.parameters())
        print(f"{name}: {len(images)} images, {count} parameters")
        smooth, began = None, time.time()
        for step in train(denoiser, images, config=recipe.training, checkpoint=path):
            smooth = step.loss if smooth is None else 0.98 * smooth + 0.02 * step.loss
            if step.step % 50 == 0:
                print(
                    f"{step.step:6d}/{recipe.training.steps} loss {smooth:.4f} "
                    f"{step.images_per_second:.0f} images/s, {time.time() - began:.0f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
