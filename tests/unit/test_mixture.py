"""The mixture denoisers against brute force in float64, and at the limits that are known.

The oracles come from scipy (Gaussian densities, matrix functions) and scikit-learn (expectation
maximisation) and share no code with the library.
"""

import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy.special import softmax
from scipy.stats import multivariate_normal
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from locality.denoisers import (
    KernelMixtureDenoiser,
    OptimalDenoiser,
    PatchMixtureDenoiser,
    WienerDenoiser,
    WienerMixtureDenoiser,
    masks,
)
from locality.denoisers.mixture import EM_SIGMA
from locality.sensitivity import autograd_rows
from locality.stats import PCA

SIGMAS = [12.0, 2.0, 0.724, 0.1]


def close(got: Tensor, expected: Tensor, tolerance: float, what: object = "") -> None:
    error = (got.double() - expected.double()).abs().max().item()
    assert error <= tolerance, f"{what}: largest error {error:.2e}, allowed {tolerance:.0e}"


def posterior_mean(
    x: np.ndarray, weights: np.ndarray, means: np.ndarray, covariances: np.ndarray, sigma: float
) -> np.ndarray:
    """E[x0 | x] for one x (D,) and a mixture of Gaussians, by Bayes' rule, in float64."""
    noise = sigma**2 * np.eye(len(x))
    logits = [
        np.log(p) + multivariate_normal(m, s + noise).logpdf(x)
        for p, m, s in zip(weights, means, covariances)
    ]
    answers = [m + s @ np.linalg.solve(s + noise, x - m) for m, s in zip(means, covariances)]
    return softmax(logits) @ np.array(answers)


