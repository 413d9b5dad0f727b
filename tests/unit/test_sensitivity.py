"""Sensitivity: closed forms against autograd, and both against Jacobians of other code."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from locality import zoo
from locality.denoisers import LocalDenoiser, OptimalDenoiser, WienerDenoiser, masks
from locality.sensitivity import (
    anisotropy,
    autograd_rows,
    effective_radius,
    jacobian_rows,
    mirror_ratio,
    overlap,
    sensitivity,
)
from locality.stats import PCA

SIGMAS = [25.7, 3.44, 1.24, 0.724, 0.342]
RESULTS = Path(__file__).resolve().parents[2] / "experiments" / "results"


def soft_formula(x: Tensor, images: Tensor, mask: Tensor, sigma: float) -> Tensor:
    """D(x) of the local denoiser for one flat query (D,), in float64; a full mask is optimal."""
    logits = -mask @ ((x[:, None] - images.T) ** 2) / (2 * sigma**2)  # (D, N)
    return (torch.softmax(logits, dim=1) * images.T).sum(1)


def kinds(images, pca: PCA) -> dict:
    return {
        "optimal": OptimalDenoiser(images, chunk=17),
        "full": LocalDenoiser(images, lambda s: masks.full(images.shape), chunk=17),
        "pca": LocalDenoiser(images, lambda s: masks.pca(pca, s, 0.1), chunk=17),
        "soft": LocalDenoiser(images, lambda s: masks.soft(pca, s), chunk=100),
        "warm": LocalDenoiser(images, lambda s: masks.square(images.shape, 3), temperature=2.0),
    }


def relative(got: Tensor, expected: Tensor) -> float:
    """Largest error, relative to the largest entry where that exceeds 1."""
    scale = max(1.0, expected.abs().max().item())
    return ((got.double() - expected.double()).abs().max() / scale).item()


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("name", ["optimal", "full", "pca", "soft", "warm"])
def test_closed_form_is_autograd_is_the_jacobian_of_the_formula(tiny, noised, name, sigma):
    denoiser = kinds(tiny, PCA.fit(tiny))[name]
    x, everything = noised(tiny.images[:2], sigma), range(36)
    closed = jacobian_rows(denoiser, x, sigma, everything)
    assert closed.shape == (2, 36, 36) and closed.dtype == torch.float32
    mask = masks.full(tiny.shape) if name == "optimal" else denoiser.mask(sigma)
    wide = math.sqrt(2) * sigma if name == "warm" else sigma  # a temperature of 2
    images = tiny.images.flatten(1).double()
    for query, rows in zip(x.flatten(1).double(), closed, strict=True):
        expected = torch.autograd.functional.jacobian(
            lambda q: soft_formula(q, images, mask.double(), wide), query
        )
        assert relative(rows, expected) < 1e-5
    assert relative(autograd_rows(denoiser, x, sigma, everything), closed) < 1e-5
    assert closed.abs().max() > 1e-4, "nothing was compared"


def test_rows_come_in_the_order_of_the_pixels(tiny, noised):
    pixels = [30, 0, 14, 0]
    x = noised(tiny.images[:3], 1.24)
    for denoiser in (*kinds(tiny, PCA.fit(tiny)).values(), WienerDenoiser(PCA.fit(tiny))):
        every = jacobian_rows(denoiser, x, 1.24, range(36))
        some = jacobian_rows(denoiser, x, 1.24, pixels)
        assert relative(some, every[:, pixels]) < 1e-6
        assert relative(autograd_rows(denoiser, x, 1.24, torch.tensor(pixels)), some) < 1e-5


@pytest.mark.parametrize("sigma", [12.0, 1.24, 0.342])
def test_wiener_sensitivity_is_the_matrix_row_is_autograd(fashion_pca, fashion, noised, sigma):
    denoiser, x = WienerDenoiser(fashion_pca), noised(fashion.images[:3], sigma)
    pixels = [0, 406, 783]
    closed = jacobian_rows(denoiser, x, sigma, pixels)
    assert closed.shape == (3, 3, 784)
    assert relative(closed, fashion_pca.wiener_matrix(sigma)[pixels].expand(3, -1, -1)) < 1e-5
    assert relative(autograd_rows(denoiser, x, sigma, pixels), closed) < 1e-5


def test_closed_forms_in_full_size(fashion, fashion_pca, noised):
    x, images = noised(fashion.images[:2], 1.24), fashion.images[:100]
    for denoiser in (
        OptimalDenoiser(images),
        LocalDenoiser(images, lambda s: masks.pca(fashion_pca, s, 0.02)),
    ):
        closed = jacobian_rows(denoiser, x, 1.24, [406, 200])
        assert relative(autograd_rows(denoiser, x, 1.24, [406, 200]), closed) < 1e-5


def test_a_finite_difference_agrees(tiny, noised):
    # No autograd and no formula: move one input pixel, see what the output does.
    pca = PCA.fit(tiny)
    for denoiser in (OptimalDenoiser(tiny), LocalDenoiser(tiny, lambda s: masks.soft(pca, s))):
        x, sigma, step = noised(tiny.images[:1], 1.24), 1.24, 1e-2
        moved = torch.zeros(1, 36)
        moved[0, 8] = step
        moved = moved.view_as(x)
        difference = (denoiser(x + moved, sigma) - denoiser(x - moved, sigma)).flatten()
        column = jacobian_rows(denoiser, x, sigma, range(36))[0, :, 8]
        assert (difference / (2 * step) - column).abs().max() < 1e-3


def test_a_local_denoiser_is_sensitive_inside_its_mask_only(small, small_pca, noised):
    mask = masks.square(small.shape, 5)
    denoiser = LocalDenoiser(small, lambda s: mask)
    field = sensitivity(denoiser, noised(small.images[:4], 1.24), 1.24, (7, 5))
    assert field.shape == (4, 14, 14)
    window = torch.zeros(14, 14, dtype=torch.bool)
    window[5:10, 3:8] = True
    assert (field[:, ~window] == 0).all() and field[:, window].amax() > 0
    assert (
        sensitivity(OptimalDenoiser(small), noised(small.images[:4], 1.24), 1.24, (7, 5))[
            :, ~window
        ].amax()
        > 0
    )


def test_sensitivity_takes_the_norm_over_input_and_output_channels(colour, noised):
    pca, x = PCA.fit(colour), noised(colour.images[:2], 0.724)
    denoiser = OptimalDenoiser(colour)
    field = sensitivity(denoiser, x, 0.724, (1, 2))
    expected = torch.zeros(2, 4, 4)
    for b in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda q: denoiser(q[None], 0.724)[0], x[b])
        expected[b] = jacobian[:, 1, 2].square().sum((0, 1)).sqrt()  # (3, 3, 4, 4) -> (4, 4)
    torch.testing.assert_close(field, expected, atol=1e-5, rtol=1e-4)
    wiener = sensitivity(WienerDenoiser(pca), x, 0.724, (1, 2))
    torch.testing.assert_close(wiener[0], wiener[1], msg="a linear filter's field has no query")


def test_a_denoiser_without_a_closed_form_is_differentiated():
    weight = torch.rand(16, 16, generator=torch.Generator().manual_seed(0))

    def denoiser(x: Tensor, sigma: float) -> Tensor:
        return (x.flatten(1) @ weight.T / sigma).view_as(x)

    with torch.no_grad():  # as in a notebook that samples
        rows = jacobian_rows(denoiser, torch.zeros(2, 1, 4, 4), 2.0, [3, 9])
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(rows, (weight[[3, 9]] / 2).expand(2, -1, -1))
    assert not rows.requires_grad


def test_fields_narrow_as_the_noise_falls(fashion_pca, fashion, noised):
    radii = []
    for sigma in (12.0, 3.44, 1.24, 0.342):
        field = sensitivity(WienerDenoiser(fashion_pca), fashion.images[:1], sigma, (14, 14))
        radii.append(effective_radius(field, (14, 14)).item())
    assert all(wide > narrow for wide, narrow in pairwise(radii)), radii


def test_effective_radius_of_known_fields():
    delta = torch.zeros(2, 15, 17)
    delta[:, 4, 9] = 3.0
    assert effective_radius(delta, (4, 9)).tolist() == [0, 0]
    assert effective_radius(delta[0], (4, 6)).item() == pytest.approx(3)
    assert effective_radius(delta[0], (1, 5)).item() == pytest.approx(5)  # sqrt(3^2 + 4^2)
    # A Gaussian exp(-d^2 / (2 s^2)) has the energy exp(-d^2 / s^2): E d^2 = s^2 in the plane.
    place = torch.arange(101.0) - 50
    for width in (2.0, 5.0):
        field = torch.exp(-(place[:, None] ** 2 + place**2) / (2 * width**2))
        assert effective_radius(field, (50, 50)).item() == pytest.approx(width, rel=1e-4)
        assert effective_radius(7 * field, (50, 50)).item() == pytest.approx(width, rel=1e-4)


def bump(height: int, width: int, pixel: tuple[int, int], rows: float, cols: float) -> Tensor:
    """A Gaussian of these two widths around ``pixel``."""
    down, right = torch.arange(height) - pixel[0], torch.arange(width) - pixel[1]
    return torch.exp(-0.5 * ((down[:, None] / rows) ** 2 + (right / cols) ** 2))


def test_anisotropy_of_round_and_other_fields():
    pixel = (16, 16)
    for width in (3.0, 6.0):
        round_field = bump(32, 32, pixel, width, width)
        assert anisotropy(round_field, pixel).item() < 2e-3
        assert anisotropy(5 * round_field, pixel).item() < 2e-3
    axes = [anisotropy(bump(32, 32, pixel, 3, 3 * ratio), pixel).item() for ratio in (1, 1.5, 2, 3)]
    assert all(rounder < longer for rounder, longer in pairwise(axes)), axes
    assert anisotropy(bump(32, 32, pixel, 9, 3), pixel).item() == pytest.approx(axes[-1], rel=1e-3)
    # Random signs have no radial part beyond chance: of the 32 * 32 - 1 values about 23 are fitted.
    noise = torch.randn(50, 32, 32, generator=torch.Generator().manual_seed(0))
    assert anisotropy(noise, pixel).mean().item() == pytest.approx(1 - 23 / 1023, abs=0.01)
    # The pixel itself does not count.
    spike = bump(32, 32, pixel, 3, 6)
    spiked = spike.clone()
    spiked[16, 16] = 100
    assert torch.equal(anisotropy(spike, pixel), anisotropy(spiked, pixel))


# The pixel farthest from (14, 12) is 20.5 away; that from (12, 7) is 25, a whole number.
@pytest.mark.parametrize(("pixel", "last"), [((14, 12), 21), ((12, 7), 25)])
def test_anisotropy_is_the_residual_of_least_squares(fashion_pca, pixel, last):
    row, column = pixel
    field = fashion_pca.wiener_rows(1.24, [row * 28 + column]).view(28, 28).abs().double()
    place = torch.arange(28)
    distance = torch.hypot(place[:, None] - row, place.double() - column).flatten()
    knots = torch.arange(1, last + 1)
    hats = torch.stack([(1 - (distance - k).abs()).clamp_min(0) for k in knots], 1)[distance > 0]
    values = field.flatten()[distance > 0]
    fit = hats @ torch.linalg.lstsq(hats, values[:, None], driver="gelsd").solution
    expected = (values - fit[:, 0]).square().sum() / values.square().sum()
    assert anisotropy(field, pixel).item() == pytest.approx(expected.item(), rel=1e-6)


def test_mirror_ratio_finds_a_second_spot_and_only_there():
    pixel = (16, 11)
    plain = bump(32, 32, pixel, 5, 5)
    assert mirror_ratio(torch.ones(2, 32, 32), pixel).tolist() == [1, 1]
    assert mirror_ratio(plain, pixel).item() == pytest.approx(1, abs=0.25)
    pair = plain + 0.2 * bump(32, 32, (16, 20), 1, 1)
    elsewhere = plain + 0.2 * bump(32, 32, (7, 11), 1, 1)  # as far, but above
    assert mirror_ratio(pair, pixel) > 1.5 * mirror_ratio(plain, pixel)
    assert mirror_ratio(elsewhere, pixel) < mirror_ratio(plain, pixel)
    torch.testing.assert_close(mirror_ratio(pair.flip(1), (16, 20)), mirror_ratio(pair, pixel))
    with pytest.raises(ValueError, match=r"pixel \(3, 15\) is its own mirror image"):
        mirror_ratio(plain, (3, 15))
    for border in ((0, 5), (31, 5), (5, 0), (5, 31)):
        with pytest.raises(ValueError, match="leaves a field of 32 x 32"):
            mirror_ratio(plain, border)


def test_overlap_is_the_cosine_and_blind_to_scale():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 5, 6, 7, generator=generator)
    expected = [
        (u * v).sum() / math.sqrt((u * u).sum() * (v * v).sum()) for u, v in zip(a, b, strict=True)
    ]
    torch.testing.assert_close(overlap(a, b), torch.stack(expected))
    torch.testing.assert_close(overlap(a, 9 * a), torch.ones(5))
    left, right = torch.zeros(4, 4), torch.zeros(4, 4)
    left[:, 0], right[:, 3] = 1, 1
    assert overlap(left, right).item() == 0


def test_bad_input_says_what_was_wrong(tiny):
    denoiser, x = OptimalDenoiser(tiny), tiny.images[:1]
    for pixel in ((6, 0), (0, 6), (-1, 2)):
        with pytest.raises(ValueError, match=r"pixel \(.*lies outside images of 6 x 6"):
            sensitivity(denoiser, x, 1.0, pixel)
    for function in (jacobian_rows, autograd_rows):
        for sigma in (0.0, -2.0, float("nan")):
            with pytest.raises(ValueError, match="positive, finite noise level"):
                function(denoiser, x, sigma, [0])
        with pytest.raises(ValueError, match="RGB images for a denoiser of grey ones"):
            function(denoiser, x.expand(-1, 3, -1, -1), 1.0, [0])
    averaging = LocalDenoiser(tiny, lambda _: masks.full(tiny.shape), batch_average=7)
    with pytest.raises(ValueError, match="batch_average is set"):
        jacobian_rows(averaging, x, 1.0, [0])


@pytest.mark.parametrize("card", sorted(RESULTS.glob("fields-*.json")), ids=lambda path: path.stem)
def test_the_stored_fields_are_those_of_every_network_that_the_zoo_has(card):
    data, models = card.stem.removeprefix("fields-"), json.loads(card.read_text())["models"]
    kinds = {"UNet": "unet", "DiT": "dit", "linear": "linear"}
    networks = {m: f"{kind}/{data}" for m, kind in kinds.items()}
    there = {m: zoo.card(n)["sha256"] for m, n in networks.items() if n in zoo.names()}
    assert models.items() >= there.items()
    assert {*models} == {*there, "Wiener", "analytical local", "optimal"}
