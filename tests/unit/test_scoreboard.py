"""The scoreboard: its numbers are the metrics', it resumes, and the same method scores the same."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from locality import scoreboard, zoo
from locality.book import printed
from locality.cli import main
from locality.data import ImageSet
from locality.denoisers import OptimalDenoiser, WienerDenoiser, masks
from locality.metrics import copy_ratio, frechet_distance, mse, nearest_images, r2
from locality.sampling import ddim, initial_noise
from locality.schedule import ddpm_sigmas
from locality.sensitivity import sensitivity
from locality.training import digest

CHEAP = ("optimal", "nearest", "wiener")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a small untrained network and its card, as `locality train` leaves them."""
    folder = tmp_path_factory.mktemp("networks")
    about = {
        "name": "unet/fashion-mnist",
        "shape": (1, 8, 8),
        "network": {"kind": "linear", "shape": (1, 8, 8), "rank": 64},
        "sigma_data": 0.7,
        "parametrisation": "edm",
        "data": {"name": "fashion-mnist", "images": 200, "sha256": ""},
    }
    torch.manual_seed(0)
    zoo.save(about["name"], zoo.build(about), about, folder=folder)
    return folder


@pytest.fixture(scope="module")
def bench(folder):
    return scoreboard.prepare("unet/fashion-mnist", seeds=6, queries=3, folder=folder)


# --- the Frechet distance ------------------------------------------------------------------------


def test_frechet_distance_is_scipys():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(300, 12)) @ generator.normal(size=(12, 12))
    y = generator.normal(size=(200, 12)) @ generator.normal(size=(12, 12)) + 1
    cov_x, cov_y = np.cov(x.T), np.cov(y.T)
    cross = scipy.linalg.sqrtm(cov_x @ cov_y).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cov_x + cov_y - 2 * cross)
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(y, x) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_known_gaussians():
    x = torch.randn(500, 5, generator=torch.Generator().manual_seed(0)).double()
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + 2) == pytest.approx(20, rel=1e-9), "5 features moved by 2"
    stretched = (x - x.mean(0)) * 3 + x.mean(0)
    assert frechet_distance(x, stretched) == pytest.approx(4 * x.var(0).sum().item(), rel=1e-9)


def test_frechet_distance_with_fewer_images_than_features_is_finite():
    x, y = torch.randn(2, 4, 30, generator=torch.Generator().manual_seed(0)).unbind()
    assert 0 < frechet_distance(x, y) < 200


@pytest.mark.parametrize("shape", [(5, 3), (1, 4), (5,)])
def test_features_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match="two rows or more"):
        frechet_distance(torch.zeros(shape), torch.zeros(5, 4))


# --- the bench -----------------------------------------------------------------------------------


def test_the_bench_is_the_official_protocol(bench, folder):
    torch.testing.assert_close(torch.tensor(bench.sigmas), ddpm_sigmas(10))
    noise = initial_noise(6, (1, 8, 8), sigma=ddpm_sigmas(10)[0], seed=42)
    assert torch.equal(bench.noise, noise)
    *_, last = ddim(zoo.load("unet/fashion-mnist", folder=folder), noise, ddpm_sigmas(10))
    assert torch.equal(bench.trajectory[-1].x0, last.x0)
    assert bench.train.shape == (1, 8, 8) and len(bench.train) == 200
    assert bench.settings["data_sha256"] == digest(bench.train.images)
    few = scoreboard.prepare("unet/fashion-mnist", images=50, seeds=4, queries=2, folder=folder)
    assert torch.equal(few.noise, bench.noise[:4]), "noise i is the same for any number of seeds"
    assert torch.equal(few.train.images, bench.train.images[:50])


def test_the_shipped_images_are_the_first_of_the_full_set():
    bench = scoreboard.prepare("unet/fashion-mnist", images=20, seeds=2, queries=2, steps=2)
    assert bench.settings["data"] == "fashion-mnist", "no download for images that ship"
    known = scoreboard.methods(bench)
    assert {"optimal", "wiener", "local-0.005", "released-0.005", "soft", "unet", "dit"} <= set(
        known
    )
    x = bench.noise[:1] / 60
    assert torch.equal(known["unet"]()(x, 1.0), bench.network(x, 1.0))


@pytest.mark.parametrize("name", ["unet/fashion-mnist-even", "unet/fashion-mnist-w"])
def test_networks_of_other_images_than_the_first_have_no_bench(name):
    with pytest.raises(ValueError, match=f"{name} was trained on images that are not a set's"):
        scoreboard.prepare(name, seeds=2, queries=2)


