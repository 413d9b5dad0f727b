"""The closed-form denoisers against formulas written out here, and against each other.

The oracles are slow, literal, in float64, and share no code with the library.
"""

import itertools

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression
from torch import Tensor

from locality.data import load
from locality.denoisers import (
    LocalDenoiser,
    OptimalDenoiser,
    WienerDenoiser,
    byte_products,
    local,
    masks,
)
from locality.denoisers.local import Part, Tile
from locality.denoisers.streaming import SoftmaxState, accumulate, softmax_weights
from locality.stats import PCA

KINDS = ["full", "square", "pca", "soft", "pca_official", "random"]


def make_mask(kind: str, pca: PCA, sigma: float) -> Tensor:
    """One mask of every kind the library knows, and one that it does not."""
    if kind == "full":
        return masks.full(pca.shape)
    if kind == "square":
        return masks.square(pca.shape, 5)
    if kind == "pca":
        return masks.pca(pca, sigma, 0.02)
    if kind == "soft":
        return masks.soft(pca, sigma)
    if kind == "pca_official":
        return masks.pca_official(pca, sigma, 0.005)
    pixels = len(pca.mean)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.rand(pixels, pixels, generator=generator) < (0.5 if sigma > 1 else 0.05)
    return torch.rand(pixels, pixels, generator=generator) * chosen + torch.eye(pixels)


def brute_optimal(x: Tensor, images: Tensor, sigma: float) -> Tensor:
    """sum_k softmax_k(-||x - x_k||^2 / (2 sigma^2)) x_k, one image at a time, in float64."""
    answers = []
    for query in x.double():
        distances = torch.stack([((query - image) ** 2).sum() for image in images.double()])
        weights = torch.softmax(-distances / (2 * sigma**2), dim=0)
        answers.append((weights[:, None, None, None] * images.double()).sum(0))
    return torch.stack(answers)


def brute_local(
    x: Tensor, images: Tensor, mask: Tensor, sigma: float, *, batch: int | None = None
) -> Tensor:
    """The paper's formula with the full tensor of differences, in float64; for batches too."""
    flat, queries = images.flatten(1).double(), x.flatten(1).double()
    answer = torch.zeros_like(queries)
    starts = range(0, len(flat), batch or len(flat))
    for start in starts:
        part = flat[start : start + (batch or len(flat))]
        squares = (queries[:, None] - part) ** 2  # (B, N, D)
        logits = -torch.einsum("bkn,mn->bkm", squares, mask.double()) / (2 * sigma**2)
        answer += torch.einsum("bkm,km->bm", torch.softmax(logits, dim=1), part)
    return (answer / len(starts)).view_as(x)


def close(got: Tensor, expected: Tensor, tolerance: float, what: object = "") -> None:
    error = (got.double() - expected.double()).abs().max().item()
    assert error <= tolerance, f"{what}: largest error {error:.2e}, allowed {tolerance:.0e}"


# --- the optimal denoiser ------------------------------------------------------------------------


def test_optimal_is_the_brute_force_formula_at_all_official_noise_levels(
    fashion, fashion_test, noised, official_sigmas
):
    denoiser = OptimalDenoiser(fashion)
    for sigma in official_sigmas:
        x = noised(fashion_test.images[:3], sigma)
        answer = denoiser(x, sigma)
        assert answer.shape == x.shape and answer.dtype == torch.float32
        close(answer, brute_optimal(x, fashion.images, sigma), 1e-5, f"sigma {sigma:.3f}")


@pytest.mark.parametrize("chunk", [1, 7, 512, 2000])
def test_optimal_depends_on_neither_chunk_nor_order(
    fashion, fashion_test, noised, official_sigmas, chunk
):
    order = torch.randperm(len(fashion), generator=torch.Generator().manual_seed(chunk))
    shuffled = OptimalDenoiser(fashion.images[order], chunk=chunk)
    whole = OptimalDenoiser(fashion)
    for sigma in official_sigmas[::4]:
        x = noised(fashion_test.images[:2], sigma)
        close(shuffled(x, sigma), whole(x, sigma), 1e-6, f"sigma {sigma:.3f}")


def test_the_optimal_denoiser_memorises(fashion, noised):
    # A training image under little noise comes back to the last digit.
    x = noised(fashion.images[:8], 0.1)
    close(OptimalDenoiser(fashion)(x, 0.1), fashion.images[:8], 1e-6)


def test_log_weights_are_the_posterior(fashion, fashion_test, noised):
    x = noised(fashion_test.images[:3], 12.0)
    denoiser = OptimalDenoiser(fashion, chunk=300)
    weights = denoiser.log_weights(x, 12.0).exp()
    assert weights.shape == (3, 2000)
    distances = torch.cdist(x.flatten(1).double(), fashion.images.flatten(1).double())
    close(weights, torch.softmax(-(distances**2) / (2 * 12.0**2), dim=1), 1e-9)
    close(denoiser(x, 12.0).flatten(1), weights @ fashion.images.flatten(1).double(), 1e-6)


