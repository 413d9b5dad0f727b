"""The screened equivariant machine against the exact one, and what it says about its own error."""

import pytest
import torch
from torch import Tensor

from locality.data import load
from locality.denoisers import ELSDenoiser, ScreenedELSDenoiser, screened_patches
from locality.denoisers.patches import BOUNDARIES

EVERYTHING = 10**7


def largest(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape
    return (got - expected).abs().max().item()


def rms(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape
    return (got - expected).square().mean().sqrt().item()


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Images of 14 x 14 pixels: 39,200 patches that wrap around, (200, 1, 14, 14)."""
    return load("fashion-mnist", n=200, size=14).images


@pytest.fixture(scope="module")
def clean() -> Tensor:
    """Two images that are not among them, (2, 1, 14, 14)."""
    return load("fashion-mnist", "test", n=2, size=14).images


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("side", [1, 3, 5])
@pytest.mark.parametrize("enough", [{"draw": EVERYTHING}, {"draw": 3, "keep": EVERYTHING}])
def test_with_every_patch_the_answer_is_exact(tiny, noised, boundary, side, enough):
    for training in (tiny.images[:20], load("photos", n=8, size=9).images[:, :, :7]):
        exact = ELSDenoiser(training, side, boundary=boundary)
        screened = ScreenedELSDenoiser(training, side, boundary=boundary, **enough)
        for sigma in (6.17, 0.724, 0.1):
            x = noised(training[:2], sigma)
            found = screened.denoise_with_bound(x, sigma)
            assert found.x0_hat.dtype == torch.float32
            truth = exact(x.double(), sigma).float()
            assert largest(found.x0_hat, truth) < 1e-5, f"sigma {sigma}"
            assert found.bound.max() < 1e-5
            if "keep" not in enough:
                assert found.estimate.max() == 0, "a draw of everything has no error"


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_windows_as_wide_as_the_image(tiny, noised, boundary):
    training = tiny.images[:20, :, :, :5]  # (20, 1, 6, 5)
    side = {"circular": 13, "complete": 5, "broken": 13}[boundary]
    x = noised(training[:2], 0.724)
    exact = ELSDenoiser(training, side, boundary=boundary)
    screened = ScreenedELSDenoiser(training, side, boundary=boundary)
    assert largest(screened(x, 0.724), exact(x, 0.724)) < 1e-5


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_cells_and_merged_patches_hold_the_dictionary_once(images, boundary):
    denoiser = ScreenedELSDenoiser(images, 3, boundary=boundary, keep=500, draw=1000)
    dictionary = next(d for d in denoiser._dictionaries(3) if not d.fixed)
    cells = dictionary.cells
    assert len(cells.middles) > 50
    every = torch.cat(list(dictionary.starts()))
    blank = (dictionary.cut(every) == cells.blank).all(1)
    assert cells.blanks == blank.sum() > 1000, "the background of clothes is black"
    assert torch.equal(cells.starts.sort().values, every[~blank].sort().values)
    # The oracle of the projection: points are nearer to their own cell's mean than to most others.
    own = torch.repeat_interleave(cells.ends.diff())
    points = dictionary.cut(cells.starts) @ cells.basis
    distances = torch.cdist(points, cells.middles)
    rank = (distances < distances.gather(1, own[:, None])).sum(1)
    assert (rank == 0).float().mean() > 0.7 and rank.float().mean() < 2


def test_the_sample_stands_for_all_cells(images):
    denoiser = ScreenedELSDenoiser(images, 3, keep=500, draw=1000)
    (dictionary,) = denoiser._dictionaries(3)
    cells = dictionary.cells
    assert len(cells.sample.unique()) > 0.9 * len(cells.sample), "few patches are drawn twice"
    stands = torch.zeros(len(cells.middles)).index_add_(0, cells.drawn_from, cells.log_stands.exp())
    torch.testing.assert_close(stands, cells.ends.diff().float())
    own = torch.repeat_interleave(cells.ends.diff())
    home = dict(zip(cells.starts.tolist(), own.tolist(), strict=True))
    assert [home[s] for s in cells.sample.tolist()] == cells.drawn_from.tolist()


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_the_nearest_cells_hold_the_weight_at_low_noise(images, clean, noised, boundary):
    for sigma, side in ((0.724, 5), (0.342, 3), (0.05, 3)):
        x = noised(clean, sigma)
        truth = ELSDenoiser(images, side, boundary=boundary)(x, sigma)
        found = {
            keep: rms(
                ScreenedELSDenoiser(images, side, boundary=boundary, keep=keep, draw=300)(x, sigma),
                truth,
            )
            for keep in (50, 3000)
        }
        assert found[3000] < 0.06, f"sigma {sigma}"
        assert found[3000] < 0.4 * found[50], f"sigma {sigma}"


def test_more_draws_are_more_exact_and_their_errors_cancel(images, clean, noised):
    sigma, side, seeds = 2.04, 5, 8
    x = noised(clean, sigma)
    truth = ELSDenoiser(images, side)(x, sigma)
    errors = {}
    for draw in (500, 8000):
        answers = [
            ScreenedELSDenoiser(images, side, keep=1, draw=draw, seed=seed)(x, sigma)
            for seed in range(seeds)
        ]
        errors[draw] = sum(rms(a, truth) for a in answers) / seeds
        mean = torch.stack(answers).mean(0)
        assert rms(mean, truth) < 0.6 * errors[draw], "biased"
    assert errors[8000] < 0.4 * errors[500]


def test_the_estimate_is_the_spread_over_draws(images, clean, noised):
    x, sigma = noised(clean[:1], 2.04), 2.04
    found = [
        ScreenedELSDenoiser(images, 5, keep=1, draw=3000, seed=seed)._answer(x, sigma)
        for seed in range(8)
    ]
    spread = torch.stack([mean for mean, _ in found]).var(0).mean().sqrt()
    claimed = torch.stack([error for _, error in found]).square().mean().sqrt()
    # Drawing from every cell evenly does better than the estimate, which knows no cells.
    assert 0.7 < claimed / spread < 2


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_the_bound_holds_for_the_share_of_pixels_that_it_claims(images, clean, noised, boundary):
    held = []
    for i, sigma in enumerate((6.17, 2.04, 1.24, 0.724, 0.342)):
        exact = ELSDenoiser(images, 3, boundary=boundary)
        screened = ScreenedELSDenoiser(images, 3, boundary=boundary, keep=200, draw=300, seed=i)
        x = noised(clean, sigma)
        found = screened.denoise_with_bound(x, sigma)
        assert torch.equal(found.x0_hat, screened(x, sigma))
        wrong = (found.x0_hat - exact(x, sigma)).flatten(1)
        assert largest(found.errors, wrong[:, found.pixels]) < 5e-5
        assert torch.allclose(found.bound, found.errors.abs().amax(1))
        held += [(wrong.abs() <= found.bound[:, None] + 1e-6).float().mean(1)]
    share = torch.cat(held)
    # Each of 10 keeps its 95 % of the pixels with a probability of 95 %; the seeds are fixed.
    assert (share >= 0.95).sum() >= 8, f"shares of pixels within the bound: {share}"


def test_colour_at_pixels_and_in_cells(noised):
    training = load("photos", n=40, size=16).images
    x, sigma = noised(training[:1], 0.3), 0.3
    truth = ELSDenoiser(training, 3, boundary="broken")(x, sigma)
    screened = ScreenedELSDenoiser(training, 3, boundary="broken", keep=1500, draw=500)
    assert rms(screened(x, sigma), truth) < 0.02
    pixels = torch.tensor([0, 700, 300, 517, 255])  # any order, any channel, corners too
    at_pixels = screened.at_pixels(x, sigma, pixels)
    assert largest(at_pixels, truth.flatten(1)[:, pixels]) < 1e-5


def test_the_answer_depends_on_the_seed_only(images, clean, noised, monkeypatch):
    options = {"boundary": "broken", "keep": 500, "draw": 300}
    x, sigma = noised(clean, 0.724), 0.724
    denoiser = ScreenedELSDenoiser(images, 3, **options)
    whole = denoiser(x, sigma)
    assert torch.equal(denoiser(x, sigma), whole)
    # Other cells are made for another side, and the same again afterwards.
    denoiser.exact.side = 5
    denoiser(x, sigma)
    denoiser.exact.side = 3
    assert torch.equal(denoiser(x, sigma), whole)
    assert largest(torch.cat([denoiser(part, sigma) for part in x.split(1)]), whole) < 1e-5
    monkeypatch.setattr(screened_patches, "BLOCK", 2**14)
    assert largest(denoiser(x, sigma), whole) < 1e-5
    other = ScreenedELSDenoiser(images, 3, **options, seed=1)
    assert largest(other(x, sigma), whole) > 1e-4


def test_patches_are_never_all_in_memory(measured_memory):
    # 484,000 patches of 49 pixels: 95 MB, if they were stored; their starts take 2 MB.
    before, after = measured_memory("""
        import torch
        from locality.data import load
        from locality.denoisers import ScreenedELSDenoiser

        torch.set_num_threads(1)
        images = load("fashion-mnist", n=1000).images
        x = images[:2] + 0.342 * torch.randn(2, 1, 28, 28)
        ScreenedELSDenoiser(images[:20], 7, boundary="broken", keep=200)(x, 0.342)
        print(peak())
        ScreenedELSDenoiser(images, 7, boundary="broken", keep=3000)(x, 0.342)
        print(peak())
    """)
    assert after - before < 70, f"{after - before:.0f} MB"


def test_bad_input_is_refused(images):
    with pytest.raises(ValueError, match="keep must be a whole number, at least 1, got 0"):
        ScreenedELSDenoiser(images, 3, keep=0)
    with pytest.raises(ValueError, match=r"draw must be a whole number, at least 1, got 2\.5"):
        ScreenedELSDenoiser(images, 3, draw=2.5)
    with pytest.raises(ValueError, match="boundary must be one of circular, complete, broken"):
        ScreenedELSDenoiser(images, 3, boundary="zero")
    with pytest.raises(ValueError, match="images: expected shape"):
        ScreenedELSDenoiser(torch.zeros(3, 4), 3)
    x = torch.zeros(1, 1, 14, 14)
    with pytest.raises(ValueError, match="side must be an odd, positive whole number, got 4"):
        ScreenedELSDenoiser(images, lambda sigma: 4)(x, 1.0)
    with pytest.raises(ValueError, match="no complete patch of side 15"):
        ScreenedELSDenoiser(images, 15, boundary="complete")(x, 1.0)
    denoiser = ScreenedELSDenoiser(images, 3)
    with pytest.raises(ValueError, match="expected shape"):
        denoiser(torch.zeros(1, 1, 28, 28), 1.0)
    for sigma in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="sigma must be"):
            denoiser(x, sigma)
        with pytest.raises(ValueError, match="sigma must be"):
            denoiser.denoise_with_bound(x, sigma)
