"""The shipped principal components: whole, orthonormal, as their cards say, and of real images."""

import hashlib
import json

import pytest
import torch

from locality.data import available, load
from locality.stats import BASES, PCA, load_basis

CARDS = {path.stem: json.loads(path.read_text()) for path in sorted(BASES.glob("*.json"))}


def test_all_are_there_and_small():
    assert set(CARDS) == {
        "afhq-cat",
        "celeba",
        "celeba-gray",
        "cifar10",
        "cifar10-gray",
        "mnist",
        "olivetti",
    }
    assert {path.stem for path in BASES.glob("*.safetensors")} == set(CARDS)
    assert sum(path.stat().st_size for path in BASES.iterdir()) < 6.1e6


@pytest.mark.parametrize("name", CARDS)
def test_card(name):
    path, card = BASES / f"{name}.safetensors", CARDS[name]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == card["sha256"]
    pca = load_basis(name)
    kept = card["eigenvectors"]
    assert list(pca.shape) == card["shape"] and pca.count == card["images"]
    pixels = pca.mean.numel()
    assert pca.eigenvalues.shape == (pixels,) and pca.eigenvectors.shape == (pixels, kept)
    torch.testing.assert_close(
        pca.eigenvectors.T @ pca.eigenvectors, torch.eye(kept), atol=2e-3, rtol=0
    )
    assert (pca.eigenvalues.diff() <= 0).all() and pca.mean.abs().max() <= 1
    share = pca.eigenvalues[:kept].sum() / pca.eigenvalues.sum()
    assert share.item() == pytest.approx(card["variance_kept"], abs=1e-5) and share > 0.9


@pytest.mark.parametrize("name", CARDS)
def test_filter_error_is_small_where_the_noise_is_large(name):
    """What was left out matters at low noise only, and the card says how much."""
    errors = [error["row_median"] for error in CARDS[name]["wiener_error"].values()]
    assert len(errors) == 10
    assert max(errors[:5]) < 0.1, "sigma 60.8 to 3.4"


@pytest.mark.parametrize("name", ["olivetti", "mnist"])
def test_the_same_from_the_images(name):
    source = CARDS[name]["data"]
    if not available(source):
        pytest.skip(f"{source} is not on this machine")
    images = load(source, **CARDS[name]["options"])
    pixels = ((images.images + 1) * 127.5).round().to(torch.uint8)
    if hashlib.sha256(pixels.numpy().tobytes()).hexdigest() != CARDS[name]["images_sha256"]:
        pytest.skip(f"{source} on this machine is another copy")
    pca, shipped = PCA.fit(images), load_basis(name)
    torch.testing.assert_close(shipped.mean, pca.mean, atol=1e-6, rtol=0)
    torch.testing.assert_close(shipped.eigenvalues, pca.eigenvalues, atol=1e-5, rtol=1e-5)
    # The leading subspace, whatever the signs: cosines of the angles between the two are all 1.
    cosines = torch.linalg.svdvals(shipped.eigenvectors[:, :20].T @ pca.eigenvectors[:, :20])
    torch.testing.assert_close(cosines, torch.ones(20), atol=1e-3, rtol=0)