# --- the Wiener filter ---------------------------------------------------------------------------


def test_wiener_is_the_gaussian_conditional_mean(fashion, fashion_pca, fashion_test, noised):
    # For x0 ~ N(mean, S) and x = x0 + sigma eps, E[x0 | x] is S (S + sigma^2 I)^-1 (x - mean).
    flat = fashion.images.flatten(1).double().numpy()
    mean, covariance = flat.mean(0), np.cov(flat.T)
    for sigma in (12.0, 1.24, 0.342):
        x = noised(fashion_test.images[:4], sigma)
        residual = (x.flatten(1).double().numpy() - mean).T
        gain = np.linalg.solve(covariance + sigma**2 * np.eye(784), residual)
        expected = torch.from_numpy(mean + (covariance @ gain).T).view_as(x)
        close(WienerDenoiser(fashion_pca)(x, sigma), expected, 2e-5, f"sigma {sigma}")


def test_wiener_is_the_limit_of_least_squares_on_noised_pairs():
    # scikit-learn knows nothing of the filter: it sees pairs (noised image, image), and comes
    # closer to it as every image is noised more often, as 1 / sqrt(draws).
    images = load("fashion-mnist", n=1000, size=6)
    pca, clean, sigma = PCA.fit(images), images.images.flatten(1).double().numpy(), 0.724
    x = torch.randn(50, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    expected = WienerDenoiser(pca)(x, sigma).flatten(1).numpy()
    rng = np.random.default_rng(0)
    matrix_errors, answer_errors = [], []
    for draws in (4, 32, 256):
        targets = np.tile(clean, (draws, 1))
        fit = LinearRegression().fit(targets + sigma * rng.standard_normal(targets.shape), targets)
        matrix_errors.append(np.sqrt(((fit.coef_ - pca.wiener_matrix(sigma).numpy()) ** 2).mean()))
        answers = fit.predict(x.flatten(1).double().numpy())
        answer_errors.append(np.sqrt(((answers - expected) ** 2).mean()))
    print("draws 4, 32, 256: matrix", matrix_errors, "answers", answer_errors)
    for errors in (matrix_errors, answer_errors):
        for worse, better in itertools.pairwise(errors):
            assert 1.8 < worse / better < 4.5, f"8 times the draws: {worse:.2e} to {better:.2e}"
    assert matrix_errors[-1] < 1e-3 and answer_errors[-1] < 1e-2


def test_wiener_is_what_the_optimal_denoiser_tends_to_on_gaussian_data():
    # The optimal denoiser sees samples only; with more of them it becomes the linear filter.
    covariance = torch.tensor([[2.0, 1.0, 0.5, 0.0], [1.0, 2.0, 1.0, 0.5]])
    covariance = 0.01 * (covariance.T @ covariance + torch.eye(4))
    generator = torch.Generator().manual_seed(0)
    root = torch.linalg.cholesky(covariance)
    samples = (torch.randn(100_000, 4, generator=generator) @ root.T).clamp(-1, 1)
    pca = PCA.from_covariance(torch.zeros(4), covariance, shape=(1, 2, 2), count=100_000)
    sigma = 0.3
    x = samples[:200].view(-1, 1, 2, 2) + sigma * torch.randn(200, 1, 2, 2, generator=generator)
    wiener = WienerDenoiser(pca)(x, sigma)
    errors = []
    for count in (1_000, 10_000, 100_000):
        optimal = OptimalDenoiser(samples[-count:].view(-1, 1, 2, 2))(x, sigma)
        errors.append((optimal - wiener).square().mean().sqrt().item())
    print("1,000, 10,000 and 100,000 samples: root mean squared error", errors)
    for worse, better in itertools.pairwise(errors):
        assert 2 < worse / better < 5, f"10 times the samples: {worse:.2e} to {better:.2e}"
    assert errors[-1] < 2e-3


def test_no_other_affine_denoiser_does_better_on_the_data(small, small_pca, noised):
    # Moving the filter in any direction costs: its own noise level is the best of all.
    x = noised(small.images.repeat(4, 1, 1, 1), 1.24)
    clean = small.images.repeat(4, 1, 1, 1)
    losses = {
        other: (WienerDenoiser(small_pca)(x, other) - clean).square().mean().item()
        for other in (0.6, 1.0, 1.24, 1.5, 2.5)
    }
    assert min(losses, key=losses.get) == 1.24, losses


# --- the local denoiser --------------------------------------------------------------------------


@pytest.fixture
def floats(monkeypatch):
    """Products of floating-point numbers, as on all machines and for all images."""
    monkeypatch.setattr("locality.denoisers.local.supported", lambda device: False)


@pytest.fixture(params=["floats", "bytes"])
def products(request):
    """Both ways of multiplying."""
    if request.param == "floats":
        request.getfixturevalue("floats")
    elif not byte_products.supported(torch.device("cpu")):
        pytest.skip("this processor has no matrix units for bytes")


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("kind", KINDS)
def test_local_is_the_brute_force_formula_with_any_mask(
    fashion, fashion_pca, fashion_test, noised, official_sigmas, kind
):
    images = fashion.images[:150]
    for sigma in official_sigmas:
        mask = make_mask(kind, fashion_pca, sigma)
        x = noised(fashion_test.images[:2], sigma)
        answer = LocalDenoiser(images, lambda _, mask=mask: mask)(x, sigma)
        assert answer.shape == x.shape and answer.dtype == torch.float32
        # Its logits are float32: beside float64 that costs a few units of the fifth decimal.
        close(answer, brute_local(x, images, mask, sigma), 5e-5, f"{kind}, sigma {sigma:.3f}")


@pytest.mark.usefixtures("products")
def test_local_with_the_full_mask_is_the_optimal_denoiser(
    fashion, fashion_test, noised, official_sigmas
):
    local = LocalDenoiser(fashion, lambda _: masks.full(fashion.shape))
    optimal = OptimalDenoiser(fashion)
    for sigma in official_sigmas:
        x = noised(fashion_test.images[:2], sigma)
        close(local(x, sigma), optimal(x, sigma), 1e-5, f"sigma {sigma:.3f}")


@pytest.mark.usefixtures("floats")
@pytest.mark.parametrize("kind", KINDS)
def test_local_does_not_depend_on_the_chunk(small, small_pca, noised, official_sigmas, kind):
    queries = load("fashion-mnist", "test", n=2, size=14).images
    for sigma in official_sigmas:
        mask = make_mask(kind, small_pca, sigma)
        x = noised(queries, sigma)
        whole = LocalDenoiser(small, lambda _, mask=mask: mask)(x, sigma)
        for chunk in (1, 7, 200, 512, 1000):
            part = LocalDenoiser(small, lambda _, mask=mask: mask, chunk=chunk)(x, sigma)
            close(part, whole, 1e-5, f"{kind}, sigma {sigma:.3f}, chunk {chunk}")


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("kind", KINDS)
def test_local_does_not_depend_on_the_chunk_of_few_images(
    small, small_pca, noised, official_sigmas, kind
):
    images, queries = small.images[:60], load("fashion-mnist", "test", n=2, size=14).images
    for sigma in official_sigmas:
        mask = make_mask(kind, small_pca, sigma)
        x = noised(queries, sigma)
        whole = LocalDenoiser(images, lambda _, mask=mask: mask)(x, sigma)
        for chunk in (1, 7, 50):
            part = LocalDenoiser(images, lambda _, mask=mask: mask, chunk=chunk)(x, sigma)
            close(part, whole, 1e-5, f"{kind}, sigma {sigma:.3f}, chunk {chunk}")


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("kind", KINDS)
def test_local_does_not_depend_on_the_order_of_the_images(
    fashion, fashion_pca, fashion_test, noised, official_sigmas, kind
):
    images, queries = fashion.images[:200], fashion_test.images[:2]
    for seed, sigma in enumerate(official_sigmas):
        mask = make_mask(kind, fashion_pca, sigma)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        x = noised(queries, sigma)
        one = LocalDenoiser(images, lambda _, mask=mask: mask)(x, sigma)
        for chunk in (7, 70, 200):
            other = LocalDenoiser(images[order], lambda _, mask=mask: mask, chunk=chunk)(x, sigma)
            close(other, one, 1e-5, f"{kind}, sigma {sigma:.3f}, chunk {chunk}")


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("kind", KINDS)
def test_one_training_image_is_the_answer(fashion, fashion_pca, fashion_test, noised, kind):
    image = fashion.images[:1]
    for sigma in (60.8, 0.01):
        mask = make_mask(kind, fashion_pca, sigma)
        x = noised(fashion_test.images[:2], sigma)
        close(LocalDenoiser(image, lambda _, mask=mask: mask)(x, sigma), image, 1e-6, kind)
        close(OptimalDenoiser(image)(x, sigma), image, 1e-6)


@pytest.mark.usefixtures("products")
def test_local_in_colour_is_the_brute_force_formula(colour, noised):
    pca = PCA.fit(colour)
    for kind, sigma in itertools.product(KINDS, (12.0, 0.724, 0.01)):
        mask = make_mask(kind, pca, sigma)
        x = noised(colour.images[:3], sigma)
        for chunk in (7, 60):
            answer = LocalDenoiser(colour, lambda _, mask=mask: mask, chunk=chunk)(x, sigma)
            close(answer, brute_local(x, colour.images, mask, sigma), 1e-5, f"{kind}, {sigma}")


def test_the_mask_is_asked_for_at_the_noise_level_of_the_call(tiny, noised):
    asked = []

    def mask(sigma: float) -> Tensor:
        asked.append(sigma)
        return masks.full(tiny.shape)

    denoiser = LocalDenoiser(tiny, mask)
    denoiser(noised(tiny.images[:2], 2.0), 2.0)
    denoiser(noised(tiny.images[:2], 0.5), torch.tensor(0.5))
    assert asked == [2.0, 0.5]


@pytest.mark.usefixtures("products")
def test_temperature_divides_the_logits(tiny, noised):
    x = noised(tiny.images[:3], 0.724)
    mask = masks.square(tiny.shape, 3)
    warm = LocalDenoiser(tiny, lambda _: mask, temperature=4.0)(x, 0.724)
    close(warm, brute_local(x, tiny.images, mask, 0.724 * 2), 1e-6)
    assert (warm - LocalDenoiser(tiny, lambda _: mask)(x, 0.724)).abs().max() > 0.1


def test_a_local_denoiser_makes_images_that_are_not_in_the_set(fashion, fashion_test, noised):
    # What locality is for: with a small window every pixel follows another training image.
    x = noised(fashion_test.images[:4], 0.342)
    local = LocalDenoiser(fashion, lambda _: masks.square(fashion.shape, 5))(x, 0.342)
    optimal = OptimalDenoiser(fashion)(x, 0.342)
    clean = fashion_test.images[:4]
    assert (local - clean).square().mean() < 0.5 * (optimal - clean).square().mean()


# --- averaging batches, as the released code does ------------------------------------------------


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("batch", [1, 64, 100, 512, 520])
def test_batch_average_is_one_softmax_a_batch_and_the_plain_mean_of_them(
    small, small_pca, noised, batch
):
    # 520 images in batches of 100: the last batch of 20 counts as much as the others.
    for sigma in (12.0, 1.24):
        mask = masks.pca(small_pca, sigma, 0.02)
        x = noised(small.images[:2], sigma)
        expected = brute_local(x, small.images, mask, sigma, batch=batch)
        for chunk in (33, 256):
            denoiser = LocalDenoiser(
                small, lambda _, mask=mask: mask, batch_average=batch, chunk=chunk
            )
            close(denoiser(x, sigma), expected, 1e-5, f"batch {batch}, sigma {sigma}")


@pytest.mark.usefixtures("products")
def test_batch_average_goes_from_the_mean_image_to_the_exact_softmax(small, small_pca, noised):
    x, sigma = noised(small.images[:2], 0.724), 0.724

    def mask(_: float) -> Tensor:
        return masks.pca(small_pca, sigma, 0.02)

    exact = LocalDenoiser(small, mask)(x, sigma)
    mean = small.images.mean(0, keepdim=True).expand_as(x)
    close(LocalDenoiser(small, mask, batch_average=1)(x, sigma), mean, 1e-5)
    close(LocalDenoiser(small, mask, batch_average=len(small))(x, sigma), exact, 1e-6)
    half = LocalDenoiser(small, mask, batch_average=260)(x, sigma)
    assert (half - exact).abs().max() > 0.05, "batches change the answer"
    order = torch.randperm(len(small), generator=torch.Generator().manual_seed(0))
    shuffled = LocalDenoiser(small.images[order], mask, batch_average=260)(x, sigma)
    assert (half - shuffled).abs().max() > 0.05, "so does the order of the images"


# --- tiles ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("queries", [1, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_tiles_hold_every_weight_once(small, small_pca, kind, queries):
    for sigma in (60.8, 12.0, 0.724, 0.01):
        weights = make_mask(kind, small_pca, sigma)
        rebuilt = torch.zeros_like(weights)
        tiles = LocalDenoiser(small, masks.full)._tiles(weights, queries)
        for tile in tiles:
            for part in tile.parts:
                rebuilt[part.rows] += tile.base
                rebuilt[part.rows[:, None], part.cols] += part.weights
        close(rebuilt, weights, 1e-6)
        rows = torch.cat([part.rows for tile in tiles for part in tile.parts])
        assert torch.equal(rows.sort().values, torch.arange(196)), "every output pixel, once"


@pytest.mark.usefixtures("floats")
def test_tiles_change_nothing_but_the_work(small, small_pca, noised, monkeypatch):
    queries = load("fashion-mnist", "test", n=16, size=14).images

    def one_tile(self: LocalDenoiser, weights: Tensor, queries: int) -> list:
        everything = torch.arange(len(weights))
        return [Tile(torch.zeros_like(weights[0]), [Part(everything, everything, weights)])]

    for sigma in (60.8, 0.01):
        x, tiled, work = noised(queries, sigma), {}, {}
        made = {kind: make_mask(kind, small_pca, sigma) for kind in KINDS}
        for kind, mask in made.items():
            denoiser = LocalDenoiser(small, lambda _, mask=mask: mask)
            tiled[kind] = denoiser(x, sigma)
            tiles = denoiser._tiles(mask, len(x))
            work[kind] = sum(p.weights.numel() for t in tiles for p in t.parts) / 196**2
        with monkeypatch.context() as patch:
            patch.setattr(LocalDenoiser, "_tiles", one_tile)
            for kind, mask in made.items():
                plain = LocalDenoiser(small, lambda _, mask=mask: mask)(x, sigma)
                close(tiled[kind], plain, 1e-5, f"{kind}, sigma {sigma}")
        print(f"sigma {sigma}: share of the whole product", work)
        assert work["full"] == 0, "a full mask leaves nothing out"
        assert max(work["pca"], work["pca_official"], work["square"]) < 0.6, work


def test_masks_of_few_pixels_need_no_products(small, noised, monkeypatch):
    """Any weights, and masks of one pixel beside masks of many."""
    sigma = 0.02
    some = torch.rand(196, 196, generator=torch.Generator().manual_seed(0))
    mask = (some < 0.01).float().fill_diagonal_(1)
    weighted = mask * some.T
    weighted[7] = 1
    x = noised(load("fashion-mnist", "test", n=3, size=14).images, sigma)
    for kind in (torch.eye(196), mask, weighted):
        assert kind.count_nonzero() <= local.FEW * len(kind)
        denoiser = LocalDenoiser(small, lambda _, kind=kind: kind, chunk=100)
        expected = brute_local(x, small.images, kind, sigma)
        close(denoiser(x.double(), sigma), expected, 1e-6, "float64")
        close(denoiser(x, sigma), expected, 5e-5, "float32")
        many = denoiser(x.repeat(400, 1, 1, 1), sigma)  # more queries than there are rows at a time
        assert torch.equal(many[:3], many[-3:])
        close(many[:3], expected, 5e-5, "many queries")
    monkeypatch.setattr(LocalDenoiser, "_state_of_few", None)  # denser masks take the other ways
    close(
        LocalDenoiser(small, lambda _: masks.square(small.shape, 3))(x, sigma),
        brute_local(x, small.images, masks.square(small.shape, 3), sigma),
        5e-5,
        "nine pixels",
    )


# --- masks ---------------------------------------------------------------------------------------


def test_full_and_square_masks_pixel_by_pixel():
    shape = (2, 5, 4)
    assert torch.equal(masks.full(shape), torch.ones(40, 40))
    places = list(itertools.product(range(2), range(5), range(4)))
    for side in (1, 3, 5):
        mask = masks.square(shape, side)
        for m, (_, row, col) in enumerate(places):
            for n, (_, other_row, other_col) in enumerate(places):
                near = max(abs(row - other_row), abs(col - other_col)) <= side // 2
                assert mask[m, n] == near, (side, places[m], places[n])
    assert torch.equal(masks.square(shape, 9), masks.full(shape)), "a window over everything"


def test_the_pca_mask_is_the_papers_formula(fashion, fashion_pca):
    covariance = np.cov(fashion.images.flatten(1).double().numpy().T)
    for sigma, threshold in itertools.product((12.0, 1.24), (0.005, 0.1)):
        wiener = covariance @ np.linalg.inv(covariance + sigma**2 * np.eye(784))
        varies = np.diag(wiener) >= 1.1e-6  # others hardly differ from rounding noise
        diagonal = np.maximum(np.diag(wiener), 1e-12)
        response = np.abs(wiener / diagonal[:, None])  # R[m, n] = W[m, n] / W[m, m]
        ours = masks.pca(fashion_pca, sigma, threshold).numpy()
        differ = (ours != (response >= threshold))[varies]
        near = np.abs(response / threshold - 1)[varies] < 0.02
        assert varies.sum() > 750
        assert not (differ & ~near).any(), "entries differ that do not lie at the threshold"
        assert differ.mean() < 1e-3
        assert set(np.unique(ours)) == {0, 1}
        assert (np.diag(ours) == 1).all()


def test_a_higher_threshold_looks_at_less(small_pca):
    narrow, wide = masks.pca(small_pca, 1.24, 0.1), masks.pca(small_pca, 1.24, 0.01)
    assert (narrow <= wide).all() and narrow.sum() < wide.sum()


def test_masks_narrow_as_the_noise_falls(fashion_pca, official_sigmas):
    shares = [masks.pca(fashion_pca, s, 0.02).mean().item() for s in official_sigmas[2:]]
    assert all(more > less for more, less in itertools.pairwise(shares)), shares


def test_the_official_mask_is_the_released_rule(tiny):
    pca, pixels = PCA.fit(tiny), 36
    for sigma, threshold in itertools.product((12.0, 0.724), (0.02, 0.1)):
        wiener = pca.wiener_matrix(sigma).double()
        # |W[m, n]| over the diagonal of the INPUT pixel n; relative to the largest entry.
        response = torch.zeros(pixels, pixels, dtype=torch.float64)
        for m, n in itertools.product(range(pixels), range(pixels)):
            response[m, n] = abs(wiener[m, n]) / wiener[n, n]
        expected = (response >= threshold * response.max()).float()
        assert torch.equal(masks.pca_official(pca, sigma, threshold), expected)
        differ = (masks.pca(pca, sigma, threshold) != expected).float().mean()
        assert differ > 0.02, "the paper's own rule gives another mask"


def faint_pixel() -> PCA:
    """Statistics of 2x2 images in which one pixel is a faint copy of another: R is huge there."""
    scale = torch.tensor([1.0, 1.0, 1.0, 2e-3])
    correlation = torch.eye(4)
    correlation[0, 3] = correlation[3, 0] = 0.99
    covariance = 0.1 * correlation * scale[:, None] * scale
    return PCA.from_covariance(torch.zeros(4), covariance, shape=(1, 2, 2), count=100)


def test_one_faint_pixel_does_not_empty_the_masks():
    # |W[0, 3]| / W[3, 3] is about 500, so .005 of the largest entry exceeds every diagonal's 1.
    pca, sigma = faint_pixel(), 0.1
    wiener = pca.wiener_matrix(sigma)
    assert 0.005 * (wiener[0, 3] / wiener[3, 3]).abs() > 1
    official = masks.pca_official(pca, sigma, 0.005)
    assert (official.sum(1) > 0).all()
    assert torch.equal(official[1:], torch.eye(4)[1:]), "they look at themselves"
    images = torch.rand(20, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    answer = LocalDenoiser(images, lambda s: masks.pca_official(pca, s, 0.005))(images[:2], sigma)
    assert torch.isfinite(answer).all()
    # The paper's own rule, relative to the output pixel, is not touched by it.
    paper = masks.pca(pca, sigma, 0.005)
    assert torch.equal(paper[1:3, 1:3], torch.eye(2)) and paper[0, 0] == 1


def test_pixels_that_never_vary_look_at_themselves():
    covariance = torch.diag(torch.tensor([0.5, 0.5, 0.0, 0.5]))
    covariance[0, 1] = covariance[1, 0] = 0.4
    pca = PCA.from_covariance(torch.zeros(4), covariance, shape=(1, 2, 2), count=100)
    expected = torch.eye(4)
    expected[0, 1] = expected[1, 0] = 1
    for kind in (masks.pca, masks.pca_official):
        assert torch.equal(kind(pca, 0.5, 0.01), expected), kind
    assert torch.equal(masks.soft(pca, 0.5)[2], torch.eye(4)[2])
    assert torch.isfinite(masks.soft(pca, 0.5)).all()


def test_soft_masks_weigh_by_the_response(small_pca):
    response = masks.response(small_pca, 1.24)
    wiener = small_pca.wiener_matrix(1.24)
    varies = wiener.diagonal() >= 1e-6
    expected = (wiener / wiener.diagonal()[:, None])[varies]
    torch.testing.assert_close(response[varies], expected)
    soft = masks.soft(small_pca, 1.24)
    assert torch.equal(soft, response.abs().clamp(max=1))
    torch.testing.assert_close(masks.soft(small_pca, 1.24, power=2.0), soft**2)
    close(soft.diagonal(), torch.ones(196), 1e-6)


# --- the streaming softmax -----------------------------------------------------------------------


def softmax_state(logits: Tensor, values: Tensor) -> SoftmaxState:
    peak, weights = softmax_weights(logits, dim=1)
    return SoftmaxState(peak, weights.sum(1, keepdim=True), weights @ values)


def test_states_merge_to_the_softmax_however_they_are_cut():
    generator = torch.Generator().manual_seed(0)
    logits = 300 * torch.randn(4, 50, generator=generator, dtype=torch.float64)
    values = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    expected = torch.softmax(logits, dim=1) @ values
    for sizes in ([50], [1] * 50, [7, 13, 1, 29], [49, 1]):
        parts = zip(logits.split(sizes, 1), values.split(sizes), strict=True)
        states = [softmax_state(*part) for part in parts]
        left = states[0]
        for state in states[1:]:
            left = left.merge(state)
        right = states[-1]
        for state in reversed(states[:-1]):
            right = state.merge(right)
        close(left.mean(), expected, 1e-12, sizes)
        close(right.mean(), expected, 1e-12, sizes)
        torch.testing.assert_close(left.peak, logits.amax(1, keepdim=True))


def test_merging_survives_logits_far_apart():
    # A later chunk that is better by e^100000, and one that is worse: no overflow, no NaN.
    near = softmax_state(torch.zeros(1, 1), torch.ones(1, 1))
    far = softmax_state(torch.full((1, 1), -1e5), torch.full((1, 1), 9.0))
    for state in (near.merge(far), far.merge(near)):
        assert state.mean().item() == 1
    equal = far.merge(softmax_state(torch.full((1, 1), -1e5), torch.full((1, 1), 1.0)))
    assert equal.mean().item() == 5


def test_no_weight_is_subnormal():
    _, weights = softmax_weights(torch.tensor([[0.0, -50.0, -1e4, -1e9]]), dim=1)
    assert weights.min() > torch.finfo(torch.float32).tiny
    assert weights[0, 0] == 1 and weights[0, 2:].max() < 1e-30


def test_gradients_through_chunks_are_those_of_the_whole():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    x = torch.randn(2, 3, generator=generator, dtype=torch.float64, requires_grad=True)

    def update(x: Tensor, chunk: Tensor) -> SoftmaxState:
        return softmax_state(-torch.cdist(x, chunk).square(), chunk)

    gradients = [
        torch.autograd.grad(accumulate(update, x, values.split(size)).mean().sum(), x)[0]
        for size in (1, 7, 40)
    ]
    weights = torch.softmax(-torch.cdist(x, values).square(), dim=1)
    expected = torch.autograd.grad((weights @ values).sum(), x)[0]
    for gradient in gradients:
        close(gradient, expected, 1e-12)


def test_memory_holds_a_chunk_and_never_batch_times_images_times_pixels(measured_memory):
    # 16 queries x 10,000 images x 196 pixels would be 125 MB; a gradient would keep several.
    script = """
    import torch
    from locality.data import load
    from locality.denoisers import LocalDenoiser, OptimalDenoiser, masks
    from locality.sensitivity import autograd_rows, jacobian_rows

    images = load("fashion-mnist", size=14)
    mask = masks.square(images.shape, 5)
    torch.manual_seed(0)
    few = images.images[:600]
    x = images.images[:16] + 0.7 * torch.randn(16, *images.shape)

    def work(training, chunk):
        for denoiser in (
            OptimalDenoiser(training, chunk=chunk),
            LocalDenoiser(training, lambda sigma: mask, chunk=chunk),
        ):
            denoiser(x, 0.7)
            jacobian_rows(denoiser, x[:2], 0.7, [100])
            autograd_rows(denoiser, x, 0.7, [100])

    work(few, 512)
    before = peak()
    work(images, 512)
    print(peak() - before)
    """
    (growth,) = measured_memory(script)
    print(f"peak memory grew by {growth:.0f} MB")
    assert growth < 40, f"peak memory grew by {growth:.0f} MB with the number of images"


# --- bad input, and devices ----------------------------------------------------------------------


def denoisers(images: Tensor) -> dict:
    pca = PCA.fit(images)
    return {
        "optimal": OptimalDenoiser(images),
        "wiener": WienerDenoiser(pca),
        "local": LocalDenoiser(images, lambda sigma: masks.pca(pca, sigma, 0.02)),
    }


@pytest.mark.parametrize("name", ["optimal", "wiener", "local"])
def test_a_call_with_bad_input_says_what_was_wrong(tiny, name):
    denoiser, x = denoisers(tiny.images)[name], tiny.images[:3]
    for sigma in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"positive, finite noise level, got {sigma}"):
            denoiser(x, sigma)
    with pytest.raises(ValueError, match=r"one number for the whole batch.*\(3,\)"):
        denoiser(x, torch.ones(3))
    with pytest.raises(ValueError, match="RGB images for a denoiser of grey ones"):
        denoiser(x.expand(-1, 3, -1, -1), 1.0)
    with pytest.raises(ValueError, match=r"expected shape \(B, 1, 6, 6\), got \(3, 1, 7, 6\)"):
        denoiser(torch.zeros(3, 1, 7, 6), 1.0)
    with pytest.raises(ValueError, match=r"expected shape \(B, 1, 6, 6\), got \(1, 6, 6\)"):
        denoiser(x[0], 1.0)
    with pytest.raises(ValueError, match="NaN or infinite"):
        denoiser(torch.where(x == x[0, 0, 0, 0], float("nan"), x), 1.0)
    with pytest.raises(ValueError, match="floating-point"):
        denoiser(x.to(torch.uint8), 1.0)


def test_colour_denoisers_refuse_grey_images(colour):
    for denoiser in denoisers(colour.images).values():
        with pytest.raises(ValueError, match="grey images for a denoiser of RGB ones"):
            denoiser(colour.images[:2, :1], 1.0)


def test_bad_training_images_are_refused(tiny):
    broken = tiny.images.clone()
    broken[5, 0, 0, 0] = float("nan")
    cases = [
        (broken, "NaN or infinite pixels, the first is image 5"),
        (tiny.images * 3, r"pixel values lie in \[.*expected \[-1, 1\]"),
        (tiny.images[0], r"expected shape \(N, C, H, W\)"),
        (tiny.images[:0], "at least one image"),
        (tiny.images.double(), "expected float32, got torch.float64"),
        (tiny.images.numpy(), "expected a torch tensor"),
    ]
    for images, message in cases:
        with pytest.raises(ValueError, match=message):
            OptimalDenoiser(images)
        with pytest.raises(ValueError, match=message):
            LocalDenoiser(images, lambda _: masks.full(tiny.shape))


def test_bad_masks_are_refused(tiny):
    good = masks.square(tiny.shape, 3)
    negative, empty, broken = good.clone(), good.clone(), good.clone()
    negative[2, 3], empty[7], broken[0, 0] = -0.1, 0, float("nan")
    cases = [
        (torch.ones(35, 36), r"the mask must be \(36, 36\).*got \(35, 36\)"),
        (torch.ones(36), r"the mask must be \(36, 36\).*got \(36,\)"),
        (masks.full((3, 6, 6)), r"the mask must be \(36, 36\).*got \(108, 108\)"),
        (negative, "finite and not negative"),
        (broken, "finite and not negative"),
        (empty, "the mask of pixel 7 is empty"),
    ]
    for mask, message in cases:
        denoiser = LocalDenoiser(tiny, lambda _, mask=mask: mask)
        with pytest.raises(ValueError, match=message):
            denoiser(tiny.images[:1], 1.0)
        with pytest.raises(ValueError, match=message):
            denoiser.jacobian_rows(tiny.images[:1], 1.0, torch.tensor([0]))


@pytest.mark.parametrize("side", [0, 2, 4, -3])
def test_a_window_without_a_centre_is_refused(side):
    with pytest.raises(ValueError, match=f"odd and positive.*got {side}"):
        masks.square((1, 6, 6), side)


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.01, float("nan")])
def test_a_threshold_out_of_range_is_refused(small_pca, threshold):
    for mask in (masks.pca, masks.pca_official):
        with pytest.raises(ValueError, match=rf"lie in \(0, 1\], got {threshold}"):
            mask(small_pca, 1.0, threshold)


