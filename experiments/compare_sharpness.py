"""Are the sharpened mixture's samples as sharp as the local denoiser's? With an interval.

The scoreboard takes the Frechet distance of the first 64 samples, of every method as many, without
an interval. Here the methods that chapter 9 compares both in agreement and in sharpness sample from
all 128 of its noises; their features are drawn again with replacement, the same noises for every
method, and the distance less the local denoiser's gets a 95 % interval from 500 draws.

    LOCALITY_DATA=PATH python experiments/compare_sharpness.py [SET ...]

Writes results/distances-SET.json. Before that it asks that the samples explain as much of the
UNet's as the scoreboard says: they are the same samples.
"""

import argparse
import json

import torch
from tune_mixture import RESULTS
from tune_sharpness import LOCAL, SETS

from locality import scoreboard, zoo
from locality.metrics import frechet_distance, r2
from locality.sampling import ddim
from locality.training import write_atomically

SEEDS, DRAWS = 128, 500
METHODS = (LOCAL, "wiener-mixture-sharp", "wiener-mixture-pspc", "unet")


def scored(name: str, method: str) -> list[float]:
    """The scoreboard's r2 of a method, a seed each."""
    wanted = {"network": f"unet/{name}", "method": method, "seeds": SEEDS, "steps": 10}
    wanted["images"] = SETS[name]
    for entry in scoreboard.read(RESULTS / f"scoreboard-{name}.json"):
        if wanted.items() <= entry["settings"].items():
            return entry["r2_by_seed"]
    raise ValueError(f"the scoreboard of {name} lacks {method} on {SEEDS} seeds: score it first")


def compare(name: str) -> dict:
    """Distances of all methods on one data set, and how far they are from the local denoiser's."""
    bench = scoreboard.prepare(f"unet/{name}", images=SETS[name], seeds=SEEDS, queries=2)
    made, truth, features = scoreboard.methods(bench), bench.trajectory[-1].x0, {}
    for method in METHODS:
        *_, last = ddim(made[method](), bench.noise, bench.sigmas)
        known = torch.tensor(scored(name, method))
        gap = (r2(last.x0, truth) - known).abs().max().item()
        if gap > 2e-3:
            raise ValueError(f"{name}, {method}: r2 differs from the scoreboard's by {gap:.4f}")
        features[method] = bench.features(last.x0)
        print(name, method, frechet_distance(features[method], bench.reference), flush=True)
    generator = torch.Generator().manual_seed(0)
    drawn = {method: [] for method in METHODS}
    for _ in range(DRAWS):
        picked = torch.randint(SEEDS, (SEEDS,), generator=generator)
        for method, found in features.items():
            drawn[method].append(frechet_distance(found[picked], bench.reference))
    report = {}
    for method in METHODS:
        less = torch.tensor(drawn[method]) - torch.tensor(drawn[LOCAL])
        low, high = less.quantile(torch.tensor([0.025, 0.975], dtype=less.dtype)).tolist()
        distance = frechet_distance(features[method], bench.reference)
        report[method] = {
            "frechet": round(distance, 3),
            "less_local": {"low": round(low, 3), "high": round(high, 3)},
        }
    return report


def main() -> None:
    """Compare on the sets named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=("afhq-cat", "celeba", "cifar10"))
    for name in parser.parse_args().names:
        found = {
            "network_sha256": zoo.card(f"unet/{name}")["sha256"],
            "images": SETS[name],
            "seed": scoreboard.SEED,
            "seeds": SEEDS,
            "draws": DRAWS,
            "methods": compare(name),
        }
        text = json.dumps(found, indent=1) + "\n"
        path = RESULTS / f"distances-{name}.json"
        write_atomically(path, lambda part, text=text: part.write_text(text))
        print(text)


if __name__ == "__main__":
    main()