@pytest.mark.parametrize("few", [{"seeds": 1}, {"queries": 1}])
def test_one_seed_has_no_interval(folder, few):
    with pytest.raises(ValueError, match="at least 2 seeds and queries"):
        scoreboard.prepare("unet/fashion-mnist", **few, folder=folder)


def test_every_method_denoises(bench):
    x = bench.held_out[:2] + 0.724 * bench.noise[:2] / bench.sigmas[0]
    for name, make in scoreboard.methods(bench).items():
        answer = make()(x, 0.724)
        assert answer.shape == x.shape and torch.isfinite(answer).all(), name
        assert answer.abs().max() < 3, name


def test_patches_of_the_wiener_filter_are_where_its_gradient_is_largest(bench):
    made, wiener = scoreboard.methods(bench), WienerDenoiser(bench.pca)
    patches, mask = made["pspc-wiener"]().patch, made["ls-wiener"]().mask
    sizes = []
    for sigma in bench.sigmas:
        found = patches(sigma)
        assert torch.equal(mask(sigma), found.expand(64, 64)), "a mask of the same patches"
        sizes.append(int(found[0].sum()))
        if sizes[-1] == 64:
            continue
        assert (found.sum(1) == sizes[-1]).all() and (found.diagonal() == 1).all()
        for row, col in ((0, 0), (3, 5)):
            own = 8 * row + col
            field = sensitivity(wiener, bench.noise[:1], sigma, (row, col)).flatten()
            field[own] = torch.inf  # itself it always sees
            inside = found[own] == 1
            assert field[inside].min() >= field[~inside].max() - 1e-6
    squares = [made["pspc-square"]().patch(sigma) ** 2 for sigma in bench.sigmas]
    assert sizes == squares, "as many pixels as squares have"
    assert sizes[0] == 64 and sizes[-1] == 9