def in_pixels(model: WienerMixtureDenoiser) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights (K,), means (K, D) and covariances (K, D, D) of a fitted mixture, from its parts."""
    pca, rank = model.pca, model.means.shape[1]
    basis = pca.eigenvectors.double().numpy()
    means, covariances = [], []
    for mean, variances, rotation in zip(model.means, model.variances, model.rotations):
        inner = (rotation.double() * variances.double()) @ rotation.double().T
        rest = np.diag(pca.eigenvalues[rank:].double())
        covariances.append(basis @ scipy.linalg.block_diag(inner, rest) @ basis.T)
        means.append(pca.mean.double().numpy() + basis[:, :rank] @ mean.double().numpy())
    return model.log_weights.double().exp().numpy(), np.array(means), np.array(covariances)


@pytest.fixture(scope="module")
def tiny_pca(tiny) -> PCA:
    return PCA.fit(tiny)


@pytest.fixture(scope="module")
def fitted(tiny, tiny_pca) -> WienerMixtureDenoiser:
    return WienerMixtureDenoiser.fit(tiny, tiny_pca, components=4, rank=20, pseudo_count=10)


# --- many narrow Gaussians -----------------------------------------------------------------------


@pytest.mark.parametrize("width", [0.0, 0.2, 0.7, 1.0])
def test_kernel_mixture_is_the_brute_force_posterior_mean(tiny, tiny_pca, noised, width):
    flat = tiny.images.flatten(1).double().numpy()
    mean, covariance = flat.mean(0), np.cov(flat.T)
    centres = mean + np.sqrt(1 - width**2) * (flat - mean)
    covariances = [width**2 * covariance] * len(flat)
    for sigma in SIGMAS:
        x = noised(tiny.images[:3], sigma)
        answer = KernelMixtureDenoiser(tiny, tiny_pca, width=width)(x, sigma)
        assert answer.shape == x.shape and answer.dtype == torch.float32
        expected = [
            posterior_mean(q, np.full(60, 1 / 60), centres, covariances, sigma)
            for q in x.flatten(1).double().numpy()
        ]
        close(answer.flatten(1), torch.tensor(np.array(expected)), 1e-5, sigma)


def test_kernel_mixture_has_the_optimal_denoiser_and_the_wiener_filter_at_its_ends(
    fashion, fashion_pca, fashion_test, noised, official_sigmas
):
    narrow = KernelMixtureDenoiser(fashion, fashion_pca, width=0)
    wide = KernelMixtureDenoiser(fashion, fashion_pca, width=1)
    optimal, wiener = OptimalDenoiser(fashion), WienerDenoiser(fashion_pca)
    for sigma in official_sigmas:
        x = noised(fashion_test.images[:3], sigma)
        close(narrow(x, sigma), optimal(x, sigma), 1e-4, f"width 0, sigma {sigma:.3f}")
        close(wide(x, sigma), wiener(x, sigma), 1e-4, f"width 1, sigma {sigma:.3f}")


def test_kernel_mixture_does_not_depend_on_chunks(small, small_pca, noised):
    x = noised(small.images[:4], 1.24)
    whole = KernelMixtureDenoiser(small, small_pca, width=0.3, chunk=520)(x, 1.24)
    close(KernelMixtureDenoiser(small, small_pca, width=0.3, chunk=7)(x, 1.24), whole, 1e-6)


def test_kernel_mixture_tells_what_is_wrong(small, small_pca):
    for width in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="width must lie between 0 and 1"):
            KernelMixtureDenoiser(small, small_pca, width=width)
    with pytest.raises(ValueError, match="all 196 eigenvectors"):
        KernelMixtureDenoiser(small, small_pca.truncate(50), width=0.3)


# --- a few wide Gaussians ------------------------------------------------------------------------


@pytest.mark.parametrize("window", [None, "ones"])
def test_without_a_window_it_is_the_exact_posterior_mean_of_the_mixture(
    tiny, fitted, noised, window
):
    if window == "ones":
        fitted = fitted.with_window(lambda sigma: masks.full(tiny.shape))
    weights, means, covariances = in_pixels(fitted)
    assert len(weights) == 4 and abs(weights.sum() - 1) < 1e-6
    for sigma in SIGMAS:
        x = noised(tiny.images[:4], sigma)
        expected = [
            posterior_mean(q, weights, means, covariances, sigma)
            for q in x.flatten(1).double().numpy()
        ]
        close(fitted(x, sigma).flatten(1), torch.tensor(np.array(expected)), 2e-4, sigma)


@pytest.mark.parametrize("window", [None, "random"])
def test_one_component_is_the_wiener_filter(small, small_pca, noised, window):
    if window == "random":
        weights = torch.rand(196, 196, generator=torch.Generator().manual_seed(0))
        window = lambda sigma: weights  # noqa: E731
    model = WienerMixtureDenoiser.fit(
        small, small_pca, components=1, rank=196, pseudo_count=1, window=window
    )
    for sigma in SIGMAS:
        x = noised(small.images[:4], sigma)
        # k-means divides by N and PCA by N - 1: the covariances differ by 1 in 520.
        close(model(x, sigma), WienerDenoiser(small_pca)(x, sigma), 2e-3, sigma)


def test_the_window_weighs_the_evidence_of_whitened_pixels(tiny, fitted, noised):
    # The formula of the docstring with scipy's matrix square root and logarithm.
    weights, means, covariances = in_pixels(fitted)
    window = torch.rand(36, 36, generator=torch.Generator().manual_seed(1))
    model = fitted.with_window(lambda sigma: window)
    for sigma in SIGMAS[:3]:
        x = noised(tiny.images[:3], sigma)
        expected = torch.zeros(3, 36, dtype=torch.float64)
        for i, q in enumerate(x.flatten(1).double().numpy()):
            logits, answers = [], []
            for p, m, s in zip(weights, means, covariances):
                total = s + sigma**2 * np.eye(36)
                root = scipy.linalg.inv(scipy.linalg.sqrtm(total).real)
                evidence = (root @ (q - m)) ** 2 + np.diag(scipy.linalg.logm(total).real)
                logits.append(np.log(p) - window.double().numpy() @ evidence / 2)
                answers.append(m + s @ np.linalg.solve(total, q - m))
            share = softmax(np.array(logits), axis=0)  # (K, D)
            expected[i] = torch.from_numpy((share * np.array(answers)).sum(0))
        close(model(x, sigma).flatten(1), expected, 1e-4, sigma)


def test_a_window_is_exact_for_independent_pixels():
    # Diagonal covariances: the posterior given the pixels of the window, by Bayes' rule.
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(3, 4, generator=generator)
    variances = torch.rand(3, 4, generator=generator) + 0.1
    weights = torch.tensor([0.5, 0.3, 0.2])
    pca = PCA(torch.zeros(4), torch.ones(4), torch.eye(4), (1, 2, 2), 9)
    window = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 1, 1], [0, 0, 0, 1]]).float()
    model = WienerMixtureDenoiser(
        pca, weights, means, torch.diag_embed(variances), window=lambda sigma: window
    )
    x, sigma = torch.randn(1, 1, 2, 2, generator=generator), 0.6
    answer = model(x, sigma).flatten()
    for m in range(4):
        seen = window[m].bool().numpy()
        small = posterior_mean(
            x.flatten().double().numpy()[seen],
            weights.double().numpy(),
            means.double().numpy()[:, seen],
            np.array([np.diag(v[seen]) for v in variances.double().numpy()]),
            sigma,
        )
        assert answer[m].item() == pytest.approx(small[seen[:m].sum()], abs=1e-5)


def test_windows_cut_the_ties_between_distant_pixels():
    # Two kinds of image; the left half looks like one, the right half like the other. As a whole
    # neither fits; with windows each half follows its own kind.
    left, right = torch.tensor([1.0, 1, 0, 0]), torch.tensor([0.0, 0, 1, 1])
    means = torch.stack([left + right, -left - right])
    pca = PCA(torch.zeros(4), torch.ones(4), torch.eye(4), (1, 1, 4), 9)
    weights, narrow = torch.tensor([0.5, 0.5]), 0.01 * torch.eye(4).expand(2, 4, 4)
    x = (left - right).view(1, 1, 1, 4)
    halves = torch.outer(left, left) + torch.outer(right, right)
    local = WienerMixtureDenoiser(pca, weights, means, narrow, window=lambda sigma: halves)
    close(local(x, 0.5).flatten(), left - right, 0.05)
    whole = WienerMixtureDenoiser(pca, weights, means, narrow)(x, 0.5)
    assert whole.abs().max() < 0.1


def test_fit_gathers_the_moments_of_the_clusters(tiny):
    # Three sets at a tenth of the contrast, far apart in brightness: k-means cannot miss them.
    faint = tiny.images / 10
    groups = (faint - 0.8, faint, faint[:30] + 0.8)
    images = torch.cat(groups)
    pca = PCA.fit(images)
    model = WienerMixtureDenoiser.fit(images, pca, components=3, rank=36, pseudo_count=1e-6)
    weights, means, covariances = in_pixels(model)
    order = np.argsort(means.mean(1))
    assert weights[order] == pytest.approx([0.4, 0.4, 0.2], abs=1e-5)
    for c, group in zip(order, groups):
        flat = group.flatten(1).double().numpy()
        np.testing.assert_allclose(means[c], flat.mean(0), atol=1e-5)
        np.testing.assert_allclose(covariances[c], np.cov(flat.T, bias=True), atol=1e-5)


def test_fit_shrinks_small_clusters_more(small, small_pca):
    # With many pseudo-images all covariances are that within clusters; the mixture's covariance,
    # within plus between, is that of the data.
    model = WienerMixtureDenoiser.fit(small, small_pca, components=5, rank=196, pseudo_count=1e12)
    weights, means, covariances = in_pixels(model)
    np.testing.assert_allclose(covariances[0], covariances[4], atol=1e-5)
    spread = means - small_pca.mean.double().numpy()
    whole = covariances[0] + (weights[:, None] * spread).T @ spread
    np.testing.assert_allclose(whole, small_pca.covariance().double() * 519 / 520, atol=1e-4)


@pytest.mark.parametrize("rounds", [1, 4])
def test_rounds_are_those_of_expectation_maximisation(small, small_pca, rounds):
    # scikit-learn knows no pseudo-images; its `reg_covar` is our noise. Both start from k-means.
    fit = {"components": 4, "rank": 8, "pseudo_count": 1e-9}
    start = WienerMixtureDenoiser.fit(small, small_pca, **fit)
    own = start.rotations.double()
    noise = EM_SIGMA**2
    precisions = (own / (start.variances.double() + noise)[:, None]) @ own.mT
    theirs = GaussianMixture(
        4,
        reg_covar=noise,
        tol=0,
        max_iter=rounds,
        weights_init=start.log_weights.double().softmax(0).numpy(),  # float32's sum is not quite 1
        means_init=start.means.double().numpy(),
        precisions_init=precisions.numpy(),
    )
    y = (small.images.flatten(1) - small_pca.mean).double() @ small_pca.eigenvectors[:, :8].double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # after a few rounds it has not
        theirs.fit(y.numpy())
    ours = WienerMixtureDenoiser.fit(small, small_pca, **fit, rounds=rounds)
    close(ours.log_weights.exp(), torch.from_numpy(theirs.weights_), 1e-4)
    close(ours.means, torch.from_numpy(theirs.means_), 1e-3)
    rotations = ours.rotations.double()
    covariances = (rotations * ours.variances.double()[:, None]) @ rotations.mT
    close(covariances + noise * torch.eye(8), torch.from_numpy(theirs.covariances_), 1e-3)
    assert (ours.means - start.means).abs().max() > 0.01, "it moves"


def test_images_of_few_pixels_make_a_mixture(tiny, noised):
    images = tiny.images[:, :, :5, :5]  # 25 components, fewer than k-means would look at
    fit = {"components": 3, "rank": 20, "pseudo_count": 5}
    model = WienerMixtureDenoiser.fit(images, PCA.fit(images), **fit)
    x = noised(images[:4], 0.3)
    assert (model(x, 0.3) - images[:4]).square().mean() < (x - images[:4]).square().mean() / 2


def test_the_same_seed_gives_the_same_mixture(small, small_pca, noised):
    fit = {"components": 6, "rank": 50, "pseudo_count": 20}
    first, second, other = (
        WienerMixtureDenoiser.fit(small, small_pca, **fit, seed=seed) for seed in (3, 3, 4)
    )
    x = noised(small.images[:4], 1.24)
    assert torch.equal(first(x, 1.24), second(x, 1.24))
    assert not torch.equal(first(x, 1.24), other(x, 1.24))


def test_the_jacobian_by_autograd_is_that_of_finite_differences(fitted, noised, tiny):
    model = fitted.with_window(lambda sigma: masks.square(tiny.shape, 3))
    x, sigma, step = noised(tiny.images[:2], 0.724), 0.724, 1e-2
    rows = autograd_rows(model, x, sigma, [14])[:, 0]  # (2, 36)
    for n in (0, 8, 14, 20):
        nudge = torch.zeros(36)
        nudge[n] = step
        nudge = nudge.view(tiny.shape)
        slope = (model(x + nudge, sigma) - model(x - nudge, sigma)).flatten(1)[:, 14] / (2 * step)
        close(rows[:, n], slope, 2e-3, n)


def test_memory_does_not_grow_with_the_number_of_components(measured_memory):
    few, many = measured_memory("""
        import torch
        from locality.denoisers import WienerMixtureDenoiser
        from locality.stats import PCA
        torch.set_num_threads(1)
        pca = PCA(torch.zeros(784), torch.ones(784), torch.eye(784), (1, 28, 28), 9)
        x = torch.zeros(512, 1, 28, 28)
        for count in (2, 200):
            same = torch.full((count,), 1 / count)
            means, covariances = torch.zeros(count, 8), torch.eye(8).expand(count, 8, 8)
            window = torch.ones(784, 784)
            WienerMixtureDenoiser(pca, same, means, covariances, window=lambda s: window)(x, 1.0)
            print(peak())
    """)
    # All answers of 200 components together would take 320 MB.
    assert many - few < 40


def test_mixture_tells_what_is_wrong(small, small_pca):
    weights, means = torch.tensor([0.5, 0.5]), torch.zeros(2, 3)
    covariances = torch.eye(3).expand(2, 3, 3)
    with pytest.raises(ValueError, match="should be"):
        WienerMixtureDenoiser(small_pca, weights, means, covariances[:1])
    with pytest.raises(ValueError, match="positive and sum to 1"):
        WienerMixtureDenoiser(small_pca, weights * 2, means, covariances)
    fit = {"components": 2, "rank": 5, "pseudo_count": 1}
    with pytest.raises(ValueError, match="components must be a whole number, at least 1, got 0"):
        WienerMixtureDenoiser.fit(small, small_pca, **fit | {"components": 0})
    with pytest.raises(ValueError, match="pseudo_count must be positive, got 0"):
        WienerMixtureDenoiser.fit(small, small_pca, **fit | {"pseudo_count": 0})
    with pytest.raises(ValueError, match="rounds must not be negative, got -1"):
        WienerMixtureDenoiser.fit(small, small_pca, **fit, rounds=-1)
    with pytest.raises(ValueError, match="k must lie between"):
        WienerMixtureDenoiser.fit(small, small_pca, **fit | {"rank": 500})


# --- many wide Gaussians of patches --------------------------------------------------------------


def test_a_mixture_of_patches_is_the_mean_of_its_patches_posterior_means(tiny, noised):
    patchy = PatchMixtureDenoiser(tiny, 3, components=4, pseudo_count=10, patches=500)
    parts, x = in_pixels(patchy.model), noised(tiny.images[:2], 0.724)
    total, covered = np.zeros((2, 6, 6)), np.zeros((6, 6))
    for row in range(4):
        for column in range(4):
            place = np.s_[row : row + 3, column : column + 3]
            covered[place] += 1
            for image, noisy in zip(total, x.double().numpy()[:, 0]):
                answer = posterior_mean(noisy[place].flatten(), *parts, 0.724)
                image[place] += answer.reshape(3, 3)
    close(patchy(x, 0.724)[:, 0], torch.tensor(total / covered), 1e-4)


def test_one_component_of_patches_as_large_as_the_image_is_the_wiener_filter(tiny, noised):
    whole = PatchMixtureDenoiser(tiny, 6, components=1, pseudo_count=1, patches=4000)
    drawn = whole.model.pca
    x = noised(tiny.images[:3], 1.24)
    close(whole(x, 1.24), WienerDenoiser(drawn)(x, 1.24), 0.01)
    close(drawn.mean, PCA.fit(tiny).mean, 0.05, "patches are drawn from all images alike")


def test_a_mixture_of_patches_keeps_channels_and_shape(noised):
    images = torch.rand(20, 3, 6, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    patchy = PatchMixtureDenoiser(images, 4, components=3, pseudo_count=10, patches=300)
    x = noised(images[:2], 1e-3)
    close(patchy(x, 1e-3), x, 0.01, "without noise the image itself")
    with pytest.raises(ValueError, match="side 7 do not fit"):
        PatchMixtureDenoiser(images, 7, components=3, pseudo_count=10)
