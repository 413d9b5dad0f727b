"""Measures, for networks of the zoo, which patch sides imitate them at which noise level.

    python experiments/calibrate_sides.py [NAME ...] [--machines ls pspc ...]

(default: unet/fashion-mnist, all machines.)

For each patch machine and each of the paper's ten noise levels: the side whose noise prediction is
most like the network's, on noised images that neither has seen (`locality.denoisers.sides`). The
local machines hold the first 10,000 training images. The two that compare every place with every
place would take hours on them; boundary-broken ELS holds the first 300, ELS the first 100. The
result goes beside the network's card, NAME.sides.json, one noise level at a time; run again, it
goes on where it stopped. The seed fixes the noise.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from locality import zoo
from locality.data import load
from locality.denoisers import Denoiser, ELSDenoiser, PSPCDenoiser
from locality.denoisers.sides import calibrate
from locality.schedule import ddpm_sigmas
from locality.training import write_atomically

QUERIES, SEED = 16, 0
# 27 and more: of a zero-padded image. 29: of a torus, all of it. WHOLE: the image's own side.
WHOLE = 0
ODD = (1, 3, 5, 7, 9, 11, 13, 15, 19, 23)


@dataclass(frozen=True)
class Method:
    """How one patch machine is measured.

    Attributes:
        machine: (images, side) -> denoiser.
        sides: to try, in pixels.
        images: training images it holds.
    """

    machine: Callable[[Tensor, int], Denoiser]
    sides: tuple[int, ...]
    images: int = 10_000


def local(images: Tensor, side: int) -> Denoiser:
    """LS by box filters: broken ELS that compares no window with one elsewhere."""
    return ELSDenoiser(images, side, boundary="broken", stride=images.shape[-1])


def broken(images: Tensor, side: int) -> Denoiser:
    """Boundary-broken ELS."""
    return ELSDenoiser(images, side, boundary="broken")


METHODS = {
    "ls": Method(local, (*ODD, 27, 35, 55)),
    "pspc": Method(PSPCDenoiser, (*ODD, WHOLE)),
    "bbels": Method(broken, (*ODD, 27, 35, 55), images=300),
    "els": Method(ELSDenoiser, (1, 3, 5, 7, 9, 13, 19, 29), images=100),
}


def measure(name: str, machines: Sequence[str]) -> None:
    """Measure the sides for one network, going on where an earlier run stopped."""
    path, card = zoo.ZOO / f"{name}.sides.json", zoo.card(name)
    channels, size, _ = card["shape"]
    # The first 10,000 images of Fashion-MNIST ship with the package.
    data = card["data"]["name"].removesuffix("-full")
    network, options = zoo.load(name), {"size": size, "gray": channels == 1}
    train, test = load(data, **options), load(data, "test", **options)
    about = {"network": name, "sha256": card["sha256"], "data": train.name, "seed": SEED}
    earlier = json.loads(path.read_text()) if path.exists() else {}
    methods = earlier.get("methods", {})
    if earlier != about | {"methods": methods}:  # of another network, or measured in another way
        methods = {}
    for key in machines:
        method = METHODS[key]
        sides = [size if side == WHOLE else side for side in method.sides]
        held = train.images[: method.images]
        setting = {"images": len(held), "queries": QUERIES, "sides": sides}
        found = methods.get(key, {})
        if {name: found.get(name) for name in setting} != setting:
            found = methods[key] = setting | {"sigmas": [], "best": [], "similarity": []}
        for sigma in ddpm_sigmas(10).tolist()[len(found["sigmas"]) :]:
            row = calibrate(
                network,
                lambda side, method=method, held=held: method.machine(held, side),
                test.images[:QUERIES],
                sides=sides,
                sigmas=[sigma],
                seed=SEED,
            )
            found["sigmas"].append(sigma)
            found["best"].append(row.best[0])
            found["similarity"].append([round(s, 7) for s in row.similarity[0].tolist()])
            text = json.dumps(about | {"methods": methods}, indent=1) + "\n"
            write_atomically(path, lambda part, text=text: part.write_text(text))
            print(f"{name} {key} sigma {sigma:.3g}: side {row.best[0]}", flush=True)


def main() -> None:
    """Measure the networks named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=["unet/fashion-mnist"])
    parser.add_argument("--machines", nargs="+", choices=METHODS, default=[*METHODS])
    arguments = parser.parse_args()
    for name in arguments.names:
        measure(name, arguments.machines)


if __name__ == "__main__":
    main()
