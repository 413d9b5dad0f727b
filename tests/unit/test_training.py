"""The trainer: it learns, its pieces do what they say, runs repeat, resume and run in parallel."""

import math
import subprocess
import sys
from dataclasses import replace
from itertools import islice

import pytest
import torch
from safetensors.torch import load_file

from locality import zoo
from locality.cli import main
from locality.denoisers import OptimalDenoiser, WienerDenoiser
from locality.networks import LinearDenoiser, MatrixDenoiser, NetworkDenoiser, UNet
from locality.stats import PCA
from locality.training import (
    BANDS,
    TrainConfig,
    digest,
    draw,
    held_out_loss,
    load_checkpoint,
    train,
)

CONFIG = TrainConfig(steps=12, batch=16, warmup=4)


@pytest.fixture(scope="module")
def images():
    """64 images of 8 x 8 pixels, the upper half of each bright or dark: easy to learn."""
    bright = torch.arange(64) % 2 * 1.6 - 0.8
    images = torch.full((64, 1, 8, 8), -0.5)
    images[:, :, :4] = bright[:, None, None, None]
    return images


def fresh(seed=0, dropout=0.0):
    torch.manual_seed(seed)
    return NetworkDenoiser(UNet(1, channels=(8, 8), groups=4, dropout=dropout), sigma_data=0.6)


def weights(denoiser):
    return [parameter.detach().clone() for parameter in denoiser.parameters()]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def last(steps):
    *_, step = steps
    return step


def test_training_beats_predicting_nothing_and_the_linear_filter(images):
    denoiser = fresh()
    step = last(
        train(denoiser, images, config=TrainConfig(steps=150, batch=32, lr=1e-2, warmup=20))
    )
    sigmas = (0.3, 1.0)
    ours = held_out_loss(step.averaged, images, sigmas)
    linear = held_out_loss(WienerDenoiser(PCA.fit(images)), images, sigmas)
    best = held_out_loss(OptimalDenoiser(images), images, sigmas)
    untrained = held_out_loss(fresh(), images, sigmas)
    for b, o, u in zip(best, ours, untrained):
        assert b < o < 0.2 * u
    assert ours[1] < linear[1]  # two clusters: no linear filter can decide between them


def test_a_step_reports_its_loss_by_noise_level(images):
    steps = list(train(fresh(), images, config=CONFIG))
    assert [step.step for step in steps] == list(range(1, 13))
    for step in steps:
        assert len(step.bands) == len(BANDS) - 1
        filled = [band for band in step.bands if not math.isnan(band)]
        assert min(filled) <= step.loss <= max(filled)
    denoiser = fresh()
    x0, sigma, noise = draw(images, 0, config=CONFIG)
    x0_hat = denoiser(x0 + sigma[:, None, None, None] * noise, sigma)
    losses = (x0_hat - x0).square().mean((1, 2, 3)) * denoiser.loss_weight(sigma)
    assert steps[0].loss == pytest.approx(losses.mean().item(), rel=1e-5)
    assert steps[0].averaged is steps[-1].averaged


def test_the_learning_rate_rises_stays_and_falls():
    config = TrainConfig(steps=100, lr=2.0, warmup=10, decay=0.5)
    rates = [config.lr_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9:51] == [2.0] * 42
    assert rates[75] == pytest.approx(1.0)
    assert 0 < rates[-1] <= 0.04
    assert rates[50:] == sorted(rates[50:], reverse=True)


def test_the_average_follows_the_weights(images):
    """Replayed outside of the trainer: lerp with the decay of each step."""
    denoiser = fresh()
    config = replace(CONFIG, ema=0.5)
    expected = weights(denoiser)
    for step in train(denoiser, images, config=config):
        decay = min(0.5, step.step / (9 + step.step))
        expected = [decay * e + (1 - decay) * w for e, w in zip(expected, weights(denoiser))]
    for e, found in zip(expected, weights(step.averaged), strict=True):
        torch.testing.assert_close(found, e, atol=1e-6, rtol=1e-5)


