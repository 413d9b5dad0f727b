"""Tunes and scores the Wiener mixture: `python experiments/tune_mixture.py [SET ...]`.

The parameters of the mixture and of its partners at low noise are chosen on noises of their own
(seeds 1000 to 1031), against the zoo's UNet, one parameter after the other. Then they are scored on
others (seeds 0 to 63) with `locality.scoreboard.score`, on Fashion-MNIST beside their rivals. All
methods hold the first 10,000 training images, of CelebA all 9,000. What is chosen here stands in
`locality.scoreboard`, which scores it on a third set of seeds.

    LOCALITY_DATA=PATH python experiments/tune_mixture.py

Writes results/mixture-SET.json after every step. Resumable: what is there is skipped, unless the
network, the training images or the seeds have changed.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

from locality import scoreboard
from locality.data import available
from locality.denoisers import (
    Denoiser,
    LocalDenoiser,
    WienerDenoiser,
    WienerMixtureDenoiser,
    masks,
)
from locality.metrics import r2
from locality.sampling import ddim, initial_noise
from locality.scoreboard import PARTNER_BELOW, Bench, mixture_window, paired, with_patches
from locality.stats import PCA
from locality.training import write_atomically

RESULTS = Path(__file__).parent / "results"
TUNING, SCORING = range(1000, 1032), range(64)


@dataclass(frozen=True)
class Recipe:
    """How one data set is measured.

    Attributes:
        data: the set that must be here.
        images: training images, None for all.
        start: the mixture's parameters from which the search begins.
        search: the values tried of each, one parameter after the other.
        rivals: whether methods that read all training images for every pixel are tried, too.
    """

    data: str
    images: int | None
    start: dict
    search: dict
    rivals: bool = False


# The mixture of patches that shares the answer at low noise.
PATCHES = {"share": 0.5, "side": 8, "components": 50, "pseudo_count": 50}
PATCH_SEARCH = {"share": (0.25, 0.5, 0.75), "side": (5, 8, 11), "components": (25, 50, 100)}
RECIPES = {
    "fashion-mnist": Recipe(
        "fashion-mnist",
        10_000,
        {"components": 30, "rank": 200, "pseudo_count": 60, "power": 0.5, "opening": 1.0},
        {
            "opening": (0.5, 1.0, 2.0),
            "power": (0.25, 0.5, 1.0),
            "components": (10, 30, 100),
            "pseudo_count": (20, 60, 200),
            "rank": (100, 200, 400),
            "rounds": (0, 3),
        },
        rivals=True,
    ),
    "mnist": Recipe(
        "mnist",
        10_000,
        {"components": 100, "rank": 200, "pseudo_count": 6, "power": 0.5, "opening": 2.0},
        {
            "pseudo_count": (2, 6, 20),
            "opening": (1.0, 2.0, 4.0),
            "power": (0.25, 0.5, 1.0),
            "components": (100, 300),
            "rounds": (0, 3),
        },
    ),
    "cifar10-gray": Recipe(
        "cifar10",
        10_000,
        {"components": 30, "rank": 300, "pseudo_count": 300, "power": 0.125, "opening": 2.0},
        {
            "rounds": (0, 1, 3, 6),
            "pseudo_count": (100, 300, 1000),
            "power": (0.0625, 0.125, 0.25),
            "components": (10, 30, 100),
        },
    ),
    "cifar10": Recipe(
        "cifar10",
        10_000,
        {"components": 30, "rank": 300, "pseudo_count": 300, "power": 0.25, "opening": 2.0},
        {
            "rounds": (0, 3),
            "components": (10, 30, 100),
            "power": (0.125, 0.25, 0.5),
            "rank": (150, 300),
            "pseudo_count": (100, 300, 1000),
            "opening": (1.0, 2.0),
        },
    ),
    "celeba": Recipe(
        "celeba",
        None,
        {"components": 30, "rank": 200, "pseudo_count": 20, "power": 0.5, "opening": 2.0},
        {
            "rounds": (0, 3),
            "components": (10, 30, 100),
            "pseudo_count": (20, 60, 300),
            "power": (0.25, 0.5, 1.0),
        },
    ),
}


def reseed(bench: Bench, seeds: range) -> Bench:
    """The same bench with noise i drawn from seed i alone, and the network's way from it."""
    first = bench.sigmas[0]
    drawn = [initial_noise(1, bench.train.shape, sigma=first, seed=seed) for seed in seeds]
    noise = torch.cat(drawn)
    way = list(ddim(bench.network, noise, torch.tensor(bench.sigmas)))
    settings = bench.settings | {"seed": [seeds.start, seeds.stop - 1], "seeds": len(seeds)}
    return replace(bench, noise=noise, trajectory=way, settings=settings)


def shorten(bench: Bench, seeds: int) -> Bench:
    """The same bench with its first seeds only."""
    way = [step._replace(x=step.x[:seeds], x0=step.x0[:seeds]) for step in bench.trajectory]
    settings = bench.settings | {"seeds": seeds}
    return replace(bench, noise=bench.noise[:seeds], trajectory=way, settings=settings)


@dataclass(frozen=True, eq=False)
class Maker:
    """Makes denoisers of a bench's training images; makes no mixture or mask twice."""

    bench: Bench
    pca: PCA

    @lru_cache(maxsize=4)  # noqa: B019
    def fit(self, **fit: float) -> WienerMixtureDenoiser:
        """The mixture without a window."""
        return WienerMixtureDenoiser.fit(self.bench.train, self.pca, **fit)

    @lru_cache(maxsize=2)  # noqa: B019
    def window(self, power: float, opening: float) -> Callable[[float], torch.Tensor]:
        """See `locality.scoreboard.mixture_window`; keeps those of a whole run."""
        return lru_cache(maxsize=16)(mixture_window(self.pca, power, opening))

    def mixture(self, power: float, opening: float, **fit: float) -> Denoiser:
        """The mixture with its window."""
        return self.fit(**fit).with_window(self.window(power, opening))

    def local(self, mask: Callable, *options: float) -> Denoiser:
        """The local denoiser with a mask of the statistics."""
        return LocalDenoiser(self.bench.train, lambda sigma: mask(self.pca, sigma, *options))


