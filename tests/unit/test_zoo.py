"""The networks that ship: they load, they fit in the budget, and they are as good as promised."""

import json

import pytest
import torch

from locality import zoo
from locality.data import available, load
from locality.denoisers import PSPCDenoiser
from locality.denoisers.sides import calibrate
from locality.metrics import r2
from locality.schedule import ddpm_sigmas
from locality.stats import PCA
from locality.training import held_out_loss

SIDES = sorted(zoo.ZOO.rglob("*.sides.json"))
NETWORKS = [name for name in zoo.names() if not name.startswith("classifier")]
MEGABYTES = 40
LINEAR_DISTANCE = 0.05  # of the linear denoiser's matrix to the Wiener matrix at sigma >= 0.3
HALVES = ["unet/fashion-mnist-even", "unet/fashion-mnist-odd"]


def test_the_zoo_fits_in_its_budget():
    assert sum(path.stat().st_size for path in zoo.ZOO.rglob("*.*")) < MEGABYTES * 1e6
    linear = [path.stat().st_size for path in (zoo.ZOO / "linear").glob("*.safetensors")]
    assert all(size < 3e6 for size in linear)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_card_tells_what_the_network_is(name):
    about = zoo.card(name)
    network = zoo.load(name)
    assert about["name"] == name
    assert about["parameters"] == sum(p.numel() for p in network.parameters())
    stages = [about["training"], *about.get("refinements", ())]
    stages += [about["matrix"]] if "matrix" in about else []
    assert about["images_seen"] == sum(stage["steps"] * stage["batch"] for stage in stages)
    assert len(about["data"]["sha256"]) == 64 and about["data"]["images"] > 0
    assert about["half_precision_cost"] < 1e-3
    x = torch.randn(2, *about["shape"])
    assert network(x, 1.0).shape == x.shape


@pytest.mark.parametrize("name", [n for n in NETWORKS if n.startswith(("unet", "dit"))])
def test_networks_beat_the_wiener_filter_where_it_matters(name):
    held_out = zoo.card(name)["held_out"]
    for sigma, network, wiener in zip(*(held_out[k] for k in ("sigma", "network", "wiener"))):
        bound = 1.0 if 0.1 <= sigma <= 3 else 1.02
        assert network < bound * wiener, f"at sigma {sigma}"


@pytest.mark.parametrize("name", [n for n in NETWORKS if n.endswith("/fashion-mnist")])
def test_the_losses_on_the_card_can_be_measured_again(name):
    """On the first shipped test images, a part of those the card's losses were measured on."""
    held_out = zoo.card(name)["held_out"]
    images = load("fashion-mnist", "test", n=200).images
    sigmas = [0.1, 1.24, 3.44]
    expected = [held_out["network"][held_out["sigma"].index(sigma)] for sigma in sigmas]
    with torch.no_grad():
        found = held_out_loss(zoo.load(name), images, sigmas, seed=5)
    assert found == pytest.approx(expected, rel=0.12)


@pytest.mark.parametrize("path", SIDES, ids=lambda path: path.name)
def test_stored_sides_belong_to_the_network_and_were_chosen_by_the_stored_similarities(path):
    name = path.relative_to(zoo.ZOO).as_posix().removesuffix(".sides.json")
    about = json.loads(path.read_text())
    assert about["network"] == name
    assert about["sha256"] == zoo.card(name)["sha256"], "the network changed: measure again"
    for method in about["methods"]:
        found = zoo.sides(name, method)
        assert found.sigmas == ddpm_sigmas(10).tolist()
        assert found.similarity.shape == (10, len(found.sides))
        for sigma, best, row in zip(found.sigmas, found.best, found.similarity):
            assert found(sigma) == best
            assert row[found.sides.index(best)] >= row.max() - 1e-6
        assert found(6.17) > found(0.342) >= 1


def test_stored_sides_can_be_measured_again():
    """PSPC's at one noise level, with fewer images: a valley of the same place."""
    name, sigma = "unet/fashion-mnist", 0.724
    stored = zoo.sides(name, "pspc")
    train, test_set = load("fashion-mnist", n=500), load("fashion-mnist", "test", n=8)
    found = calibrate(
        zoo.load(name),
        lambda side: PSPCDenoiser(train, side),
        test_set.images,
        sides=[1, stored(sigma), 28],
        sigmas=[sigma],
    )
    assert found.best == [stored(sigma)]


