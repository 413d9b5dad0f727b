"""Metrics against scikit-learn and SciPy, intervals against their nominal coverage."""

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.metrics import mean_squared_error, r2_score
from sklearn.neighbors import NearestNeighbors

from locality.metrics import (
    bootstrap_interval,
    copy_ratio,
    mse,
    nearest_images,
    pearson,
    r2,
    share_removed,
)


@pytest.fixture
def pairs(fashion_test, noised):
    """20 images, and another set that resembles them: noised, darker, with less contrast."""
    truth = fashion_test.images
    return 0.8 * noised(truth, 0.3) - 0.1, truth


def test_r2_is_scikit_learns_image_by_image(pairs):
    x, y = pairs
    expected = [
        r2_score(b.flatten().double(), a.flatten().double()) for a, b in zip(x, y, strict=True)
    ]
    np.testing.assert_allclose(r2(x, y), expected, atol=1e-9)
    swapped = r2(y, x)
    assert (swapped - r2(x, y)).abs().min() > 1e-3, "the second image is the one to be predicted"


def test_r2_of_known_predictions(pairs):
    _, y = pairs
    assert torch.equal(r2(y, y), torch.ones(20, dtype=torch.float64))
    mean = y.mean((1, 2, 3), keepdim=True).expand_as(y)
    torch.testing.assert_close(r2(mean, y), torch.zeros(20).double(), atol=1e-6, rtol=0)
    assert (r2(-y, y) < 0).all()


def test_mse_is_scikit_learns_image_by_image(pairs):
    x, y = pairs
    expected = [
        mean_squared_error(b.flatten().double(), a.flatten().double())
        for a, b in zip(x, y, strict=True)
    ]
    np.testing.assert_allclose(mse(x, y), expected, atol=1e-12)


def test_pearson_is_scipys_and_blind_to_brightness_and_contrast(pairs):
    x, y = pairs
    expected = [
        scipy.stats.pearsonr(a.flatten().double(), b.flatten().double()).statistic
        for a, b in zip(x, y, strict=True)
    ]
    np.testing.assert_allclose(pearson(x, y), expected, atol=1e-9)
    torch.testing.assert_close(pearson(0.3 * y + 0.2, y), torch.ones(20).double())
    assert (r2(0.3 * y + 0.2, y) < 0.9).all(), "r2 is not"


def test_pairs_of_different_shape_are_refused():
    for metric in (r2, mse, pearson):
        with pytest.raises(ValueError, match=r"two batches of one shape, got .*2, 1.*3, 1"):
            metric(torch.zeros(2, 1, 4, 4), torch.zeros(3, 1, 4, 4))
        with pytest.raises(ValueError, match="two batches of one shape"):
            metric(torch.zeros(4), torch.zeros(4))


# --- bootstrap -----------------------------------------------------------------------------------


def test_bootstrap_interval_is_scipys_percentile_interval():
    values = torch.from_numpy(np.random.default_rng(0).gamma(2.0, size=40))
    for level in (0.95, 0.8):
        theirs = scipy.stats.bootstrap(
            (values.numpy(),),
            np.mean,
            confidence_level=level,
            method="percentile",
            n_resamples=20_000,
            rng=np.random.default_rng(1),
        ).confidence_interval
        ours = bootstrap_interval(values, level=level, resamples=20_000)
        # Two Monte Carlo answers: they agree to a small part of the interval's width.
        np.testing.assert_allclose(ours, theirs, atol=0.03 * (theirs.high - theirs.low))


def test_bootstrap_interval_of_another_statistic():
    values = torch.from_numpy(np.random.default_rng(0).exponential(size=101))
    low, high = bootstrap_interval(values, statistic=lambda v: v.median(-1).values)
    theirs = scipy.stats.bootstrap(
        (values.numpy(),), np.median, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    np.testing.assert_allclose((low, high), theirs, atol=0.15 * (theirs.high - theirs.low))
    assert low < values.median().item() < high


def test_bootstrap_intervals_cover_the_truth_as_often_as_they_say():
    # 400 data sets whose mean is known. 95 % intervals of 60 values: 400 draws of a coverage of
    # .945 have a standard error of .011. Narrower intervals cover less.
    data = torch.randn(400, 60, generator=torch.Generator().manual_seed(0)).double() + 3
    coverage = {}
    for level in (0.95, 0.5):
        intervals = [
            bootstrap_interval(v, level=level, resamples=400, seed=i) for i, v in enumerate(data)
        ]
        coverage[level] = np.mean([low < 3 < high for low, high in intervals])
    print("coverage", coverage)
    assert coverage[0.95] == pytest.approx(0.94, abs=0.035)
    assert coverage[0.5] == pytest.approx(0.49, abs=0.08)


def test_bootstrap_interval_is_seeded_and_narrows_with_more_values():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0))
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)
    (low, high), (few_low, few_high) = bootstrap_interval(values), bootstrap_interval(values[:25])
    assert 2.5 < (few_high - few_low) / (high - low) < 6, "four times wider for 1/16 of the values"