def test_gradients_are_clipped(images, monkeypatch):
    norms = []
    original = torch.optim.AdamW.step

    def spy(self, *args):
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(torch.cat([g.flatten() for g in gradients]).norm().item())
        return original(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    list(train(fresh(), images, config=replace(CONFIG, clip=1e-3)))
    assert len(norms) == 12 and max(norms) <= 1.001e-3


def test_noise_levels_cover_the_range_and_are_stratified(images):
    seen = []

    class Spy(NetworkDenoiser):
        def forward(self, x, sigma):
            seen.append(sigma)
            return super().forward(x, sigma)

    denoiser = Spy(UNet(1, channels=(8, 8), groups=4), sigma_data=0.6)
    config = TrainConfig(steps=6, batch=64, log_sigma_mean=-1.0, log_sigma_std=2.0)
    list(train(denoiser, images, config=config))
    for sigmas in seen:
        below = (sigmas.log() < -1.0).sum().item()
        assert below == 32  # exactly half of every batch lies below the median
    logs = torch.cat(seen).log()
    assert logs.mean().item() == pytest.approx(-1.0, abs=0.1)
    assert logs.std().item() == pytest.approx(2.0, abs=0.15)


def test_every_image_is_used_once_per_epoch_and_the_order_changes():
    values = torch.linspace(-1, 1, 64)
    images = values[:, None, None, None].expand(64, 1, 8, 8).contiguous()
    seen = torch.cat([draw(images, step, config=CONFIG)[0][:, 0, 0, 0] for step in range(8)])
    first, second = seen[:64], seen[64:]
    assert torch.equal(first.sort().values, values)
    assert torch.equal(second.sort().values, values)
    assert not torch.equal(first, second)


def test_flips_mirror_about_half_of_the_images():
    images = torch.linspace(-1, 1, 8).expand(64, 1, 8, 8).contiguous()  # grows to the right
    x0, _, _ = draw(images, 0, config=TrainConfig(steps=1, flip=True))
    mirrored = (x0[:, 0, 0, 0] > x0[:, 0, 0, -1]).sum().item()
    assert 16 < mirrored < 48


def test_a_seed_fixes_the_result_and_another_changes_it(images):
    runs = [last(train(fresh(), images, config=replace(CONFIG, seed=s))) for s in (0, 0, 1)]
    assert same(weights(runs[0].averaged), weights(runs[1].averaged))
    assert not same(weights(runs[0].averaged), weights(runs[2].averaged))


def test_training_leaves_the_global_generator_alone(images):
    torch.manual_seed(7)
    expected = torch.rand(3)
    denoiser = fresh(dropout=0.5)
    torch.manual_seed(7)
    list(train(denoiser, images, config=CONFIG))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("change", [{}, {"bf16": True}, {"sgd": True}])
def test_stopping_and_resuming_changes_nothing(images, tmp_path, change):
    config = replace(CONFIG, **change)
    whole = fresh(dropout=0.2)
    expected = last(train(whole, images, config=config))
    path = tmp_path / "run.checkpoint"
    for stop in (3, 5, 12):  # stopped between two checkpoints, and again
        torch.manual_seed(stop)  # what else the process drew must not matter
        part = fresh(seed=stop, dropout=0.2) if path.exists() else fresh(dropout=0.2)
        steps = train(part, images, config=config, checkpoint=path, checkpoint_every=2)
        step = last(islice(steps, stop))
    assert step.step == 12
    assert step.loss == expected.loss
    assert same(weights(part), weights(whole))
    assert same(weights(step.averaged), weights(expected.averaged))
    assert list(train(part, images, config=config, checkpoint=path)) == []  # nothing left to do


def test_calm_directions_take_smaller_steps(images):
    moved = []
    for calm in (1.0, 0.1):
        torch.manual_seed(0)
        denoiser = NetworkDenoiser(LinearDenoiser((1, 8, 8)), sigma_data=0.6)
        before = denoiser.network.directions.detach().clone()
        list(islice(train(denoiser, images, config=replace(CONFIG, calm=calm)), 3))
        moved.append((denoiser.network.directions - before).norm().item())
    assert 0.05 < moved[1] / moved[0] < 0.2


def test_gradient_descent_brings_one_matrix_to_the_wiener_filter(images):
    sigma = 0.5
    denoiser = NetworkDenoiser(MatrixDenoiser((1, 8, 8)), sigma_data=0.6)
    config = TrainConfig(
        steps=600,
        batch=64,
        lr=1.0,
        warmup=20,
        decay=0.5,
        ema=0.99,
        log_sigma_mean=math.log(sigma),
        log_sigma_std=0.0,
        sgd=True,
    )
    best = last(train(denoiser, images, config=config)).averaged
    wiener = WienerDenoiser(PCA.fit(images))
    x = images[:16] + sigma * torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    assert (best(x, sigma) - wiener(x, sigma)).square().mean() < 2e-3
    start = LinearDenoiser((1, 8, 8), rank=4)
    start.start_from(best.network)
    directions = start.directions.detach()
    assert torch.allclose(directions @ directions.T, torch.eye(4), atol=1e-5)
    # The only direction in which these images vary: upper half against nothing.
    truth = torch.zeros(8, 8)
    truth[:4] = 32**-0.5
    assert (directions @ truth.flatten()).square().sum() > 0.95


def test_a_checkpoint_gives_back_the_averaged_network(images, tmp_path):
    path = tmp_path / "run.checkpoint"
    step = last(train(fresh(), images, config=CONFIG, checkpoint=path))
    restored = fresh(seed=9)
    about = load_checkpoint(path, restored)
    assert same(weights(restored), weights(step.averaged))
    assert about["step"] == 12 and about["images"] == digest(images) and about["seconds"] > 0
    assert about["config"]["batch"] == 16


KILL = """
import os, random, signal, sys, time
import torch
from locality.networks import LinearDenoiser, MatrixDenoiser, NetworkDenoiser, UNet
from locality.training import TrainConfig, train
torch.set_num_threads(1)
folder = sys.argv[1]
images = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
config = TrainConfig(steps=6, batch=8, warmup=2)
done = torch.zeros(1, dtype=torch.int64).share_memory_()  # steps of the child that runs

def run(path):
    done[0] = 0
    child = os.fork()
    if child:
        return child
    torch.manual_seed(0)
    denoiser = NetworkDenoiser(UNet(1, channels=(8, 8), groups=4, dropout=0.2), sigma_data=0.6)
    for step in train(denoiser, images, config=config, checkpoint=path, checkpoint_every=1):
        done[0] = step.step
    os._exit(0)

# Warm up in the parent, where the children inherit it: their time goes into training only.
warm = NetworkDenoiser(UNet(1, channels=(8, 8), groups=4), sigma_data=0.6)
next(train(warm, images, config=config))

def finish(path):
    pid, status = os.waitpid(run(path), 0)
    assert status == 0, status
    return open(path, "rb").read()

from safetensors.torch import load
began = time.perf_counter()
expected = load(finish(f"{folder}/whole"))
duration = time.perf_counter() - began
rng, killed = random.Random(0), 0
for point in range(20):
    path = f"{folder}/killed-{point}"
    child = run(path)
    # After so many of its steps, however fast the machine is now, and anywhere within the next.
    steps = rng.randrange(config.steps)
    while done[0] < steps:
        time.sleep(0.001)
    time.sleep(duration / config.steps * rng.random())
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    killed += os.WIFSIGNALED(status)
    found = load(finish(path))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], expected[k]) for k in expected), point
print("killed", killed)
"""


def test_twenty_kills_change_no_bit(tmp_path):
    """kill -9 at 20 random moments, checkpoint writing included; each resumed run is identical."""
    run = subprocess.run(
        [sys.executable, "-c", KILL, str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout.split()[-1]) >= 10, run.stdout  # most came before the run's end


@pytest.mark.parametrize("ranks", ["torchrun, 2", "forked, 4"], indirect=True)
def test_several_processes_equal_one(ranks, tmp_path):
    """The command line itself, 20 steps, in several processes and in one: weights to 1e-5."""
    command = ["train", "net", "--data", "fashion-mnist", "--images", "64", "--size", "8"]
    command += ["--steps", "20", "--batch", "16", "--warmup", "4", "--folder"]
    ranks("-m", "locality", *command, str(tmp_path / "many"))
    assert main([*command, str(tmp_path / "one")]) == 0
    many, one = (load_file(tmp_path / which / "net.checkpoint") for which in ("many", "one"))
    assert many.keys() == one.keys()
    for name in one:
        torch.testing.assert_close(many[name], one[name], atol=1e-5, rtol=0, msg=name)


def test_the_command_line_trains_saves_and_samples(tmp_path):
    command = ["train", "a/net", "--network", "linear", "--images", "64", "--size", "8"]
    command += ["--steps", "3", "--batch", "16", "--folder", str(tmp_path)]
    assert main(command) == 0
    assert zoo.names(folder=tmp_path) == ["a/net"]
    about = zoo.card("a/net", folder=tmp_path)
    assert about["training"]["step"] == 3 and about["shape"] == [1, 8, 8]
    picture = tmp_path / "samples.png"
    assert main(["sample", "a/net", str(picture), "--folder", str(tmp_path), "--samples", "2"]) == 0
    assert picture.stat().st_size > 0


def test_the_command_line_names_what_is_wrong(tmp_path, capsys):
    assert main(["data", "fashion-mnits"]) == 1
    assert "Did you mean 'fashion-mnist'" in capsys.readouterr().err
    assert main(["sample", "nothing", str(tmp_path / "x.png"), "--folder", str(tmp_path)]) == 1
    assert "'nothing'" in capsys.readouterr().err
    picture = str(tmp_path / "x.png")
    assert main(["sample", "classifier/fashion-mnist", picture]) == 1
    assert "is a classifier" in capsys.readouterr().err
    assert main(["sample", "unet/fashion-mnist", picture, "--samples", "0"]) == 1
    assert "count must be a whole number, at least 1, got 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["sample", "unet/fashion-mnist", picture, "--device", "nope"])
    assert "no device 'nope' here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch": 100}, "batch=100 is more than the 64 images"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_named(images, change, words):
    with pytest.raises(ValueError, match=words):
        next(train(fresh(), images, config=replace(CONFIG, **change)))


def test_held_out_losses_do_not_depend_on_the_chunk(images):
    wiener = WienerDenoiser(PCA.fit(images))
    whole, parts = (held_out_loss(wiener, images, (0.3, 2.0), chunk=c) for c in (64, 7))
    assert whole == pytest.approx(parts, rel=1e-5)
    identity = held_out_loss(lambda x, sigma: x, images, (0.3, 2.0))
    assert identity == pytest.approx([0.09, 4.0], rel=0.1)  # leaves all the noise in


def test_antithetic_noise_comes_in_opposite_pairs(images):
    config = replace(CONFIG, antithetic=True)
    x0, sigma, noise = draw(images, 3, config=config)
    assert torch.equal(noise[:8], -noise[8:])
    assert torch.equal(x0[:8], x0[8:]) and torch.equal(sigma[:8], sigma[8:])
    assert noise[:8].std().item() == pytest.approx(1, abs=0.1)
    with pytest.raises(ValueError, match="even batch, got 15"):
        replace(config, batch=15)