def test_unknown_sides_are_refused():
    with pytest.raises(ValueError, match="no sides of 'lss' measured on unet/fashion-mnist; there"):
        zoo.sides("unet/fashion-mnist", "lss")
    with pytest.raises(ValueError, match="no sides of 'ls' measured on dit/fashion-mnist"):
        zoo.sides("dit/fashion-mnist", "ls")
    with pytest.raises(ValueError, match="no network 'unet/fashon-mnist'. Did you mean"):
        zoo.sides("unet/fashon-mnist", "ls")


@pytest.mark.parametrize(
    "name, promised",
    [("fashion-mnist", 0.9), ("mnist", 0.98), ("cifar10-gray", 0.6), ("cifar10", 0.6)],
)
def test_the_classifiers_are_as_often_right_as_promised(name, promised):
    about = zoo.card(f"classifier/{name}")
    assert about["test_accuracy"] >= promised
    measured_on = about["data"]["name"]
    data = measured_on if available(measured_on) else measured_on.removesuffix("-full")
    if not available(data):
        pytest.skip(f"needs the test images of {data}")
    model = zoo.load(f"classifier/{name}")
    test_set = load(data, "test", gray=about["shape"][0] == 1)
    with torch.no_grad():
        answers = torch.cat([model(part).argmax(1) for part in test_set.images.split(500)])
    accuracy = (answers == test_set.labels).float().mean().item()
    assert accuracy >= promised
    if data == measured_on:  # fewer images ship
        assert accuracy == pytest.approx(about["test_accuracy"], abs=2e-3)


def measured(name: str, key: str) -> dict:
    """What experiments/measure_zoo.py put on a card, if it is of the weights that ship."""
    found = zoo.card(name)[key]
    for weights, sha256 in found["weights"].items():
        assert zoo.card(weights)["sha256"] == sha256, "run experiments/measure_zoo.py again"
    return found


def test_the_linear_denoiser_is_near_the_wiener_filter():
    found = measured("linear/fashion-mnist", "wiener")
    near = {s: d for s, d in zip(found["sigma"], found["distance"]) if s >= 0.3}
    assert len(near) >= 10 and max(near.values()) < LINEAR_DISTANCE, near


@pytest.mark.skipif(not available("fashion-mnist-full"), reason="needs all 60,000 images")
def test_the_distance_on_the_card_can_be_measured_again():
    found = measured("linear/fashion-mnist", "wiener")
    wiener = PCA.fit(load("fashion-mnist-full")).wiener_matrix(1.24)
    units, zero = torch.eye(784).view(784, 1, 28, 28), torch.zeros(1, 1, 28, 28)
    network = zoo.load("linear/fashion-mnist")
    with torch.no_grad():
        matrix = (network(units, 1.24) - network(zero, 1.24)).flatten(1).T
    expected = found["distance"][found["sigma"].index(1.24)]
    assert ((matrix - wiener).norm() / wiener.norm()).item() == pytest.approx(expected, abs=1e-3)


def test_networks_of_disjoint_halves_agree_more_than_each_with_the_optimum_of_its_half():
    found = measured(HALVES[0], "halves")
    even, odd = (zoo.card(name)["data"] for name in HALVES)
    assert (even["part"], odd["part"]) == ([0, None, 2], [1, None, 2])
    rows = zip(*(found[k] for k in ("sigma", "networks", "even_optimal", "odd_optimal")))
    for sigma, networks, *optima in rows:
        assert networks > max(optima), f"at sigma {sigma}"
    assert min(found["sigma"]) <= 0.3 and max(found["sigma"]) >= 3


def test_the_agreement_on_the_card_can_be_measured_again():
    found = measured(HALVES[0], "halves")
    clean = load("fashion-mnist", "test", n=found["images"]).images
    x = clean + 1.24 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, other = (zoo.load(name)(x, 1.24) for name in HALVES)
    agreement = (r2(one, other).mean() + r2(other, one).mean()).item() / 2
    expected = found["networks"][found["sigma"].index(1.24)]
    assert agreement == pytest.approx(expected, abs=1e-3)


def test_names_with_a_dot_are_kept_whole(tmp_path):
    about = zoo.card("classifier/fashion-mnist")
    network = zoo.load("classifier/fashion-mnist")
    for rate in ("0.001", "0.003"):
        zoo.save(f"a/rate-{rate}", network, about | {"name": rate}, folder=tmp_path)
    assert zoo.names(folder=tmp_path) == ["a/rate-0.001", "a/rate-0.003"]
    assert zoo.card("a/rate-0.001", folder=tmp_path)["name"] == "0.001"
    zoo.load("a/rate-0.003", folder=tmp_path)