def agreement(denoiser: Denoiser, bench: Bench) -> float:
    """Mean r2 of the final samples with the network's."""
    *_, last = ddim(denoiser, bench.noise, torch.tensor(bench.sigmas))
    return round(r2(last.x0, bench.trajectory[-1].x0).mean().item(), 5)


def tune(make: Callable[..., Denoiser], start: dict, search: dict, bench: Bench) -> dict:
    """Search one parameter after the other; what was tried is kept with what was chosen."""
    chosen, tried = dict(start), []
    scored: dict[tuple, float] = {}
    for key, values in search.items():
        for value in values:
            parameters = chosen | {key: value}
            name = tuple(sorted(parameters.items()))
            if name not in scored:
                scored[name] = agreement(make(**parameters), bench)
                tried.append(parameters | {"r2": scored[name]})
                print(tried[-1], flush=True)
        chosen[key] = max(
            values, key=lambda v, key=key: scored[tuple(sorted((chosen | {key: v}).items()))]
        )
    return {"chosen": chosen, "tried": tried}


def tune_share(maker: Maker, chosen: dict, bench: Bench) -> dict:
    """The share of the soft local softmax, by r2 on the network's way at the low noise levels."""
    soft, mixture = maker.local(masks.soft), maker.mixture(**chosen)
    found = {share: [] for share in (0.0, 0.25, 0.5, 0.75, 1.0)}
    for step in bench.trajectory:
        if 0.1 < step.sigma < PARTNER_BELOW:
            ours, theirs = mixture(step.x, step.sigma), soft(step.x, step.sigma)
            for share, row in found.items():
                answer = ((1 - share) * ours + share * theirs).clamp(-1, 1)
                row.append(r2(answer, step.x0).mean().item())
    tried = {share: round(sum(row) / len(row), 5) for share, row in found.items()}
    return {"share": max(tried, key=tried.get), "below": PARTNER_BELOW, "tried": tried}


def measure(name: str) -> None:
    """Tune and score on one data set, going on where an earlier run stopped."""
    recipe, path = RECIPES[name], RESULTS / f"mixture-{name}.json"
    bench = scoreboard.prepare(f"unet/{name}", images=recipe.images, seeds=2, queries=2)
    bench = replace(bench, queries=16)
    tuning, scoring = reseed(bench, TUNING), reseed(bench, SCORING)
    about = {
        "settings": scoring.settings | {"queries": bench.queries},
        "tuning_seeds": [TUNING.start, TUNING.stop - 1],
        "methods": {},
    }
    if path.exists():
        earlier = json.loads(path.read_text())
        if all(earlier[key] == value for key, value in about.items() if key != "methods"):
            about = earlier

    def keep() -> None:
        text = json.dumps(about, indent=1) + "\n"
        write_atomically(path, lambda part: part.write_text(text))

    maker = Maker(bench, bench.pca)
    if "tuning" not in about:
        about["tuning"] = tune(maker.mixture, recipe.start, recipe.search, tuning)
        keep()
    chosen = about["tuning"]["chosen"]
    fit = {key: value for key, value in chosen.items() if key not in ("power", "opening")}
    mixture = maker.mixture(**chosen)
    if recipe.rivals and "soft_share" not in about:
        about["soft_share"] = tune_share(maker, chosen, shorten(tuning, bench.queries))
        keep()

    def patched(**patches: float) -> Denoiser:
        return with_patches(mixture, bench.train, **patches)

    if "patches" not in about:
        about["patches"] = tune(patched, PATCHES, PATCH_SEARCH, tuning)
        keep()
    methods = {
        "Wiener": lambda: WienerDenoiser(bench.pca),
        "mixture, exact": lambda: maker.fit(**fit),
        "mixture": lambda: mixture,
        "mixture + patches": lambda: patched(**about["patches"]["chosen"]),
    }
    rivals = {
        "mixture + soft": lambda: paired(
            mixture, maker.local(masks.soft), about["soft_share"]["share"]
        ),
        "released mask 0.02": lambda: maker.local(masks.pca_official, 0.02),
        "local 0.02": lambda: maker.local(masks.pca, 0.02),
        "local 0.05": lambda: maker.local(masks.pca, 0.05),
        "soft": lambda: maker.local(masks.soft),
        "local 0.1": lambda: maker.local(masks.pca, 0.1),
    }
    for method, make in {**methods, **(rivals if recipe.rivals else {})}.items():
        if method not in about["methods"]:
            about["methods"][method] = scoreboard.score(make(), scoring)
            print(method, about["methods"][method]["r2"], flush=True)
            keep()


def main() -> None:
    """Measure the sets named on the command line, by default all whose images are here."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="SET", help=f"of {', '.join(RECIPES)}")
    names = parser.parse_args().names or list(RECIPES)
    if unknown := set(names) - set(RECIPES):
        parser.error(f"unknown sets {sorted(unknown)}, expected some of {', '.join(RECIPES)}")
    for name in names:
        if available(RECIPES[name].data):
            measure(name)
        else:
            print(f"{name}: its images are not on this machine")


if __name__ == "__main__":
    main()
