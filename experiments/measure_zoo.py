"""Adds to the zoo's cards what needs images that do not ship: `python experiments/measure_zoo.py`.

Chapters 6 and 8 and the tests read these numbers from the cards, each beside the checksums of the
weights it was measured on:

* "wiener" on the card of linear/fashion-mnist: how far the trained linear denoiser's matrix is from
  the Wiener matrix of its training images, relative, in the Frobenius norm; and how far the Wiener
  matrix of the 10,000 images that do ship.
* "halves" on the card of unet/fashion-mnist-even: how well two UNets trained on disjoint halves
  agree (r2, both ways round), and each with the optimal denoiser of its own half.
* "letter" on the card of unet/cifar10-gray-w: which share of a change of the letter's amplitude the
  network passes on held-out images with the W, beside the network that was trained without it and
  the Wiener filters of the training images with and without it.

Nothing is random but the seeded noise.
"""

import json

import torch

from locality import zoo
from locality.data import available, load
from locality.denoisers import OptimalDenoiser, WienerDenoiser
from locality.denoisers.base import Denoiser
from locality.metrics import r2
from locality.networks import NetworkDenoiser
from locality.shapes import add_shape, letter_w
from locality.stats import PCA
from locality.training import write_atomically

SIGMAS = (0.1, 0.2, 0.3, 0.5, 0.724, 1.24, 2.04, 3.0, 3.44, 6.17, 12.0, 25.7, 60.8)
HALVES_SIGMAS = (0.3, 0.5, 0.724, 1.24, 2.04, 3.0)
HALVES_IMAGES = 64
LETTER_SIGMAS = (12.0, 6.17, 3.44, 2.04, 1.24, 0.724, 0.342)
LETTER_IMAGES = 64


@torch.no_grad()
def matrix_of(denoiser: NetworkDenoiser, sigma: float) -> torch.Tensor:
    """The matrix (784, 784) of an affine denoiser, column by column."""
    units = torch.eye(784).view(784, 1, 28, 28)
    return (denoiser(units, sigma) - denoiser(torch.zeros_like(units[:1]), sigma)).flatten(1).T


def wiener_distances() -> dict:
    """Relative distances to the Wiener matrix of the 60,000 images."""
    linear = zoo.load("linear/fashion-mnist")
    full, shipped = PCA.fit(load("fashion-mnist-full")), PCA.fit(load("fashion-mnist"))
    rows = []
    for sigma in SIGMAS:
        wiener = full.wiener_matrix(sigma)
        others = (matrix_of(linear, sigma), shipped.wiener_matrix(sigma))
        rows.append([((other - wiener).norm() / wiener.norm()).item() for other in others])
        print(f"sigma {sigma:6.3f}: linear {rows[-1][0]:.4f}, 10,000 images {rows[-1][1]:.4f}")
    trained, subset = zip(*rows)
    return {"sigma": SIGMAS, "distance": trained, "distance_of_10000": subset}


@torch.no_grad()
def agreement(one: Denoiser, other: Denoiser, x: torch.Tensor, sigma: float) -> float:
    """Mean r2 of two denoisers on the noisy images ``x``, both ways round."""
    a, b = one(x, sigma), other(x, sigma)
    return (r2(a, b).mean() + r2(b, a).mean()).item() / 2


def halves() -> dict:
    """Agreement of the networks of both halves, and of each with the optimum of its half."""
    images = load("fashion-mnist-full").images
    clean = load("fashion-mnist", "test").images[:HALVES_IMAGES]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    even, odd = (zoo.load(f"unet/fashion-mnist-{half}") for half in ("even", "odd"))
    pairs = {
        "networks": (even, odd),
        "even_optimal": (even, OptimalDenoiser(images[0::2])),
        "odd_optimal": (odd, OptimalDenoiser(images[1::2])),
    }
    found = {
        name: [agreement(*pair, clean + sigma * noise, sigma) for sigma in HALVES_SIGMAS]
        for name, pair in pairs.items()
    }
    for name, values in found.items():
        print(f"{name:13s}", *(f"{value:7.4f}" for value in values))
    return {"sigma": HALVES_SIGMAS, "images": HALVES_IMAGES, **found}


def letter() -> dict:
    """Shares of the letter that pass: w^T J w / w^T w, with J a denoiser's mean Jacobian."""
    train, test = (load("cifar10", split, gray=True).images for split in ("train", "test"))
    w = letter_w(*train.shape[2:])
    noisy = add_shape(test[:LETTER_IMAGES], w, seed=1)
    noise = torch.randn(noisy.shape, generator=torch.Generator().manual_seed(0))

    def passed(denoiser: Denoiser, sigma: float) -> float:
        x = (noisy + sigma * noise).requires_grad_()
        field = torch.autograd.grad((denoiser(x, sigma) * w).sum(), x)[0].mean((0, 1))
        return ((field * w).sum() / w.sum()).item()

    statistics = PCA.fit(train), PCA.fit(add_shape(train, w, seed=0))
    denoisers = {
        "network": zoo.load("unet/cifar10-gray-w"),
        "network_without": zoo.load("unet/cifar10-gray"),
        "wiener": WienerDenoiser(statistics[1]),
        "wiener_without": WienerDenoiser(statistics[0]),
    }
    shares = {n: [passed(d, s) for s in LETTER_SIGMAS] for n, d in denoisers.items()}
    for name, values in shares.items():
        print(f"letter, {name:16s}", *(f"{value:6.2f}" for value in values))
    return {"sigma": LETTER_SIGMAS, "images": LETTER_IMAGES, **shares}


def add(name: str, key: str, measured: dict, weights: list[str]) -> None:
    """Put ``measured`` on a card, with the checksums of the networks it was measured on."""
    sums = {weight: zoo.card(weight)["sha256"] for weight in weights}
    text = json.dumps({**zoo.card(name), key: {**measured, "weights": sums}}, indent=1) + "\n"
    write_atomically(zoo.ZOO / f"{name}.json", lambda part: part.write_text(text))


def main() -> None:
    """Measure what is in the zoo."""
    linear = "linear/fashion-mnist"
    even, odd = "unet/fashion-mnist-even", "unet/fashion-mnist-odd"
    add(linear, "wiener", wiener_distances(), [linear])
    add(even, "halves", halves(), [even, odd])
    plain, lettered = "unet/cifar10-gray", "unet/cifar10-gray-w"
    if available("cifar10"):
        add(lettered, "letter", letter(), [plain, lettered])


if __name__ == "__main__":
    main()
