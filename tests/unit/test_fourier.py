"""Components against a Fourier basis: exact for cosine bases, blind to direction, bad input."""

import numpy as np
import pytest
import scipy.fft
import torch

from locality.data import load
from locality.stats import PCA, radial_power, single_frequency_share

SIDE = 12
FREQUENCY = np.hypot(*np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij"))


def basis(power: np.ndarray, channels: int = 1) -> PCA:
    """The PCA of images whose DCT-II coefficients are independent, of variances `power`."""
    waves = scipy.fft.idctn(
        np.eye(SIDE**2).reshape(-1, SIDE, SIDE), axes=(1, 2), norm="ortho"
    ).reshape(-1, SIDE**2)
    covariance = torch.from_numpy(waves.T @ (power.ravel()[:, None] * waves))
    covariance = torch.block_diag(*[covariance] * channels)
    mean = torch.zeros(len(covariance))
    return PCA.from_covariance(mean, covariance, shape=(channels, SIDE, SIDE), count=100)


@pytest.fixture(scope="module")
def distinct() -> PCA:
    """Every cosine with a variance of its own, falling with the frequency."""
    ranks = np.argsort(np.argsort(FREQUENCY.ravel(), kind="stable"))
    return basis(0.9 ** ranks.reshape(SIDE, SIDE))


def test_cosines_have_a_share_of_one(distinct):
    torch.testing.assert_close(single_frequency_share(distinct, 60), torch.ones(60))


def test_mixing_the_directions_of_a_frequency_costs_nothing():
    # Variances that depend on the radius alone: eigh returns arbitrary mixtures of, for instance,
    # the cosines (3, 4), (4, 3), (5, 0) and (0, 5).
    share = single_frequency_share(basis(1 / (1 + FREQUENCY) ** 2), 50)
    torch.testing.assert_close(share, torch.ones(50), atol=1e-5, rtol=0)


def test_mixing_frequencies_costs_its_share(distinct):
    # One component that is half cosine 1 (0, 1) and half the cosine of radius sqrt(50).
    vectors, side = distinct.eigenvectors, SIDE
    waves = scipy.fft.dctn(vectors.T.reshape(-1, side, side).numpy(), axes=(1, 2), norm="ortho")
    places = np.abs(waves).reshape(-1, side**2).argmax(1)
    low, high = (int(np.flatnonzero(places == p)[0]) for p in (1, 5 * side + 5))
    mixed = (vectors[:, low] * 0.8 + vectors[:, high] * 0.6)[:, None]
    pca = PCA(distinct.mean, distinct.eigenvalues, mixed, distinct.shape, 100)
    assert single_frequency_share(pca, 1).item() == pytest.approx(0.64, abs=1e-4)


def test_noise_has_a_small_share():
    # Components of white noise have no frequency: a ring of width one holds under a sixth of the
    # 144 cosines, and the best of many rings a little more.
    noise = torch.rand(3000, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    share = single_frequency_share(PCA.fit(noise), 144)
    assert 0.1 < share.mean() < 0.25
    assert share.max() < 0.5


def test_photographs_are_nearer_to_waves_than_clothes():
    photos = PCA.fit(load("photos", size=16, gray=True, n=6000))
    clothes = PCA.fit(load("fashion-mnist", size=16, n=6000))
    waves, other = (single_frequency_share(p, 32).mean() for p in (photos, clothes))
    assert waves > 1.5 * other


def test_radial_power_is_the_variance_of_each_ring():
    power = np.random.default_rng(0).uniform(0.1, 1, (SIDE, SIDE))
    frequencies, means = radial_power(basis(power))
    expected = [power[FREQUENCY.round() == f].mean() for f in range(SIDE)]
    assert frequencies.tolist() == list(range(SIDE))
    np.testing.assert_allclose(means, expected, rtol=1e-5)


def test_radial_power_counts_what_a_truncated_basis_shares_out():
    # The cosines beyond the kept components have one variance: truncation changes nothing.
    power = np.where(FREQUENCY < 4.5, 1 / (1 + FREQUENCY), 0.01)
    complete = basis(power)
    kept = complete.truncate(int((FREQUENCY < 4.5).sum()))
    torch.testing.assert_close(radial_power(kept)[1], radial_power(complete)[1])


def test_channels_are_summed_in_shares_and_averaged_in_power():
    power = 1 / (1 + FREQUENCY) ** 2
    grey, colour = basis(power), basis(power, channels=3)
    torch.testing.assert_close(radial_power(colour)[1], radial_power(grey)[1])
    share = single_frequency_share(colour, 30)  # a component may mix the equal channels
    torch.testing.assert_close(share, torch.ones(30), atol=1e-5, rtol=0)


def test_bad_input_is_refused(distinct):
    for k in (0, 145):
        with pytest.raises(ValueError, match=f"between 1 and 144, got {k}"):
            single_frequency_share(distinct, k)
    flat = PCA(torch.zeros(6), torch.ones(6), torch.eye(6), (1, 2, 3), 10)
    for function in (radial_power, lambda pca: single_frequency_share(pca, 2)):
        with pytest.raises(ValueError, match="square images, got 2 x 3"):
            function(flat)