def test_in_colour_a_field_is_over_all_channels_and_so_is_its_mask(bench):
    images = torch.rand(50, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    labels = torch.zeros(50, dtype=torch.long)
    coloured = replace(bench, train=ImageSet(images, labels, "colour"))
    relative = masks.response(coloured.pca, 0.342).view(3, 16, 3, 16)
    made = scoreboard.methods(coloured)
    mask, patches = made["ls-wiener"]().mask(0.342), made["pspc-wiener"]().patch(0.342)
    assert mask.shape == (48, 48) and patches.shape == (16, 16) and (patches.sum(1) == 9).all()
    fields = scoreboard._wiener_fields(coloured, 0.342)
    for m, n in ((0, 0), (1, 6), (15, 3)):
        expected = sum(relative[c, m, d, n] ** 2 for c in range(3) for d in range(3)) ** 0.5
        assert fields[m, n] == pytest.approx(expected.item(), rel=1e-5)
        assert (mask.view(3, 16, 3, 16)[:, m, :, n] == patches[m, n]).all()


def test_a_partner_helps_the_mixture_at_low_noise_only():
    denoise = scoreboard.paired(lambda x, s: x + s, lambda x, s: x - s, 0.25)
    x = torch.zeros(1, 1, 2, 2)
    assert (denoise(x, 1.0) == 1).all(), "at the level and above it, the mixture alone"
    assert (denoise(x, 0.5) == 0.5 * (0.75 - 0.25)).all()


@pytest.mark.parametrize("data", sorted(scoreboard.SHARP))
def test_the_sharpened_mixtures_are_those_that_were_chosen_on_other_seeds(data):
    found = json.loads((ROOT / f"experiments/results/sharpness-{data}.json").read_text())
    assert found["network_sha256"] == zoo.card(f"unet/{data}")["sha256"]
    chosen = found["chosen"]
    assert {key: chosen[key] for key in scoreboard.SHARP[data]} == scoreboard.SHARP[data]
    assert set(chosen) - set(scoreboard.SHARP[data]) == {"r2", "frechet"}, "nothing else was turned"
    assert min(found["seeds"]) >= 1000 > scoreboard.SEED


def test_guidance_goes_on_from_the_weaker_denoiser_past_the_better_one():
    denoise = scoreboard.guided(lambda x, s: 3 * x + s, lambda x, s: x - s, 0.5)
    x = torch.ones(2, 1, 4, 4)  # the better one says 5, the weaker one -1
    assert torch.equal(denoise(x, 2.0), torch.full_like(x, 5 + 0.5 * 6))


def test_evened_out_samples_keep_of_every_component_what_they_keep_of_the_whole(bench):
    dark = ImageSet(bench.train.images * 0.2, bench.train.labels, "dark")  # nothing is clipped
    bench = replace(bench, train=dark)
    pca, blur = bench.pca, torch.where(torch.arange(64) < 6, 1.0, 0.5)  # but for the leading ones

    def blurred(x, sigma):
        """Wiener's samples, blurred in the last step."""
        answer = WienerDenoiser(pca)(x, sigma)
        if sigma > bench.sigmas[-1]:
            return answer
        return (pca.mean + pca.apply(blur, answer.flatten(1) - pca.mean)).view_as(x)

    evened = scoreboard.evened(blurred, bench)
    x = bench.noise / 100
    assert torch.equal(evened(x, bench.sigmas[-2]), blurred(x, bench.sigmas[-2])), "last step only"
    noise = initial_noise(500, (1, 8, 8), sigma=bench.sigmas[0], seed=9000)
    samples = (list(ddim(d, noise, bench.sigmas))[-1].x0 for d in (blurred, evened))
    (before, whole), (after, _) = (scoreboard.shares_kept(x0, pca) for x0 in samples)
    stretch = (after / before).sqrt()
    assert stretch.min() > 0.999 and stretch.max() < scoreboard.LARGEST_GAIN + 0.01
    free = (stretch > 1.2) & (stretch < 0.95 * scoreboard.LARGEST_GAIN)
    free &= torch.arange(64) >= 12  # whose neighbours are blurred, too
    assert free.sum() > 10, "most fine components are stretched"
    assert (after[free] / whole - 1).abs().max() < 0.35, "to what the samples keep in all"
    used = range(scoreboard.EVEN_SEED, scoreboard.EVEN_SEED + scoreboard.EVEN_NOISES)
    assert used.start > 1063 and scoreboard.SEED + 128 < 1000, "not scored, not chosen on"


def test_shares_kept_are_ratios_of_variances_of_neighbouring_components(bench):
    pca = bench.pca
    z = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0)) * pca.eigenvalues.sqrt()
    shares = torch.linspace(1.0, 0.25, 64)
    images = (pca.mean + (z * shares.sqrt()) @ pca.eigenvectors.T).view(-1, 1, 8, 8)
    kept, whole = scoreboard.shares_kept(images, pca)
    for i in (0, 3, 20, 63):
        near = slice(int(0.8 * i), min(int(1.25 * i), 63) + 1)
        expected = (shares * pca.eigenvalues)[near].sum() / pca.eigenvalues[near].sum()
        assert kept[i].item() == pytest.approx(expected.item(), rel=0.05)
    assert whole == pytest.approx(
        ((shares * pca.eigenvalues).sum() / pca.eigenvalues.sum()).item(), rel=0.05
    )


@pytest.mark.parametrize("data", sorted(scoreboard.MIXTURES))
def test_the_mixtures_are_those_that_were_chosen_on_other_seeds(data):
    found = json.loads((ROOT / f"experiments/results/mixture-{data}.json").read_text())
    assert found["settings"]["network_sha256"] == zoo.card(f"unet/{data}")["sha256"]
    assert found["tuning"]["chosen"] == scoreboard.MIXTURES[data]
    assert found["patches"]["chosen"] == scoreboard.PATCHES[data]
    assert found["tuning_seeds"] == [1000, 1031] and scoreboard.SEED < 1000


@pytest.mark.parametrize("data", ["afhq-cat", "celeba", "cifar10"])
def test_distances_with_intervals_are_of_the_samples_that_were_scored(data):
    found = json.loads((ROOT / f"experiments/results/distances-{data}.json").read_text())
    assert found["network_sha256"] == zoo.card(f"unet/{data}")["sha256"]
    assert found["seed"] == scoreboard.SEED and found["seeds"] == 128 and found["draws"] >= 500
    entries = scoreboard.read(ROOT / f"experiments/results/scoreboard-{data}.json")
    for method, far in found["methods"].items():
        wanted = {"network": f"unet/{data}", "method": method, "seeds": 128, "steps": 10}
        wanted["images"] = found["images"]
        (scored, *_) = [e for e in entries if wanted.items() <= e["settings"].items()]
        assert scored["frechet"] == pytest.approx(far["frechet"], rel=0.25), "of 64 and of 128"
        less = far["frechet"] - found["methods"]["local-0.05"]["frechet"]
        low, high = far["less_local"]["low"], far["less_local"]["high"]
        assert low - 0.2 <= less <= high + 0.2, method


