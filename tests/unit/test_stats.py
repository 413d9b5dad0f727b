"""Principal components and the Wiener matrix: scikit-learn's, streaming, on disk, bad input."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.decomposition import PCA as SklearnPCA

from locality.shapes import letter_w
from locality.stats import PCA


@pytest.fixture(scope="module")
def reference(fashion):
    flat = fashion.images.flatten(1).double().numpy()
    return SklearnPCA(svd_solver="full").fit(flat)


def test_pca_is_scikit_learns(fashion_pca, reference):
    assert fashion_pca.shape == (1, 28, 28)
    assert fashion_pca.count == 2000
    np.testing.assert_allclose(fashion_pca.mean, reference.mean_, atol=1e-6)
    variances = reference.explained_variance_
    np.testing.assert_allclose(fashion_pca.eigenvalues, variances, atol=1e-6, rtol=1e-5)
    # A component is defined, up to sign, where its variance differs from its neighbours'.
    gaps = -np.diff(variances)
    defined = np.minimum(np.append(np.inf, gaps), np.append(gaps, 0)) > 1e-9 * variances[0]
    assert defined.sum() > 750, f"only {defined.sum()} of 784 components can be compared"
    ours, theirs = fashion_pca.eigenvectors.double().numpy().T, reference.components_
    signs = np.sign((ours * theirs).sum(1, keepdims=True))
    np.testing.assert_allclose((signs * ours)[defined], theirs[defined], atol=1e-4)


def test_eigenvectors_are_orthonormal_and_rebuild_the_covariance(fashion, fashion_pca):
    basis = fashion_pca.eigenvectors
    torch.testing.assert_close(basis.T @ basis, torch.eye(784), atol=1e-5, rtol=0)
    expected = np.cov(fashion.images.flatten(1).double().numpy().T)
    np.testing.assert_allclose(fashion_pca.covariance(), expected, atol=1e-5)
    assert (fashion_pca.eigenvalues.diff() <= 0).all()
    assert (fashion_pca.eigenvalues >= 0).all()


@pytest.mark.parametrize("chunk", [1, 7, 512, 520, 10_000])
def test_the_chunk_does_not_change_the_result(small, small_pca, chunk):
    pca = PCA.fit(small, chunk=chunk)
    assert pca.count == len(small)
    torch.testing.assert_close(pca.mean, small_pca.mean, atol=1e-6, rtol=0)
    torch.testing.assert_close(pca.covariance(), small_pca.covariance(), atol=1e-5, rtol=0)
    torch.testing.assert_close(pca.eigenvalues, small_pca.eigenvalues, atol=1e-6, rtol=1e-6)


def test_an_iterator_of_uneven_chunks_gives_the_same(small, small_pca):
    pieces = iter(small.images.split([3, 200, 1, 316]))
    pca = PCA.fit(pieces)
    assert (pca.count, pca.shape) == (520, (1, 14, 14))
    torch.testing.assert_close(pca.covariance(), small_pca.covariance(), atol=1e-5, rtol=0)


def test_a_large_mean_costs_no_digits():
    # Variance 1e-14 about a mean of .9: a sum of squares minus a squared sum has two digits of it
    # left, even in float64.
    generator = torch.Generator().manual_seed(0)
    images = 0.9 + 1e-7 * torch.randn(400, 1, 2, 2, generator=generator, dtype=torch.float64)
    expected = np.cov(images.flatten(1).numpy().T)
    np.testing.assert_allclose(PCA.fit(images).covariance(), expected, rtol=1e-4, atol=1e-18)


def test_memory_does_not_grow_with_the_number_of_images(measured_memory):
    # Ten times the images, drawn in chunks: 113 MB more if they were kept.
    script = """
    import torch
    from locality.stats import PCA

    def chunks(count):
        generator = torch.Generator().manual_seed(0)
        for _ in range(count):
            yield torch.rand(500, 1, 28, 28, generator=generator) * 2 - 1

    torch.set_num_threads(1)
    peaks = []
    for count in (8, 8, 80):  # the allocator still grows at the second fit of one size
        assert PCA.fit(chunks(count)).count == 500 * count
        peaks.append(peak())
    print(*peaks)
    """
    _, few, many = measured_memory(script)
    assert many - few < 20, f"peak memory {few:.0f} MB for 4,000 images, {many:.0f} for 40,000"


def test_shrinkage_and_the_wiener_matrix_are_the_formula(fashion, fashion_pca):
    covariance = np.cov(fashion.images.flatten(1).double().numpy().T)
    for sigma in (12.0, 0.724):
        expected = np.linalg.solve(covariance + sigma**2 * np.eye(784), covariance)
        np.testing.assert_allclose(fashion_pca.wiener_matrix(sigma), expected, atol=1e-5)
        values = fashion_pca.eigenvalues.double()
        shrinkage = values / (values + sigma**2)
        torch.testing.assert_close(fashion_pca.shrinkage(sigma).double(), shrinkage)


def test_wiener_rows_are_rows_of_the_wiener_matrix(fashion_pca):
    pixels = [0, 406, 783, 406]
    rows = fashion_pca.wiener_rows(1.24, pixels)
    torch.testing.assert_close(rows, fashion_pca.wiener_matrix(1.24)[pixels], atol=1e-6, rtol=0)
    same = fashion_pca.wiener_rows(1.24, torch.tensor(pixels))
    assert torch.equal(rows, same)


@pytest.mark.parametrize("k", [1, 20, 196])
def test_truncated_components_share_the_mean_of_what_is_missing(small_pca, k):
    few = small_pca.truncate(k)
    assert few.eigenvectors.shape == (196, k)
    assert few.eigenvalues.shape == (196,)
    basis = small_pca.eigenvectors[:, :k].double()
    others = torch.eye(196, dtype=torch.float64) - basis @ basis.T  # projects on the directions
    shrinkage = small_pca.shrinkage(1.0).double()
    for values, got in (
        (small_pca.eigenvalues.double(), few.covariance()),
        (shrinkage, few.wiener_matrix(1.0)),
        (shrinkage, few.wiener_rows(1.0, range(196))),
    ):
        rest = values[k:].mean() if k < 196 else 0
        expected = (basis * values[:k]) @ basis.T + rest * others
        torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=0)
    assert few.covariance().trace().item() == pytest.approx(small_pca.eigenvalues.sum().item())


@pytest.mark.parametrize("k", [20, 196])
def test_apply_is_the_product_with_the_matrix(small, small_pca, k):
    pca, x = small_pca.truncate(k), small.images[:5].flatten(1)
    expected = x @ pca.wiener_matrix(0.5).T
    torch.testing.assert_close(pca.apply(pca.shrinkage(0.5), x), expected, atol=1e-5, rtol=0)


def test_from_covariance_returns_the_covariance(colour):
    flat = colour.images.flatten(1).double()
    covariance = torch.from_numpy(np.cov(flat.numpy().T))
    pca = PCA.from_covariance(flat.mean(0), covariance, shape=(3, 4, 4), count=60)
    assert pca.mean.dtype == pca.eigenvalues.dtype == pca.eigenvectors.dtype == torch.float32
    torch.testing.assert_close(pca.covariance().double(), covariance, atol=1e-6, rtol=0)


def test_save_and_load_round_trip(small_pca, tmp_path):
    path = tmp_path / "basis.safetensors"
    small_pca.save(path)
    back = PCA.load(path)
    for name in ("mean", "eigenvalues", "eigenvectors"):
        assert torch.equal(getattr(back, name), getattr(small_pca, name)), name
    assert (back.shape, back.count) == (small_pca.shape, small_pca.count)


def test_half_precision_halves_the_file_and_keeps_three_digits(small_pca, tmp_path):
    full, half = tmp_path / "full.safetensors", tmp_path / "half.safetensors"
    small_pca.save(full)
    small_pca.save(half, dtype=torch.float16)
    assert half.stat().st_size < 0.55 * full.stat().st_size
    back = PCA.load(half)
    assert back.eigenvectors.dtype == torch.float32
    torch.testing.assert_close(back.eigenvectors, small_pca.eigenvectors, atol=5e-4, rtol=0)
    torch.testing.assert_close(
        back.wiener_matrix(1.0), small_pca.wiener_matrix(1.0), atol=1e-3, rtol=0
    )


def test_loading_what_is_not_there_or_not_ours_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no principal components at .*nowhere"):
        PCA.load(tmp_path / "nowhere.safetensors")
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.ones(2)}, foreign)
    with pytest.raises(ValueError, match=r"foreign.*should hold.*eigenvalues.*holds \['weight'\]"):
        PCA.load(foreign)


@pytest.mark.parametrize("content", [b"", b"not a safetensors file at all", b"\xff" * 64])
def test_loading_a_file_of_another_format_says_so(tmp_path, content):
    path = tmp_path / "garbage.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"garbage\.safetensors"):
        PCA.load(path)


def test_bad_images_are_refused(small):
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        PCA.fit(small.images[:1])
    with pytest.raises(ValueError, match="at least 2 images, got 0"):
        PCA.fit(iter([]))
    broken = small.images[:10].clone()
    broken[3, 0, 2, 2] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite pixels"):
        PCA.fit(broken, chunk=2)


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), torch.ones(2)])
def test_bad_noise_levels_are_refused(small_pca, sigma):
    for method in (small_pca.shrinkage, small_pca.wiener_matrix):
        with pytest.raises(ValueError, match="sigma must be"):
            method(sigma)
    with pytest.raises(ValueError, match="sigma must be"):
        small_pca.wiener_rows(sigma, [0])


@pytest.mark.parametrize("k", [0, -1, 197])
def test_truncation_beyond_the_components_is_refused(small_pca, k):
    with pytest.raises(ValueError, match=f"between 1 and 196, got {k}"):
        small_pca.truncate(k)


def test_colour_pixels_are_counted_channel_by_channel(colour):
    pca = PCA.fit(colour)
    assert pca.shape == (3, 4, 4)
    red, blue = colour.images[:, 0].flatten(1).numpy(), colour.images[:, 2].flatten(1).numpy()
    expected = np.cov(red.T, blue.T)[:16, 16:]  # red pixels against blue ones
    np.testing.assert_allclose(pca.covariance()[:16, 32:], expected, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.1, 1.24, 12.0])
def test_a_hidden_shape_changes_the_wiener_rows_as_a_new_pca_would(fashion, fashion_pca, sigma):
    shape, variance = letter_w(28, 28).flatten(), 0.25
    outer = torch.outer(shape, shape).double()
    mean, covariance = fashion_pca.mean, torch.cov(fashion.images.flatten(1).double().T)
    again = PCA.from_covariance(
        mean, covariance + variance * outer, shape=fashion.shape, count=len(fashion)
    )
    pixels = [0, 200, 406, int(shape.nonzero()[0])]
    got = fashion_pca.wiener_rows_with(sigma, pixels, shape, variance=variance)
    torch.testing.assert_close(got, again.wiener_rows(sigma, pixels), atol=2e-4, rtol=0)
    unchanged = fashion_pca.wiener_rows(sigma, pixels)
    assert (got - unchanged).abs().max() > 1e-3, "five times the tolerance above"
    same = fashion_pca.wiener_rows_with(sigma, pixels, shape, variance=0.0)
    assert torch.equal(same, unchanged)


def test_the_hidden_shape_of_a_truncated_basis(small):
    # With k < D eigenvectors all other directions share one variance; the update must know them.
    pca = PCA.fit(small)
    values = torch.cat([pca.eigenvalues[:30], pca.eigenvalues[30:].mean().expand(166)])
    pca = replace(pca, eigenvalues=values).truncate(30)
    shape = letter_w(14, 14).flatten()
    covariance = pca.covariance().double() + 0.1 * torch.outer(shape, shape).double()
    identity = torch.eye(196, dtype=torch.float64)
    expected = covariance @ torch.linalg.inv(covariance + 0.5**2 * identity)
    got = pca.wiener_rows_with(0.5, range(196), shape, variance=0.1)
    torch.testing.assert_close(got.double(), expected, atol=1e-4, rtol=0)


def test_a_hidden_shape_must_fit(small_pca):
    with pytest.raises(ValueError, match=r"direction must have shape \(196,\).*got \(784,\)"):
        small_pca.wiener_rows_with(1.0, [0], torch.ones(784), variance=1.0)
    with pytest.raises(ValueError, match="got .* and -1"):
        small_pca.wiener_rows_with(1.0, [0], torch.ones(196), variance=-1.0)