def test_other_settings_out_of_range_are_refused(tiny, small_pca):
    for power in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"power must be positive, got {power}"):
            masks.soft(small_pca, 1.0, power=power)
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"temperature must be positive, got {temperature}"):
            LocalDenoiser(tiny, lambda _: masks.full(tiny.shape), temperature=temperature)
    for mask in (masks.pca, masks.pca_official):
        with pytest.raises(ValueError, match="positive, finite noise level, got -1"):
            mask(small_pca, -1.0, 0.1)


@pytest.mark.parametrize("count", [0, -5])
def test_a_chunk_or_batch_of_no_images_is_refused(tiny, count):
    with pytest.raises(ValueError, match=f"chunk must be a whole number, at least 1, got {count}"):
        LocalDenoiser(tiny, lambda _: masks.full(tiny.shape), chunk=count)
    with pytest.raises(ValueError, match=f"chunk must be a whole number, at least 1, got {count}"):
        OptimalDenoiser(tiny, chunk=count)
    words = f"batch_average must be a whole number, at least 1, got {count}"
    with pytest.raises(ValueError, match=words):
        LocalDenoiser(tiny, lambda _: masks.full(tiny.shape), batch_average=count)


DEVICES = ["cpu"]
DEVICES += ["cuda"] if torch.cuda.is_available() else []
DEVICES += ["mps"] if torch.backends.mps.is_available() else []


@pytest.mark.parametrize("device", DEVICES)
def test_every_denoiser_gives_the_same_on_every_device(tiny, noised, device):
    pca = PCA.fit(tiny)
    there, pca_there = tiny.images.to(device), pca.to(device)
    pairs = [
        (OptimalDenoiser(tiny), OptimalDenoiser(there)),
        (WienerDenoiser(pca), WienerDenoiser(pca_there)),
        *(
            (
                LocalDenoiser(tiny, lambda s, k=kind: make_mask(k, pca, s)),
                LocalDenoiser(there, lambda s, k=kind: make_mask(k, pca_there, s).to(device)),
            )
            for kind in KINDS
            if kind != "random"
        ),
    ]
    pixels = torch.tensor([0, 14, 35])
    for sigma in (12.0, 0.724):
        x = noised(tiny.images[:3], sigma)
        for here, other in pairs:
            answer = other(x.to(device), sigma)
            assert answer.device.type == device
            close(answer.cpu(), here(x, sigma), 1e-4)
            rows = other.jacobian_rows(x.to(device), sigma, pixels.to(device))
            assert rows.device.type == device
            close(rows.cpu(), here.jacobian_rows(x, sigma, pixels), 1e-3)