@pytest.mark.parametrize("data", ["fashion-mnist", "celeba"])
def test_what_networks_agree_on_is_measured_as_the_scoreboard_is(data):
    path = ROOT / f"experiments/results/consensus-{data}.json"
    found = json.loads(path.read_text())
    for name, weights in found["settings"]["networks"].items():  # for example "unet even"
        kind, *half = name.split()
        assert weights == zoo.card("-".join([f"{kind}/{data}", *half]))["sha256"]
    scored = {
        entry["settings"]["method"]: entry
        for entry in scoreboard.read(path.with_name(f"scoreboard-{data}.json"))
        if all(
            entry["settings"][key] == found["settings"][key]
            for key in ("network", "network_sha256", "data_sha256", "steps", "seed")
        )
    }
    both = set(scored) & set(found["r2_by_seed"]) - {"unet"}
    assert len(both) >= 8
    for method in both:
        ours, theirs = found["r2_by_seed"][method]["unet"], scored[method]["r2_by_seed"]
        few = min(len(ours), len(theirs))
        assert ours[:few] == pytest.approx(theirs[:few], abs=5e-3), method
    for method, relay in found["relays"].items():
        alone = np.mean(found["r2_by_seed"][method]["unet"])
        assert relay["first"][0] == relay["last"][-1] == 1, "the UNet alone"
        assert relay["first"][-1] == pytest.approx(alone, abs=1e-3)
        assert relay["last"][0] == pytest.approx(alone, abs=1e-3)


def test_the_nearest_image_is_the_nearest_image(bench):
    x = bench.held_out[:3] + 0.5 * bench.noise[:3] / bench.sigmas[0]
    index = nearest_images(x, bench.train)[1][:, 0]
    answer = scoreboard.methods(bench)["nearest"]()(x, 0.5)
    torch.testing.assert_close(answer, bench.train.images[index], atol=1e-6, rtol=0)


# --- scores --------------------------------------------------------------------------------------


def test_scores_are_the_metrics_of_the_samples(bench):
    result = scoreboard.score(WienerDenoiser(bench.pca), bench)
    *_, last = ddim(WienerDenoiser(bench.pca), bench.noise, ddpm_sigmas(10))
    truth = bench.trajectory[-1].x0
    assert result["r2_by_seed"] == pytest.approx(r2(last.x0, truth).tolist(), abs=1e-4)
    assert result["r2"]["mean"] == pytest.approx(r2(last.x0, truth).mean().item(), rel=1e-4)
    assert result["mse"]["mean"] == pytest.approx(mse(last.x0, truth).mean().item(), rel=1e-4)
    assert result["r2"]["low"] < result["r2"]["mean"] < result["r2"]["high"]
    ratios = copy_ratio(last.x0, bench.train)
    assert result["copies"]["median"] == pytest.approx(ratios.median().item(), rel=1e-4)
    step = bench.trajectory[4]
    expected = r2(WienerDenoiser(bench.pca)(step.x[:3], step.sigma).clamp(-1, 1), step.x0[:3])
    assert result["curves"]["trajectory_r2"][4] == pytest.approx(expected.mean().item(), rel=1e-4)
    assert result["frechet"] is None, "six samples are too few"
    stored = scoreboard.samples(result, (1, 8, 8))
    torch.testing.assert_close(stored, last.x0, atol=1.01 / 255, rtol=0)


