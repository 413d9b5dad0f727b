"""How sharp can a mixture be, and how well does it still predict then?

The Wiener mixture predicts the UNet best, and its samples are blurred. Two things sharpen them:
half of the answer, or all of it, from the local softmax below sigma = 3, and guidance, a step
further away from the Wiener filter (`locality.scoreboard.guided`). For every setting: r2 with the
UNet's samples and the Frechet distance to real images, from 64 noises of their own (seeds 1000 to
1063), on the sets whose classifier is in the zoo. Chosen is the setting of the largest r2 among
those that are at least as sharp as the local denoiser; where there is none, the sharpest. What is
chosen stands in `locality.scoreboard`, which scores it on other seeds.

    LOCALITY_DATA=PATH python experiments/tune_sharpness.py [SET ...]

Writes results/sharpness-SET.json.
"""

import argparse
import json
from collections.abc import Iterator

from tune_mixture import RESULTS, reseed

from locality import scoreboard, zoo
from locality.denoisers import Denoiser
from locality.metrics import frechet_distance, r2
from locality.sampling import ddim
from locality.scoreboard import SHARP_BELOW, SHARP_TAU, Bench, guided, sharpened
from locality.training import write_atomically

SETS = ("fashion-mnist", "mnist", "cifar10-gray")
SEEDS, IMAGES = range(1000, 1064), 10_000
LOCAL = f"local-{SHARP_TAU}"


def settings(made: dict) -> Iterator[tuple[dict, Denoiser]]:
    """What is tried: parameters and denoiser."""
    wiener, mixture, local = (made[name]() for name in ("wiener", "wiener-mixture", LOCAL))
    patches = made["wiener-mixture-patch"]()
    for weight in (0.0, 0.4, 0.7, 1.0):
        yield {"partner": "patches", "weight": weight}, guided(patches, wiener, weight)
    for share in (0.5, 1.0):
        for weight in (0.0, 0.2, 0.4, 0.7):
            dials = {"share": share, "weight": weight}
            about = {"partner": LOCAL, "below": SHARP_BELOW, **dials}
            yield about, sharpened(mixture, local, wiener, **dials)


def measure(denoiser: Denoiser, bench: Bench) -> dict[str, float]:
    """Agreement with the UNet, and distance to real images."""
    *_, last = ddim(denoiser, bench.noise, bench.sigmas)
    return {
        "r2": round(r2(last.x0, bench.trajectory[-1].x0).mean().item(), 4),
        "frechet": round(frechet_distance(bench.features(last.x0), bench.reference), 3),
    }


def tune(name: str) -> None:
    """Try everything on one data set and write what came out."""
    bench = scoreboard.prepare(f"unet/{name}", images=IMAGES, seeds=2, queries=2)
    bench = reseed(bench, SEEDS)
    made = scoreboard.methods(bench)
    report = {
        "network_sha256": zoo.card(f"unet/{name}")["sha256"],
        "images": IMAGES,
        "seeds": [SEEDS.start, SEEDS.stop - 1],
        "rivals": {m: measure(made[m](), bench) for m in ("unet", "wiener", LOCAL)},
        "tried": [],
    }
    for about, denoiser in settings(made):
        report["tried"].append(about | measure(denoiser, bench))
        print(name, report["tried"][-1], flush=True)
    bound = report["rivals"][LOCAL]["frechet"]
    sharp = [row for row in report["tried"] if row["frechet"] <= bound]
    sharpest = min(report["tried"], key=lambda row: row["frechet"])
    report["chosen"] = max(sharp, key=lambda row: row["r2"]) if sharp else sharpest
    text = json.dumps(report, indent=1) + "\n"
    write_atomically(RESULTS / f"sharpness-{name}.json", lambda part: part.write_text(text))
    print(name, "chosen:", report["chosen"], "local:", report["rivals"][LOCAL])


def main() -> None:
    """Measure the sets named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=SETS, metavar="SET")
    for name in parser.parse_args().names:
        tune(name)


if __name__ == "__main__":
    main()
