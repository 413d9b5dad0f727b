"""Patch denoisers against brute force in float64, against their relatives, and against hand sums.

The oracles cut every window out by its pixels' indices and share no code with the library.
"""

import itertools
import math

import pytest
import torch
from torch import Tensor

from locality.data import available, load
from locality.denoisers import (
    ELSDenoiser,
    LocalDenoiser,
    OptimalDenoiser,
    PSPCDenoiser,
    WienerDenoiser,
    masks,
)
from locality.denoisers.patches import BOUNDARIES
from locality.denoisers.sides import (
    KAMB_SIDES,
    KAMB_SIGMAS,
    PSPC_SHARES,
    PSPC_SIDES,
    PSPC_SIGMAS,
    by_noise_level,
    calibrate,
)
from locality.sensitivity import autograd_rows
from locality.stats import PCA

SIGMAS = [6.17, 0.724, 0.1]


def window(images: Tensor, row: int, col: int, side: int, *, wrap: bool) -> Tensor:
    """The pixels of (N, C, H, W) around a place, (N, C * side^2); zeros beyond the border."""
    height, width = images.shape[2:]
    pixels = []
    for i, j in itertools.product(range(-(side // 2), side // 2 + 1), repeat=2):
        r, c = row + i, col + j
        if wrap or (0 <= r < height and 0 <= c < width):
            pixels.append(images[:, :, r % height, c % width])
        else:
            pixels.append(torch.zeros_like(images[:, :, 0, 0]))
    return torch.stack(pixels, -1).flatten(1)


def dictionary(size: int, place: int, side: int, boundary: str) -> list[int]:
    """Where along one axis the patches that a window at ``place`` may follow have their centre."""
    inside = [i for i in range(size) if i - side // 2 >= 0 and i + side // 2 < size]
    if boundary == "circular":
        return list(range(size))
    if boundary == "complete" or place in inside:
        return inside
    return [place]


def brute_els(x: Tensor, images: Tensor, side: int, sigma: float, boundary: str) -> Tensor:
    """One window after the other, every patch of its dictionary, in float64."""
    images, answer, wrap = images.double(), torch.zeros_like(x).double(), boundary != "broken"
    height, width = x.shape[2:]
    for row, col in itertools.product(range(height), range(width)):
        places = itertools.product(
            dictionary(height, row, side, boundary), dictionary(width, col, side, boundary)
        )
        own = window(x.double(), row, col, side, wrap=wrap)
        distances, centres = [], []
        for r, c in places:
            patches = window(images, r, c, side, wrap=wrap)
            distances.append(((own[:, None] - patches) ** 2).sum(2))
            centres.append(images[:, :, r, c])
        weights = torch.softmax(-torch.cat(distances, 1) / (2 * sigma**2), dim=1)
        answer[:, :, row, col] = weights @ torch.cat(centres)
    return answer


def brute_pspc(x: Tensor, images: Tensor, patches: Tensor, sigma: float) -> Tensor:
    """(sum C^T C)^-1 sum C^T E[x_C | x] with each patch C a row of 0 and 1, in float64."""
    flat, answer = images.flatten(1).double(), torch.zeros_like(x.flatten(1)).double()
    for query, out in zip(x.flatten(1).double(), answer, strict=True):
        for patch in patches.bool():
            distances = ((query[patch] - flat[:, patch]) ** 2).sum(1)
            out[patch] += torch.softmax(-distances / (2 * sigma**2), dim=0) @ flat[:, patch]
    return (answer / patches.double().sum(0)).view_as(x)


def square_patches(shape: tuple[int, int, int], side: int) -> Tensor:
    """All squares that lie in the image, all channels, as rows of 0 and 1."""
    _, height, width = shape
    rows = []
    for top, left in itertools.product(range(height - side + 1), range(width - side + 1)):
        patch = torch.zeros(shape)
        patch[:, top : top + side, left : left + side] = 1
        rows.append(patch.flatten())
    return torch.stack(rows)


@pytest.fixture(scope="module")
def images(tiny) -> Tensor:
    return tiny.images[:20]


@pytest.fixture(scope="module")
def in_colour() -> Tensor:
    return load("photos", n=8, size=6).images


def largest(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape
    return (got.double() - expected.double()).abs().max().item()


# --- ELS -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("side", [1, 3, 5])
def test_els_is_brute_force_over_all_windows(images, in_colour, noised, boundary, side):
    for training, sigma in itertools.product((images, in_colour), SIGMAS):
        x = noised(training[:2], sigma)
        expected = brute_els(x, training, side, sigma, boundary)
        denoiser = ELSDenoiser(training, side, boundary=boundary, chunk=7)
        assert largest(denoiser(x.double(), sigma), expected) < 1e-10
        answer = denoiser(x, sigma)
        assert answer.dtype == torch.float32
        assert largest(answer, expected) < 1e-5, f"float32, sigma {sigma}"


def test_els_of_one_pixel_patches_is_a_scalar_problem():
    # Two images hold the values -1 (five times), 0 (twice) and 1 (once), wherever they stand.
    training = torch.tensor([[-1.0, -1, -1, 0], [-1, -1, 0, 1]]).view(2, 1, 2, 2)
    x, sigma = torch.tensor([[0.3, -2.0], [0.0, 5.0]]).view(1, 1, 2, 2).double(), 0.8
    expected = []
    for q in x.flatten().tolist():
        low = 5 * math.exp(-((q + 1) ** 2) / (2 * sigma**2))
        middle = 2 * math.exp(-(q**2) / (2 * sigma**2))
        high = math.exp(-((q - 1) ** 2) / (2 * sigma**2))
        expected.append((high - low) / (low + middle + high))
    expected = torch.tensor(expected, dtype=torch.float64).view_as(x)
    for boundary in BOUNDARIES:
        assert largest(ELSDenoiser(training, 1, boundary=boundary)(x, sigma), expected) < 1e-12


def test_els_on_tori_commutes_with_shifts_and_the_broken_machine_does_not(images, noised):
    x, sigma = noised(images[:2], 0.724), 0.724
    for boundary in BOUNDARIES:
        denoiser = ELSDenoiser(images, 3, boundary=boundary)
        moved = denoiser(x.roll((2, -1), (2, 3)), sigma).roll((-2, 1), (2, 3))
        error = largest(moved, denoiser(x, sigma))
        assert error > 1e-2 if boundary == "broken" else error < 1e-5


def test_els_of_whole_tori_holds_all_shifts_of_all_images(images, noised):
    # A window as large as the torus sees everything: the optimal denoiser over all shifts.
    shifts = [images.roll(s, (2, 3)) for s in itertools.product(range(6), repeat=2)]
    for sigma in SIGMAS:
        x = noised(images[:2], sigma)
        expected = OptimalDenoiser(torch.cat(shifts))(x, sigma)
        assert largest(ELSDenoiser(images, 7)(x, sigma), expected) < 1e-5


def test_broken_els_with_full_size_patches_is_the_optimal_denoiser(images, noised):
    for sigma in SIGMAS:
        x = noised(images[:3], sigma)
        expected = OptimalDenoiser(images)(x, sigma)
        assert largest(ELSDenoiser(images, 11, boundary="broken")(x, sigma), expected) < 1e-5
        # Half the image: every window is cut differently, so each sees only its own place.
        local = LocalDenoiser(images, lambda _: masks.square((1, 6, 6), 7))(x, sigma)
        assert largest(ELSDenoiser(images, 7, boundary="broken")(x, sigma), local) < 1e-5


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_els_depends_on_neither_chunk_nor_order(tiny, noised, boundary):
    x = noised(tiny.images[:2], 0.724)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    whole = ELSDenoiser(tiny, 3, boundary=boundary)(x, 0.724)
    for chunk in (1, 7, 64):
        part = ELSDenoiser(tiny.images[order], 3, boundary=boundary, chunk=chunk)(x, 0.724)
        assert largest(part, whole) < 1e-5, f"chunk {chunk}"
    one = ELSDenoiser(tiny, 3, boundary=boundary)(x[1:], 0.724)
    assert largest(one, whole[1:]) < 1e-6, "the answer to a query depends on the batch"


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_the_closed_form_jacobian_of_els_is_autograds(images, in_colour, noised, boundary):
    for training, sigma in ((images[:6], 0.724), (in_colour[:4], 0.3)):
        x = noised(training[:2], sigma).double()
        pixels = torch.tensor([0, 8, 35])
        denoiser = ELSDenoiser(training, 3, boundary=boundary)
        rows = denoiser.jacobian_rows(x, sigma, pixels)
        assert largest(rows, autograd_rows(denoiser, x, sigma, pixels)) < 1e-9


def test_a_stride_compares_every_other_displacement(images, noised):
    x, sigma = noised(images[:1], 0.724), 0.724
    answer = ELSDenoiser(images, 3, stride=2)(x.double(), sigma)
    own = window(x.double(), 2, 3, 3, wrap=True)
    distances, centres = [], []
    for r, c in itertools.product((0, 2, 4), (1, 3, 5)):
        patches = window(images.double(), r, c, 3, wrap=True)
        distances.append(((own - patches) ** 2).sum(1))
        centres.append(images[:, 0, r, c].double())
    weights = torch.softmax(-torch.cat(distances) / (2 * sigma**2), dim=0)
    assert abs((weights @ torch.cat(centres) - answer[0, 0, 2, 3]).item()) < 1e-12


def test_a_stride_as_long_as_the_image_leaves_the_local_machine(images, in_colour, noised):
    for training, sigma in itertools.product((images, in_colour), SIGMAS):
        x = noised(training[:2], sigma)
        local = LocalDenoiser(training, lambda _: masks.square(tuple(training.shape[1:]), 3))  # noqa: B023
        alone = ELSDenoiser(training, 3, boundary="broken", stride=6)
        assert largest(alone(x, sigma), local(x, sigma)) < 1e-5


# --- PSPC ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [1, 2, 3, 6])
def test_pspc_square_is_brute_force(images, in_colour, noised, side):
    for training, sigma in itertools.product((images, in_colour), SIGMAS):
        x = noised(training[:2], sigma)
        patches = square_patches(tuple(training.shape[1:]), side)
        expected = brute_pspc(x, training, patches, sigma)
        denoiser = PSPCDenoiser(training, side, chunk=7)
        assert largest(denoiser(x.double(), sigma), expected) < 1e-10
        assert largest(denoiser(x, sigma), expected) < 1e-5
        # Squares given as patches of any form, which hold all channels, are the same machine.
        flex = PSPCDenoiser(training, lambda _, p=patches[:, :36]: p)
        assert largest(flex(x.double(), sigma), expected) < 1e-10


@pytest.mark.parametrize("share", [0.3, 0.7, 1.0])
def test_pspc_flex_is_brute_force(in_colour, noised, share):
    # The Wiener filter's rows stand in for a network's sensitivity; the peak at each pixel, the
    # largest entry of its row, makes sure that every pixel is in a patch.
    for sigma in SIGMAS:
        rows = PCA.fit(in_colour).wiener_matrix(sigma)
        channels = in_colour.shape[1]
        maps = rows.view(channels, 36, channels, 36).square().sum((0, 2)).sqrt()
        maps = maps + maps.amax(1).diag()
        patches = masks.top_share(maps, share)
        x = noised(in_colour[:2], sigma)
        answer = PSPCDenoiser(in_colour, lambda _, p=patches: p, chunk=3)(x.double(), sigma)
        expected = brute_pspc(x, in_colour, patches.repeat(1, channels), sigma)
        assert largest(answer, expected) < 1e-10


def test_pspc_with_full_size_patches_is_the_optimal_denoiser(images, noised):
    for sigma in SIGMAS:
        x = noised(images[:3], sigma)
        assert largest(PSPCDenoiser(images, 6)(x, sigma), OptimalDenoiser(images)(x, sigma)) < 1e-5


def test_one_pixel_patches_make_all_local_machines_one(images, noised):
    x = noised(images[:2], 0.724)
    local = LocalDenoiser(images, lambda _: masks.square((1, 6, 6), 1))(x, 0.724)
    assert largest(PSPCDenoiser(images, 1)(x, 0.724), local) < 1e-6


def test_pspc_depends_on_neither_chunk_nor_order(small, noised):
    order = torch.randperm(len(small), generator=torch.Generator().manual_seed(0))
    for sigma in SIGMAS:
        x = noised(small.images[:2], sigma)
        whole = PSPCDenoiser(small, 5)(x, sigma)
        for chunk in (7, 512):
            assert (
                largest(PSPCDenoiser(small.images[order], 5, chunk=chunk)(x, sigma), whole) < 1e-5
            )


@pytest.mark.parametrize("patch", [3, torch.eye(36)], ids=["squares", "pixels"])
def test_pspc_can_be_differentiated(images, noised, patch):
    x, pixels = noised(images[:1], 0.724).double(), torch.tensor([14])
    denoiser = PSPCDenoiser(images, lambda _: patch, chunk=7)
    row = autograd_rows(denoiser, x, 0.724, pixels)[0, 0].view(6, 6)
    step = torch.zeros_like(x)
    for place in ((2, 2), (1, 4), (0, 0)):
        step.zero_()[0, 0][place] = 1e-5
        change = (denoiser(x + step, 0.724) - denoiser(x - step, 0.724)).flatten()[14] / 2e-5
        assert abs((change - row[place]).item()) < 1e-7
    assert row[5, 5] == 0, "no patch covers both"


# --- masks, neighbours, sides --------------------------------------------------------------------


def test_top_places_takes_the_largest():
    maps = torch.tensor([[5.0, 1, 4, 0], [1, 1, 1, 1]])
    assert masks.top_places(maps, 2).tolist() == [[1, 0, 1, 0], [1, 1, 0, 0]]
    assert masks.top_places(maps, 4).sum() == 8
    for bad in (0, 5):
        with pytest.raises(ValueError, match="count must lie between 1 and 4"):
            masks.top_places(maps, bad)


def test_top_share_takes_the_largest_until_they_hold_the_share():
    maps = torch.tensor([[5.0, 1, 4, 0], [1, 1, 1, 1]])
    expected = {0.4: [1, 0, 0, 0], 0.51: [1, 0, 1, 0], 0.9: [1, 0, 1, 0], 1.0: [1, 1, 1, 0]}
    for share, row in expected.items():
        assert masks.top_share(maps, share)[0].tolist() == row, share
    assert masks.top_share(maps, 0.5)[1].sum() == 2
    for bad in (0.0, 1.01):
        with pytest.raises(ValueError, match=r"share must lie in \(0, 1\]"):
            masks.top_share(maps, bad)
    with pytest.raises(ValueError, match="not negative"):
        masks.top_share(-maps, 0.5)
    with pytest.raises(ValueError, match="map 1 is zero everywhere"):
        masks.top_share(maps * torch.tensor([[1.0], [0.0]]), 0.5)


def test_neighbours_keep_the_nearest_images_only(images, noised):
    sigma = 2.0
    x = noised(images[:3], sigma)
    distances = torch.cdist(x.flatten(1).double(), images.flatten(1).double())
    for k in (1, 5):
        expected = []
        for row in distances:
            near = row.argsort()[:k]
            weights = torch.softmax(-(row[near] ** 2) / (2 * sigma**2), dim=0)
            expected.append((weights @ images[near].flatten(1).double()).view(1, 6, 6))
        denoiser = OptimalDenoiser(images, neighbours=k, chunk=7)
        assert largest(denoiser(x, sigma), torch.stack(expected)) < 1e-6
        pixels = torch.tensor([14, 21])
        rows = denoiser.jacobian_rows(x, sigma, pixels)
        assert largest(rows, autograd_rows(denoiser, x, sigma, pixels)) < 1e-5
    for k in (20, 200):
        every = OptimalDenoiser(images, neighbours=k)(x, sigma)
        assert largest(every, OptimalDenoiser(images)(x, sigma)) < 1e-6
    with pytest.raises(ValueError, match="neighbours must be a whole number, at least 1, got 0"):
        OptimalDenoiser(images, neighbours=0)


def test_the_nearest_noise_level_decides():
    side = by_noise_level([0.1, 1.0, 10.0], [3, 5, 7])
    assert [side(s) for s in (0.001, 0.3, 0.33, 3.0, 3.3, 60.8)] == [3, 3, 5, 5, 7, 7]
    with pytest.raises(ValueError, match="one value for each positive sigma"):
        by_noise_level([1.0, 2.0], [3])
    with pytest.raises(ValueError, match="one value for each positive sigma"):
        by_noise_level([0.0, 2.0], [3, 5])


def test_published_sides_grow_with_the_noise():
    for sides in KAMB_SIDES.values():
        assert len(sides) == len(KAMB_SIGMAS) == 19 and list(sides) == sorted(sides)
        assert all(side % 2 for side in sides)
    assert list(KAMB_SIGMAS) == sorted(KAMB_SIGMAS) and 11 < KAMB_SIGMAS[-1] < 11.1
    for values in (PSPC_SIDES, PSPC_SHARES):
        assert len(values) == len(PSPC_SIGMAS) == 18
        assert list(values) == sorted(values, reverse=True)
    assert PSPC_SIGMAS[0] == pytest.approx(80) and PSPC_SIGMAS[-1] == pytest.approx(0.002)


def test_calibration_finds_the_side_of_a_patch_machine(small):
    train, test = small.images[:100], small.images[100:110]
    sides, truth = [1, 3, 5, 7], {6.17: 7, 0.724: 5, 0.2: 3}
    machine = LocalDenoiser(train, lambda s: masks.square(small.shape, truth[round(s, 3)]))

    def candidate(side: int) -> LocalDenoiser:
        return LocalDenoiser(train, lambda _: masks.square(small.shape, side))

    found = calibrate(machine, candidate, test, sides=sides, sigmas=list(truth))
    assert found.best == list(truth.values())
    assert found.similarity.shape == (3, 4)
    for row, side in zip(found.similarity, found.best, strict=True):
        assert row[sides.index(side)] == pytest.approx(1, abs=1e-6) and row.min() < 0.9999
    assert [found(sigma) for sigma in (60.8, 1.0, 0.3)] == [7, 5, 3]


def test_calibration_takes_the_median_cosine_of_the_noise_predictions(small, noised):
    train, test, sigma = small.images[:50], small.images[50:55], 0.724
    wiener = WienerDenoiser(PCA.fit(small))
    found = calibrate(
        wiener, lambda side: PSPCDenoiser(train, side), test, sides=[3, 6], sigmas=[sigma], seed=0
    )
    x = noised(test, sigma)
    for k, side in enumerate((3, 6)):
        cosines = []
        for query in x.split(1):
            a = (query - wiener(query, sigma)).flatten() / sigma
            b = (query - PSPCDenoiser(train, side)(query, sigma)).flatten() / sigma
            cosines.append((a @ b / a.norm() / b.norm()).item())
        assert found.similarity[0, k].item() == pytest.approx(sorted(cosines)[2], abs=1e-5)


def test_the_released_codes_mask_leaves_no_pixel_of_mnist_without_data(official_sigmas, noised):
    # One faint pixel makes the largest entry of R huge; without a guard every mask would empty.
    if not available("mnist"):
        pytest.skip("MNIST is not on this machine")
    digits = load("mnist", n=2000)
    pca = PCA.fit(digits)
    for sigma in official_sigmas[-2:]:
        wiener = pca.wiener_matrix(sigma)
        relative = (wiener / wiener.diagonal().clamp_min(1e-6)).abs()
        unguarded = (relative >= 0.005 * relative.max()) & (wiener.diagonal() >= 1e-6)
        mask = masks.pca_official(pca, sigma, 0.005)
        assert (unguarded.sum(1) == 0).any(), "the case that the guard is for"
        assert (mask.sum(1) > 0).all()
        x = noised(digits.images[:2], sigma)
        answer = LocalDenoiser(digits.images[:200], lambda _, mask=mask: mask)(x, sigma)
        assert torch.isfinite(answer).all() and answer.abs().max() <= 1 + 1e-5


# --- bad input -----------------------------------------------------------------------------------


def test_bad_sides_are_refused(images):
    x = images[:1]
    for side in (0, 2, -3, 3.0):
        for denoiser in (ELSDenoiser(images, side), ELSDenoiser(images, lambda _, s=side: s)):
            with pytest.raises(ValueError, match=f"odd, positive whole number, got {side}"):
                denoiser(x, 1.0)
    with pytest.raises(ValueError, match="no complete patch of side 7"):
        ELSDenoiser(images, 7, boundary="complete")(x, 1.0)
    for side in (0, 7, 2.5):
        with pytest.raises(ValueError, match=f"side between 1 and 6.*got {side}"):
            PSPCDenoiser(images, side)(x, 1.0)


def test_bad_patches_are_refused(images):
    good = torch.eye(36)
    uncovered, weights, empty = good.clone(), good * 0.5, torch.cat([good, torch.zeros(1, 36)])
    uncovered[5] = 0
    for patches, message in (
        (torch.ones(3, 35), r"patches must be \(P, 36\).*got \(3, 35\)"),
        (weights, "zeros and ones"),
        (uncovered, "no patch covers pixel 5"),
        (empty, "patch 36 is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            PSPCDenoiser(images, patches)(images[:1], 1.0)


def test_other_bad_input_is_refused(images):
    with pytest.raises(ValueError, match="boundary must be one of circular, complete, broken"):
        ELSDenoiser(images, 3, boundary="zeros")
    for make in (
        lambda **options: ELSDenoiser(images, 3, **options),
        lambda **options: PSPCDenoiser(images, 3, **options),
    ):
        with pytest.raises(ValueError, match="chunk must be a whole number, at least 1, got 0"):
            make(chunk=0)
        for bad, sigma, message in (
            (images[:1], 0.0, "positive, finite noise level"),
            (images[:1, :, :5], 1.0, r"expected shape \(B, 1, 6, 6\)"),
            (images[:1] * float("nan"), 1.0, "NaN"),
        ):
            with pytest.raises(ValueError, match=message):
                make()(bad, sigma)
    with pytest.raises(ValueError, match="stride must be a whole number, at least 1, got 0"):
        ELSDenoiser(images, 3, stride=0)
    with pytest.raises(ValueError, match=r"expected \[-1, 1\]"):
        ELSDenoiser(images * 3, 3)