def test_the_network_predicts_itself(bench):
    result = scoreboard.score(bench.network, bench)
    assert result["r2"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert result["mse"]["mean"] == 0
    assert result["curves"]["trajectory_r2"] == [1.0] * 10


def test_the_optimal_denoiser_copies_and_does_not_denoise_new_images(bench):
    result = scoreboard.score(OptimalDenoiser(bench.train), bench)
    assert result["copies"] == {"median": pytest.approx(0, abs=1e-3), "share": 1.0}
    wiener = scoreboard.score(WienerDenoiser(bench.pca), bench)
    assert wiener["copies"]["share"] < 0.5
    assert result["curves"]["held_out_mse"][-1] > 10 * wiener["curves"]["held_out_mse"][-1]


def test_frechet_distance_takes_as_many_samples_of_every_method():
    bench = scoreboard.prepare("unet/fashion-mnist", images=300, seeds=70, queries=2, steps=2)
    real = scoreboard.score(lambda x, sigma: bench.train.images[: len(x)], bench)["frechet"]
    grey = scoreboard.score(lambda x, sigma: torch.zeros_like(x), bench)["frechet"]
    assert 0 < real < 0.1 * grey, "real images are nearer to real images than grey ones"
    expected = frechet_distance(
        bench.features(bench.train.images[:64]), bench.features(bench.held_out)
    )
    assert real == pytest.approx(expected, rel=1e-4)


# --- the results file ----------------------------------------------------------------------------


def numbers(entry):
    return {key: value for key, value in entry.items() if key != "seconds"}


def test_an_interrupted_run_goes_on_where_it_was(bench, tmp_path):
    whole, parts = tmp_path / "whole.json", tmp_path / "parts.json"
    made = list(scoreboard.run(bench, CHEAP, output=whole))
    assert [entry["settings"]["method"] for entry in made] == list(CHEAP)
    next(scoreboard.run(bench, CHEAP, output=parts))  # stops after the first method
    assert len(scoreboard.read(parts)) == 1
    later = list(scoreboard.run(bench, CHEAP, output=parts))
    assert [entry["settings"]["method"] for entry in later] == list(CHEAP[1:])
    assert list(map(numbers, scoreboard.read(parts))) == list(map(numbers, scoreboard.read(whole)))
    content = parts.read_bytes()
    assert list(scoreboard.run(bench, CHEAP, output=parts)) == []
    assert parts.read_bytes() == content, "a finished file is left alone"


def counted(denoiser, *, stop_at=None):
    """``denoiser``, the noise levels that it was asked at, and a stop when asked for so many."""
    asked = []

    def denoise(x, sigma):
        if len(asked) == stop_at:
            raise KeyboardInterrupt
        asked.append(sigma)
        return denoiser(x, sigma)

    return denoise, asked


def test_a_method_that_was_interrupted_goes_on_at_its_noise_level(bench, tmp_path):
    kept = tmp_path / "wiener.part"
    wiener = WienerDenoiser(bench.pca)
    stopped, _ = counted(wiener, stop_at=4)
    with pytest.raises(KeyboardInterrupt):
        scoreboard.score(stopped, bench, kept=kept)
    rest, asked = counted(wiener)
    result = scoreboard.score(rest, bench, kept=kept)
    assert asked[:6] == bench.sigmas[4:], "four of ten noise levels were there"
    assert numbers(result) == numbers(scoreboard.score(wiener, bench))
    again, asked = counted(wiener)
    other = replace(bench, settings=bench.settings | {"images": 50})
    scoreboard.score(again, other, kept=kept)
    assert asked[:10] == bench.sigmas, "of other settings nothing is taken"


def test_time_is_that_of_all_answers_wherever_sampling_was_stopped(bench, tmp_path, monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr(scoreboard.time, "process_time", lambda: float(next(ticks)))
    kept, wiener = tmp_path / "wiener.part", WienerDenoiser(bench.pca)
    with pytest.raises(KeyboardInterrupt):
        scoreboard.score(counted(wiener, stop_at=7)[0], bench, kept=kept)
    seconds = scoreboard.score(wiener, bench, kept=kept)["seconds"]
    assert seconds == pytest.approx(10 / 6, rel=1e-4), "a tick an answer, ten of six samples"


def test_answers_are_kept_of_denoisers_that_give_the_same_memory_again(bench, tmp_path):
    grey = torch.zeros(8, 8, 1, 6).permute(3, 2, 0, 1)  # not contiguous, either
    kept = tmp_path / "grey.part"
    (first, asked), (second, less) = (counted(lambda x, sigma: grey[: len(x)]) for _ in range(2))
    results = [scoreboard.score(denoiser, bench, kept=kept) for denoiser in (first, second)]
    assert numbers(results[0]) == numbers(results[1])
    assert len(less) == len(asked) - 10, "all ten answers of the samples were there"


def test_a_run_leaves_no_answers_behind_and_names_a_damaged_file(bench, tmp_path):
    output = tmp_path / "scores.json"
    list(scoreboard.run(bench, ["wiener"], output=output))
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]
    (tmp_path / "scores.json.optimal.part").write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match=r"scores.json.optimal.part is damaged: .* delete it"):
        list(scoreboard.run(bench, ["optimal"], output=output))


