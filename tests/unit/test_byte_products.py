"""Products of whole numbers: what they are made of, when they serve, and what rounding costs."""

import pytest
import torch
from torch import Tensor

from locality.data import load
from locality.denoisers import LocalDenoiser, OptimalDenoiser, byte_products, masks
from locality.stats import PCA

CPU = torch.device("cpu")
needs_units = pytest.mark.skipif(
    not byte_products.supported(CPU), reason="this processor has no matrix units for bytes"
)


def direct(x: Tensor, images: Tensor, mask: Tensor, sigma: float) -> Tensor:
    """-sum_n M[m, n] (x[n] - v_k[n])^2 / (2 sigma^2) for all m and k, (B, D, N) float64."""
    squares = (x.flatten(1).double()[:, None] - images.flatten(1).double()).square()  # (B, N, D)
    return -torch.einsum("bkn,mn->bmk", squares, mask.double()) / (2 * sigma**2)


def spread(values: Tensor) -> Tensor:
    """``values`` less their mean over the images: what a softmax sees of them."""
    return values - values.mean(-1, keepdim=True)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_digits_are_the_rounded_numbers(count):
    values = torch.randn(5, 70, generator=torch.Generator().manual_seed(0)).double()
    values[0, :3] = torch.tensor([5.0, -5.0, 0.0])
    digits = byte_products._digits(values, count, 5.0)
    assert len(digits) == count
    assert all(digit.dtype == torch.int8 and digit.shape == (5, 128) for digit in digits)
    assert all(not digit[:, 70:].any() for digit in digits), "padded with zeros"
    assert digits[0][0, 0] == 127 and digits[0][0, 1] == -127 and digits[0][0, 2] == 0
    whole = sum(d.double() * 256 ** (count - 1 - i) for i, d in enumerate(digits))[:, :70]
    step = 5.0 / (127 * 256 ** (count - 1))
    assert (whole * step - values).abs().max() <= step / 2 * (1 + 1e-9)


@needs_units
def test_products_of_the_largest_bytes_are_exact():
    # 1,024 products of 128^2 are 2^24, the last whole number up to which float32 has all of them.
    rows = torch.full((3, byte_products.EXACT), -128, dtype=torch.int8)
    rows[1], rows[2, ::2] = 127, 127
    packed = [byte_products._pack(rows)]
    found = byte_products._products([rows], packed, [1.0], onto=torch.zeros(3, 3))
    assert torch.equal(found.double(), rows.double() @ rows.double().T)


@needs_units
@pytest.mark.parametrize("precise", [False, True])
@pytest.mark.parametrize("kind", ["square", "soft"])
def test_logits_are_those_of_the_formula(fashion, fashion_pca, noised, kind, precise):
    images, sigma = fashion.images[:90], 0.724
    mask = masks.square(fashion.shape, 7) if kind == "square" else masks.soft(fashion_pca, sigma)
    x = noised(fashion.images[200:203], sigma)
    queries = byte_products.ByteQueries(
        x.flatten(1).double(), mask.double() / (2 * sigma**2), 3, precise=precise
    )
    expected = direct(x, images, mask, sigma)
    (block,) = byte_products.blocks(images, 512)
    found = torch.cat([part.double() + lacking for part, lacking in queries.logits(block)])
    found = found.transpose(0, 1) / byte_products.BITS + queries.constant[..., None]  # (B, D, N)
    error = (found - expected).abs().max().item()
    assert error < 2e-5 * expected.abs().max().item() ** 0.5, error
    outputs = block.outputs(slice(100, 103))
    assert torch.equal(outputs[:, 0], torch.ones(3, 90))
    assert torch.equal(outputs[:, 1], images.flatten(1).T[100:103])


