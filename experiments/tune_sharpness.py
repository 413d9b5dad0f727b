"""How sharp can a mixture be, and how well does it still predict then?

The Wiener mixture predicts the UNet best, and its samples are blurred. Three things sharpen them:
half of the answer, or more, from a sharper partner at low noise (the local softmax below sigma = 3,
or PSPC with published sides below 1), guidance, a step further away from the Wiener filter
(`locality.scoreboard.guided`), and to even out what the last answer keeps of every component's
variance (`locality.scoreboard.evened`). For every setting: r2 with the UNet's samples and the
Frechet distance to real images, from 64 noises of their own (seeds 1000 to 1063). On CIFAR-10 in
colour PSPC is the only partner, because the local softmax takes long. Faces and cats are evened out
and not guided, which by the scoreboard does not sharpen there; the other sets are guided and not
evened out. Chosen is the setting of the largest r2 among those that are at least as sharp as the
local denoiser; where there is none, the sharpest. What is chosen stands in `locality.scoreboard`,
which scores it on other seeds.

    LOCALITY_DATA=PATH python experiments/tune_sharpness.py [SET ...]

Writes results/sharpness-SET.json after every setting. Resumable: what is there is skipped, unless
the network, the number of images or the seeds have changed.
"""

import argparse
import json
from collections.abc import Iterator
from functools import cache
from itertools import product

from tune_mixture import RESULTS, reseed

from locality import scoreboard, zoo
from locality.denoisers import Denoiser
from locality.metrics import frechet_distance, r2
from locality.sampling import ddim
from locality.scoreboard import PARTNER_BELOW, SHARP_TAU, Bench, guided, sharpened
from locality.training import write_atomically

SETS = {"fashion-mnist": 10_000, "mnist": 10_000, "cifar10-gray": 10_000, "cifar10": 10_000}
SETS |= {"celeba": 9000, "afhq-cat": 4643}  # and how many images the methods hold
EVENED = ("celeba", "afhq-cat")  # and not guided
SEEDS = range(1000, 1064)
LOCAL = f"local-{SHARP_TAU}"
FOUND = ("r2", "frechet")  # of every setting


def settings(bench: Bench) -> Iterator[dict]:
    """The parameters that are tried."""
    if bench.train.shape[0] == 1:
        yield from ({"partner": "patches", "weight": weight} for weight in (0.0, 0.4, 0.7, 1.0))
    if bench.data in EVENED:
        partners = {
            "pspc-square": (PARTNER_BELOW, (0.5, 1.0), (0.0,)),
            LOCAL: (3.0, (0.25, 0.5), (0.0,)),
        }
    else:
        partners = {"pspc-square": (PARTNER_BELOW, (0.5, 1.0), (0.0, 0.2, 0.4, 0.6))}
        if bench.data != "cifar10":
            partners[LOCAL] = (3.0, (0.5, 1.0), (0.0, 0.2, 0.4, 0.7))
    for partner, (below, shares, weights) in partners.items():
        for share, weight in product(shares, weights):
            dials = {"partner": partner, "below": below, "share": share, "weight": weight}
            yield dials
            if bench.data in EVENED:
                yield dials | {"even": True}


def made_of(dials: dict, bench: Bench, made: dict) -> Denoiser:
    """The denoiser of these parameters."""
    if dials["partner"] == "patches":
        return guided(made["wiener-mixture-patch"](), made["wiener"](), dials["weight"])
    return sharpened(bench, made, **dials)


def measure(denoiser: Denoiser, bench: Bench) -> dict[str, float]:
    """Agreement with the UNet, and distance to real images."""
    *_, last = ddim(denoiser, bench.noise, bench.sigmas)
    return {
        "r2": round(r2(last.x0, bench.trajectory[-1].x0).mean().item(), 4),
        "frechet": round(frechet_distance(bench.features(last.x0), bench.reference), 3),
    }


def tune(name: str) -> None:
    """Try everything on one data set and write what came out."""
    bench = scoreboard.prepare(f"unet/{name}", images=SETS[name], seeds=2, queries=2)
    bench, path = reseed(bench, SEEDS), RESULTS / f"sharpness-{name}.json"
    made = {method: cache(make) for method, make in scoreboard.methods(bench).items()}
    about = {
        "network_sha256": zoo.card(f"unet/{name}")["sha256"],
        "images": SETS[name],
        "seeds": [SEEDS.start, SEEDS.stop - 1],
    }
    report = about | {"rivals": {}, "tried": []}
    if path.exists():
        earlier = json.loads(path.read_text())
        if about.items() <= earlier.items():
            report = earlier

    def keep() -> None:
        text = json.dumps(report, indent=1) + "\n"
        write_atomically(path, lambda part: part.write_text(text))

    for method in ("unet", "wiener", LOCAL):
        if method not in report["rivals"]:
            report["rivals"][method] = measure(made[method](), bench)
            keep()
    for dials in settings(bench):
        done = ({k: v for k, v in row.items() if k not in FOUND} for row in report["tried"])
        if dials not in done:
            report["tried"].append(dials | measure(made_of(dials, bench, made), bench))
            print(name, report["tried"][-1], flush=True)
            keep()
    bound = report["rivals"][LOCAL]["frechet"]
    sharp = [row for row in report["tried"] if row["frechet"] <= bound]
    sharpest = min(report["tried"], key=lambda row: row["frechet"])
    report["chosen"] = max(sharp, key=lambda row: row["r2"]) if sharp else sharpest
    keep()
    print(name, "chosen:", report["chosen"], "local:", report["rivals"][LOCAL])


def main() -> None:
    """Measure the sets named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=SETS, metavar="SET")
    for name in parser.parse_args().names:
        tune(name)


if __name__ == "__main__":
    main()