def test_other_settings_are_scored_anew(bench, folder, tmp_path):
    output = tmp_path / "scores.json"
    list(scoreboard.run(bench, ["wiener"], output=output))
    fewer = scoreboard.prepare("unet/fashion-mnist", images=50, seeds=6, queries=3, folder=folder)
    (entry,) = scoreboard.run(fewer, ["wiener"], output=output)
    first, second = scoreboard.read(output)
    assert (first["settings"]["images"], second["settings"]["images"]) == (200, 50)
    assert second == json.loads(json.dumps(entry))
    assert first["r2"] != second["r2"]


def test_unknown_methods_are_named_before_anything_runs(bench, tmp_path):
    output = tmp_path / "scores.json"
    with pytest.raises(ValueError, match="no method 'weiner'; there are: optimal, "):
        list(scoreboard.run(bench, ["wiener", "weiner"], output=output))
    assert not output.exists()


def test_the_command_line_fills_and_resumes(folder, tmp_path, capsys):
    output = tmp_path / "scores.json"
    command = ["score", "fashion-mnist", "--folder", str(folder), "--output", str(output)]
    command += ["--seeds", "3", "--queries", "2", "--methods", "wiener"]
    assert main(command) == 0
    assert "wiener               r2 " in capsys.readouterr().out
    assert main([*command, "optimal"]) == 0
    printed = capsys.readouterr().out
    assert "optimal" in printed and "wiener" not in printed
    assert f"{output} holds 2 results" in printed
    assert main(["score", "nothing", "--output", str(output)]) == 1
    assert "no network 'unet/nothing'" in capsys.readouterr().err


def test_a_set_without_parameters_takes_those_of_a_kindred_one():
    for table in (scoreboard.MIXTURES, scoreboard.PATCHES):
        assert scoreboard.chosen(table, "afhq-cat") == table["celeba"]
        assert scoreboard.chosen(table, "mnist") == table["mnist"]
        assert scoreboard.chosen(table, "olivetti") == table["fashion-mnist"]
        scoreboard.chosen(table, "mnist").clear()  # a copy
        assert table["mnist"]


def test_the_printed_table_shows_what_is_missing_and_leaves_out_what_nobody_has(capsys):
    entry = {"r2": {"mean": 0.5, "low": 0.4, "high": 0.6}, "r2_by_seed": [0.4, 0.6]}
    sets = {f"set {i}": {"wiener": entry, "optimal": None, "nearest": None} for i in range(4)}
    sets["set 3"]["optimal"] = entry
    printed.agreement(sets, title="r2")
    number = ["0.50", "[", "0.40,", "0.60]", "2"]  # the last is how many seeds
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["r2", "set", "0", "set", "1", "set", "2"],
        ["Wiener", *number * 3],
        ["optimal", "-", "-", "-"],
        [],
        ["r2", "set", "3"],
        ["Wiener", *number],
        ["optimal", *number],
        [],
    ]


def test_the_printed_differences_name_both_methods_and_keep_a_place_for_what_is_missing(capsys):
    gaps = {f"set {i}": dict.fromkeys(printed.PAIRS, (-0.5, -1.625, 0.375)) for i in range(4)}
    del gaps["set 1"]["lead"]
    printed.differences(gaps, title="in pairs")
    first, *blocks = capsys.readouterr().out.splitlines()
    assert first.split() == ["in", "pairs", "set", "0", "set", "1", "set", "2"]
    assert len(blocks) == 2 * len(printed.PAIRS) + 3  # another heading, and two blank lines
    names, numbers = ["local,", "tau", "0.05", "-", "Wiener"], ["-.50", "[-1.62,+.38]"]
    assert blocks[0].split() == [*names, *numbers, "-", *numbers]
    assert blocks[0].rindex("-.50") == blocks[1].rindex("-.50")  # in the same column


def test_the_printed_measures_are_those_of_the_entries(bench, capsys):
    entry = {"settings": bench.settings, **scoreboard.score(OptimalDenoiser(bench.train), bench)}
    printed.measures({"optimal": entry})
    header, line = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["method", "seeds"] and line.startswith("optimal")
    r2, distance = entry["r2"]["mean"], entry["frechet"]
    assert f"{r2:5.2f} [" in line and "100%" in line
    assert f"  {'-' if distance is None else f'{distance:.2f}'}  " in line