@needs_units
@pytest.mark.parametrize("precise", [False, True])
@pytest.mark.parametrize("pixels", [1, 9])
def test_a_single_output_pixel_is_left_over(
    fashion, fashion_pca, noised, monkeypatch, pixels, precise
):
    # The rows of logits of one pixel's queries start as copies of one row, and need memory of
    # their own: products are written onto them.
    sigma, queries = 0.724, 6
    monkeypatch.setattr(byte_products, "ROWS", 4 * queries)  # four output pixels at a time
    images = fashion.images[:90]
    mask = masks.pca(fashion_pca, sigma, 0.02)[300 : 300 + pixels]
    x = noised(fashion.images[200 : 200 + queries], sigma)
    found = byte_products.ByteQueries(
        x.flatten(1).double(), mask.double() / (2 * sigma**2), 3, precise=precise
    )
    (block,) = byte_products.blocks(images, 512)
    parts = [part.double() + lacking for part, lacking in found.logits(block)]
    assert [len(part) for part in parts] == [4] * (pixels // 4) + [1]
    logits = torch.cat(parts).transpose(0, 1) / byte_products.BITS + found.constant[..., None]
    expected = direct(x, images, mask, sigma)
    error = (logits - expected).abs().max().item()
    assert error < 2e-5 * expected.abs().max().item() ** 0.5, error


@needs_units
def test_products_are_written_onto_memory_of_their_own():
    rows = torch.ones(3, byte_products.STEP, dtype=torch.int8)
    with pytest.raises(ValueError, match="contiguous"):
        byte_products._products(
            [rows], [byte_products._pack(rows)], [1.0], onto=torch.zeros(1, 3).expand(3, 3)
        )


@needs_units
def test_fewer_digits_err_as_the_estimate_says(fashion, fashion_pca, fashion_test, noised):
    for sigma in (60.8, 3.44, 0.724):
        mask = masks.pca(fashion_pca, sigma, 0.02)
        x, weights = noised(fashion_test.images[:4], sigma), mask.double() / (2 * sigma**2)
        flat = x.flatten(1).double()
        exact = spread(direct(x, fashion.images[:500], mask, sigma))
        (block,) = byte_products.blocks(fashion.images[:500], 512)
        for count in (1, 2):
            queries = byte_products.ByteQueries(flat, weights, count, precise=False)
            parts = [part / byte_products.BITS for part, _ in queries.logits(block)]
            logits = torch.cat(parts).transpose(0, 1)
            error = (spread(logits.double()) - exact).square().mean().sqrt().item()
            # The estimate is for the widest mask and the coarsest step: ten times less at least.
            tolerance = error * min(1.0, sigma)
            below = byte_products.digits_needed(
                flat, weights, sigma, tolerance=tolerance / 2, precise=False
            )
            above = byte_products.digits_needed(
                flat, weights, sigma, tolerance=tolerance * 20, precise=False
            )
            assert below is None or below > count, (sigma, count)
            assert above is not None and above <= count, (sigma, count)


@needs_units
def test_a_tolerance_costs_no_more_than_it_says(fashion, fashion_pca, fashion_test, noised):
    def mask(sigma: float) -> Tensor:
        return masks.pca(fashion_pca, sigma, 0.02)

    for sigma in (60.8, 6.17, 0.724, 0.342, 0.01):
        x = noised(fashion_test.images[:3], sigma)
        exact = LocalDenoiser(fashion, mask)(x, sigma)
        for tolerance in (1e-2, 1e-3, 1e-4):
            found = LocalDenoiser(fashion, mask, tolerance=tolerance)(x, sigma)
            assert (found - exact).abs().max() < 2 * tolerance, (sigma, tolerance)


@needs_units
@pytest.mark.parametrize("sigma", [3.44, 0.342])
def test_more_pixels_than_float32_adds_up_exactly(noised, monkeypatch, sigma):
    data = load("fashion-mnist", n=60, size=48)
    near, everywhere = masks.square(data.shape, 9), masks.full(data.shape)
    x = noised(data.images[:3], sigma)
    found = {}
    for memory in (byte_products.MEMORY, 2**22):  # some output pixels at a time
        monkeypatch.setattr("locality.denoisers.local.MEMORY", memory)
        found[memory] = LocalDenoiser(data, lambda _: near)(x, sigma)
    first, other = found.values()
    assert (first - other).abs().max() < 2e-5
    logits = direct(x, data.images, near, sigma)  # (B, D, N)
    expected = (logits.softmax(2) * data.images.flatten(1).T.double()).sum(2).view_as(x)
    assert (first - expected).abs().max() < 2e-5
    # Under a mask of more than 1,024 pixels first digits are not exact sums: at low noise they
    # must be, and the denoiser takes the other way.
    flat, weights = x.flatten(1).double(), everywhere.double() / (2 * sigma**2)
    count = byte_products.digits_needed(flat, weights, sigma, tolerance=5e-6, precise=sigma < 0.38)
    assert (count is None) == (sigma < 0.38)
    found = LocalDenoiser(data, lambda _: everywhere)(x, sigma)
    expected = OptimalDenoiser(data)(x, sigma)
    assert (found - expected).abs().max() < 2e-5


@needs_units
def test_what_is_not_made_of_bytes_is_multiplied_in_floats(fashion, fashion_pca, noised):
    images, sigma = fashion.images[:50], 0.724

    def made(images: Tensor, kind: str = "pca") -> LocalDenoiser:
        mask = masks.pca(fashion_pca, sigma, 0.02) if kind == "pca" else masks.soft(fashion_pca, 1)
        return LocalDenoiser(images, lambda _: mask)

    assert made(images)._blocks is not None
    shifted = images * 0.999
    assert byte_products.blocks(shifted, 512) is None and made(shifted)._blocks is None
    assert byte_products.blocks(images + 1 / 127.5, 512) is None, "beyond 255"
    x = noised(images[:2], sigma)
    close = (made(shifted)(x, sigma) - made(images)(x, sigma)).abs().max()
    assert close < 0.05, "the two ways answer alike"
    # So many pixels that a mask takes too much memory.
    large = load("fashion-mnist", n=4, size=72)
    assert LocalDenoiser(large, lambda _: masks.full(large.shape))._blocks is None
    # So little noise, under so wide a mask, that float32 does not hold the rest.
    flat, weights = x.flatten(1).double(), masks.soft(fashion_pca, 1).double() / 2e-4
    assert byte_products.digits_needed(flat, weights, 0.01, tolerance=5e-6, precise=True) is None
    # Gradients.
    asking = x.clone().requires_grad_()
    made(images)(asking, sigma).sum().backward()
    assert asking.grad.abs().max() > 0


def test_a_tolerance_must_be_positive(fashion):
    for tolerance in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"tolerance must be positive, got {tolerance}"):
            LocalDenoiser(fashion, lambda _: masks.full(fashion.shape), tolerance=tolerance)


def test_a_machine_without_units_for_bytes_says_so(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_int8": False}, raising=False)
    assert not byte_products.supported(CPU)
    assert not byte_products.supported(torch.device("cuda"))


def test_both_ways_sample_the_same_images(fashion, monkeypatch):
    pca = PCA.fit(fashion)
    from locality.sampling import ddim, initial_noise
    from locality.schedule import ddpm_sigmas

    known = {float(s): masks.pca(pca, float(s), 0.02) for s in ddpm_sigmas(10)}
    noise = initial_noise(4, fashion.shape, sigma=float(ddpm_sigmas(10)[0]))
    *_, usual = ddim(LocalDenoiser(fashion, known.get), noise, ddpm_sigmas(10))
    monkeypatch.setattr("locality.denoisers.local.supported", lambda device: False)
    *_, floats = ddim(LocalDenoiser(fashion, known.get), noise, ddpm_sigmas(10))
    assert (usual.x0 - floats.x0).abs().max() < 1e-3