@pytest.mark.parametrize("values", [torch.ones(1), torch.ones(3, 3), torch.tensor(1.0)])
def test_bootstrap_of_no_vector_is_refused(values):
    with pytest.raises(ValueError, match="vector of at least 2 values, got shape"):
        bootstrap_interval(values)


# --- nearest images ------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 7, 512, 2000])
def test_nearest_images_are_scikit_learns_for_any_chunk(fashion, fashion_test, chunk):
    images, k = fashion.images[:600], 3
    search = NearestNeighbors(n_neighbors=k, algorithm="brute")
    search.fit(images.flatten(1).double().numpy())
    queries = fashion_test.images[:10]
    expected, places = search.kneighbors(queries.flatten(1).double().numpy())
    distances, index = nearest_images(queries, images, k=k, chunk=chunk)
    np.testing.assert_allclose(distances, expected, rtol=1e-5)
    assert np.array_equal(index, places)


def test_nearest_to_a_training_image_is_itself(fashion):
    distances, index = nearest_images(fashion.images[100:110], fashion, k=2)
    assert torch.equal(index[:, 0], torch.arange(100, 110))
    assert distances[:, 0].max() < 1e-5 and distances[:, 1].min() > 0.1


def test_a_copy_of_an_image_that_occurs_twice_is_a_copy(fashion):
    twice = torch.cat([fashion.images[:400]] * 2)
    assert torch.equal(copy_ratio(fashion.images[:64], twice), torch.zeros(64))


def test_copy_ratio_tells_copies_from_new_images(fashion, fashion_test, noised):
    copies = copy_ratio(noised(fashion.images[:10], 0.01), fashion)
    fresh = copy_ratio(fashion_test.images[:10], fashion)
    assert copies.max() < 1 / 3 < fresh.min()
    assert fresh.max() <= 1
    distances = torch.cdist(
        fashion_test.images[:10].flatten(1).double(), fashion.images.flatten(1).double()
    )
    two = distances.sort(1).values[:, :2]
    torch.testing.assert_close(fresh.double(), two[:, 0] / two[:, 1], rtol=1e-5, atol=0)


def test_searches_that_cannot_be_made_are_refused(fashion, tiny):
    with pytest.raises(ValueError, match="k must lie between 1 and the 60 images, got 61"):
        nearest_images(tiny.images[:2], tiny, k=61)
    with pytest.raises(ValueError, match="k must lie between 1 and the 60 images, got 0"):
        nearest_images(tiny.images[:2], tiny, k=0)
    with pytest.raises(ValueError, match="k must lie between 1 and the 1 images, got 2"):
        copy_ratio(tiny.images[:2], tiny.images[:1])
    with pytest.raises(ValueError, match=r"expected shape \(B, 1, 6, 6\), got \(2, 1, 28, 28\)"):
        nearest_images(fashion.images[:2], tiny)
    with pytest.raises(ValueError, match="NaN or infinite"):
        copy_ratio(torch.full((2, 1, 6, 6), float("nan")), tiny)


def test_the_share_removed_is_that_of_the_means_and_seeds_stay_paired():
    rng = np.random.default_rng(0)
    theirs = 1 - rng.uniform(0.1, 2, 40)  # hard seeds and easy ones
    ours = torch.tensor(1 - 0.7 * (1 - theirs))  # on every seed 30 % less
    share, low, high = share_removed(ours, torch.tensor(theirs))
    assert (share, low, high) == pytest.approx((0.3, 0.3, 0.3))
    assert share_removed(torch.cat([ours, torch.zeros(5)]), torch.tensor(theirs))[0] == share
    noisy = ours + torch.tensor(rng.normal(0, 0.1, 40))
    share, low, high = share_removed(noisy, torch.tensor(theirs))
    assert share == pytest.approx(1 - (1 - noisy).mean().item() / (1 - theirs).mean())
    assert low < share < high and high - low > 0.02
