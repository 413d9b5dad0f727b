"""How much of a network's sample is there to know?

For some sets the zoo has several networks: of Fashion-MNIST a UNet and a DiT of all images and two
UNets of half of them each, of the faces a UNet and a DiT. From the noises of the scoreboard,
networks and formulas sample in ten steps. Each is then compared with every one network, and with
the mean of the networks' samples (of the others, if it is a network itself): with what they agree
on. And relays tell where they part: one of them takes the first k of the ten steps, from the
highest noise down, and the UNet the others; or the UNet the first.

    LOCALITY_DATA=PATH python experiments/consensus.py [SET ...]

Writes results/consensus-SET.json: r2 by seed, {method: {judge: [...]}}, and the mean r2 of relays
with the UNet's own samples, {method: {"first": [...], "last": [...]}} over the steps of STEPS that
the method takes first, or that the UNet takes before it.
"""

import argparse
import json
from itertools import product

from tune_mixture import RESULTS

from locality import scoreboard, zoo
from locality.denoisers import Denoiser
from locality.metrics import r2
from locality.sampling import ddim
from locality.training import write_atomically

NETWORKS = {
    "fashion-mnist": {
        "unet": "unet/fashion-mnist",
        "dit": "dit/fashion-mnist",
        "unet even": "unet/fashion-mnist-even",
        "unet odd": "unet/fashion-mnist-odd",
    },
    "celeba": {"unet": "unet/celeba", "dit": "dit/celeba"},
}
IMAGES = {"celeba": 9000}  # of the formulas, where not 10,000
SEEDS = {"celeba": 64}  # where not 128
# The mixtures, and the rivals that come nearest to them on one set or another.
FORMULAS = ("wiener-mixture-patch", "wiener-mixture-pspc", "wiener-mixture", "local-0.05")
FORMULAS += ("pspc-calibrated", "pspc-wiener", "pspc-flex", "wiener", "optimal")
STEPS = (0, 2, 4, 6, 8, 10)
RELEASED = {"fashion-mnist": "released-0.005"}


def relay(first: Denoiser, then: Denoiser, sigmas: list[float]) -> Denoiser:
    """``first`` at the noise levels ``sigmas``, and ``then`` at all others."""
    return lambda x, sigma: (first if sigma in sigmas else then)(x, sigma)


def relays(denoiser: Denoiser, bench: scoreboard.Bench) -> dict[str, list[float]]:
    """Where a denoiser and the network of the bench part; see above."""
    found = {"first": [], "last": []}
    for order, steps in product(found, STEPS):
        pair = (denoiser, bench.network) if order == "first" else (bench.network, denoiser)
        *_, last = ddim(relay(*pair, bench.sigmas[:steps]), bench.noise, bench.sigmas)
        found[order].append(round(r2(last.x0, bench.trajectory[-1].x0).mean().item(), 4))
    return found


def compare(data: str) -> dict:
    """Sample with all, and compare with every network and with what they agree on."""
    bench = scoreboard.prepare(
        f"unet/{data}",
        images=IMAGES.get(data, 10_000),
        seeds=SEEDS.get(data, 128),
        queries=2,
    )
    made, networks = scoreboard.methods(bench), NETWORKS[data]
    formulas = [*FORMULAS, RELEASED[data]] if data in RELEASED else FORMULAS
    drawn, parted = {}, {}
    for name in (*networks, *formulas):
        denoiser = zoo.load(networks[name]) if name in networks else made[name]()
        *_, last = ddim(denoiser, bench.noise, bench.sigmas)
        drawn[name] = last.x0
        if name == FORMULAS[0] or (name in networks and name != "unet"):
            parted[name] = relays(denoiser, bench)
    found = {}
    for name, samples in drawn.items():
        judges = {other: drawn[other] for other in networks if other != name}
        judges["consensus"] = sum(judges.values()) / len(judges)
        found[name] = {
            judge: [round(v, 4) for v in r2(samples, theirs).tolist()]
            for judge, theirs in judges.items()
        }
    weights = {name: zoo.card(full)["sha256"] for name, full in networks.items()}
    settings = bench.settings | {"networks": weights, "steps_taken": STEPS}
    return {"settings": settings, "r2_by_seed": found, "relays": parted}


def main() -> None:
    """All sets, or those named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", metavar="SET", help=", ".join(NETWORKS))
    for data in parser.parse_args().sets or NETWORKS:
        result = compare(data)
        text = json.dumps(result) + "\n"
        path = RESULTS / f"consensus-{data}.json"
        write_atomically(path, lambda part, text=text: part.write_text(text))
        for name, judged in result["r2_by_seed"].items():
            means = {judge: round(sum(v) / len(v), 3) for judge, v in judged.items()}
            print(f"{data} {name:22s}", means, flush=True)


if __name__ == "__main__":
    main()
