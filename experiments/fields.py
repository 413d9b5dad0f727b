"""Measures sensitivity fields: `python experiments/fields.py [SET ...]` (default: all).

For every model of a data set, at the ten official noise levels, the fields of a few pixels over 64
held-out images with fixed noise: their mean, and for each image the effective radius and, for
faces, the ratio at the mirrored pixel. Models are every network that the zoo has for the set, and
the Wiener, the analytical local and the optimal denoiser of the training split (of Fashion-MNIST,
the 10,000 images that ship).

    LOCALITY_DATA=PATH python experiments/fields.py

Writes results/fields-SET.safetensors, one set of tensors for each model, and fields-SET.json, which
says what they are. Resumable: a model that is there is skipped, unless its network has changed. If
the pixels, the images or another part of a recipe have, all of its set are measured anew.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from locality import zoo
from locality.data import ImageSet, available, load
from locality.denoisers import Denoiser, LocalDenoiser, OptimalDenoiser, WienerDenoiser, masks
from locality.schedule import ddpm_sigmas
from locality.sensitivity import effective_radius, mirror_ratio, sensitivity
from locality.stats import PCA
from locality.training import write_atomically

RESULTS = Path(__file__).parent / "results"
COUNT, CHUNK, SEED = 64, 8, 0


@dataclass(frozen=True)
class Recipe:
    """Where fields are measured.

    Attributes:
        data: arguments of `locality.data.load`.
        pixels: (row, column) of the output pixels, by name.
        threshold: tau of the analytical local denoiser's masks.
        statistics: functions of (fields, pixel), by name.
    """

    data: dict
    pixels: dict[str, tuple[int, int]]
    threshold: float
    statistics: dict = field(default_factory=lambda: {"radius": effective_radius})


FACES = {"radius": effective_radius, "mirror": mirror_ratio}
FACE = {"eye": (16, 11), "mouth corner": (25, 12), "cheek": (20, 9)}
RECIPES = {
    "fashion-mnist": Recipe(
        {"name": "fashion-mnist"},
        {"centre": (14, 14), "left sleeve": (12, 5), "toe": (19, 5)},
        0.05,
    ),
    "celeba": Recipe({"name": "celeba", "size": 32}, FACE, 0.02, FACES),
    "cifar10-gray": Recipe(
        {"name": "cifar10", "gray": True}, {"centre": (16, 16), "where eyes are": (16, 11)}, 0.05
    ),
    "afhq-cat": Recipe(
        {"name": "afhq-cat", "size": 32}, {"eye": (16, 11), "cheek": (22, 8)}, 0.02, FACES
    ),
    "photos": Recipe(  # patches of photographs, of which the zoo has no network
        {"name": "photos", "size": 32, "gray": True},
        {"centre": (16, 16), "where eyes are": (16, 11)},
        0.05,
    ),
}


def models(name: str, images: ImageSet) -> dict[str, tuple[str, Callable[[], Denoiser]]]:
    """Model -> (what the result depends on beside the recipe, a function that makes it)."""
    made = {}
    for kind, model in {"unet": "UNet", "dit": "DiT", "linear": "linear"}.items():
        network = f"{kind}/{name}"
        if network in zoo.names():
            made[model] = (zoo.card(network)["sha256"], partial(zoo.load, network))
    tau = RECIPES[name].threshold
    pca = lru_cache(lambda: PCA.fit(images))
    mask = lru_cache(maxsize=1)(lambda sigma: masks.pca(pca(), sigma, tau))
    free = {
        "Wiener": lambda: WienerDenoiser(pca()),
        "analytical local": lambda: LocalDenoiser(images, mask),
        "optimal": lambda: OptimalDenoiser(images),
    }
    return made | {model: (f"tau {tau}", make) for model, make in free.items()}


def measure(
    denoiser: Denoiser, clean: Tensor, pixels: list[tuple[int, int]], statistics: dict
) -> dict[str, Tensor]:
    """Fields of `denoiser` on noised `clean` (n, C, H, W) at the ten noise levels.

    Returns "mean" (10, pixels, H, W), each field over its largest value; "peak" (10, pixels), that
    value; and each of `statistics` (10, pixels, n), one number an image, NaN for a field of zeros.
    """
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(SEED))
    found = {key: [] for key in ("mean", "peak", *statistics)}
    for sigma in ddpm_sigmas(10).tolist():
        for pixel in pixels:
            parts = (clean + sigma * noise).split(CHUNK)
            fields = torch.cat([sensitivity(denoiser, x, sigma, pixel) for x in parts])
            mean = fields.mean(0)
            found["peak"].append(mean.max())
            found["mean"].append((mean / mean.max().clamp_min(1e-30)).half())
            for key, statistic in statistics.items():
                found[key].append(statistic(fields, pixel).half())
    shape = (10, len(pixels))
    return {key: torch.stack(parts).unflatten(0, shape) for key, parts in found.items()}


def measure_set(name: str, only: list[str] | None) -> None:
    """Measure the models of one data set that its results lack; `only` these, if given."""
    recipe, path = RECIPES[name], RESULTS / f"fields-{name}.safetensors"
    images = load(**recipe.data)
    clean = load(**recipe.data, split="test", n=COUNT).images
    about = {
        "data": recipe.data | {"images": len(images)},
        "held_out_images": COUNT,
        "seed": SEED,
        "sigmas": [round(s, 4) for s in ddpm_sigmas(10).tolist()],
        "pixels": recipe.pixels,
        "threshold": recipe.threshold,
        "models": {},
    }
    tensors, card = {}, path.with_suffix(".json")
    if card.exists() and path.exists():
        earlier = json.loads(card.read_text())
        if earlier | {"models": {}} == json.loads(json.dumps(about)):
            tensors, about["models"] = load_file(path), earlier["models"]
        elif only is not None:
            raise SystemExit(f"{name}: its recipe has changed; measure it with all its models")
    for model, (version, make) in models(name, images).items():
        if about["models"].get(model) == version:
            print(f"{name}: {model} is there")
            continue
        if only is not None and model not in only:
            continue
        began = time.process_time()
        found = measure(make(), clean, list(recipe.pixels.values()), recipe.statistics)
        tensors |= {f"{model}.{key}": value for key, value in found.items()}
        about["models"][model] = version
        text = json.dumps(about, indent=1) + "\n"
        write_atomically(path, lambda part: save_file(tensors, part))  # noqa: B023
        write_atomically(card, lambda part: part.write_text(text))  # noqa: B023
        print(f"{name}: {model}, {time.process_time() - began:.0f} s of CPU time", flush=True)


def main() -> None:
    """Measure the sets named on the command line, by default all whose images are here."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="SET", help=f"of {', '.join(RECIPES)}")
    parser.add_argument("--models", nargs="+", metavar="MODEL", help="only these, say UNet Wiener")
    arguments = parser.parse_args()
    names = arguments.names or list(RECIPES)
    if unknown := set(names) - set(RECIPES):
        parser.error(f"unknown sets {sorted(unknown)}, expected some of {', '.join(RECIPES)}")
    for name in names:
        if available(RECIPES[name].data["name"]):
            measure_set(name, arguments.models)
        else:
            print(f"{name}: its images are not on this machine")


if __name__ == "__main__":
    main()
