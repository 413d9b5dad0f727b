"""Checkpoints and the zoo when things go wrong: each fault is named, and nothing good is lost."""

import errno
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from locality import zoo
from locality.networks import NetworkDenoiser, UNet
from locality.training import CheckpointError, TrainConfig, load_checkpoint, train

CONFIG = TrainConfig(steps=4, batch=8, warmup=2)
IMAGES = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def fresh(width=8):
    torch.manual_seed(0)
    return NetworkDenoiser(UNet(1, channels=(width, width), groups=4), sigma_data=0.6)


def run(path, *, denoiser=None, images=IMAGES, config=CONFIG, steps=4):
    training = train(denoiser or fresh(), images, config=config, checkpoint=path)
    for step in training:
        if step.step == steps:
            break


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "run.checkpoint"
    run(path)
    return path


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty", "text", "header"])
def test_a_damaged_checkpoint_is_named_and_kept(checkpoint, damage):
    good = checkpoint.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    bad = {
        "truncated": good[: len(good) // 2],
        "one bit": bytes(flipped),
        "empty": b"",
        "text": b"not a checkpoint",
        "header": good[:20] + b"\x00" * 20 + good[40:],
    }[damage]
    checkpoint.write_bytes(bad)
    for use in (lambda: run(checkpoint), lambda: load_checkpoint(checkpoint, fresh())):
        with pytest.raises(CheckpointError, match=r"run\.checkpoint is damaged"):
            use()
    assert checkpoint.read_bytes() == bad  # evidence is not overwritten


def test_a_foreign_safetensors_file_is_named(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match=r"no checkpoint of this trainer.*None"):
        run(path)


def test_a_pickle_is_refused_without_being_opened(tmp_path):
    path, trap = tmp_path / "evil.checkpoint", tmp_path / "trap"

    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(trap),))

    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match="damaged or no checkpoint"):
        run(path)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": IMAGES.flip(0)}, "a run on other images"),
        ({"config": replace(CONFIG, lr=0.5)}, r"lr=0\.0015, this one has lr=0\.5"),
        ({"denoiser": fresh(width=16)}, r"another network: .* has shape \(8,\), expected \(16,\)"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_and_kept(checkpoint, change, words):
    good = checkpoint.read_bytes()
    with pytest.raises(CheckpointError, match=words):
        run(checkpoint, **change)
    assert checkpoint.read_bytes() == good


def test_loading_into_another_network_is_refused(checkpoint):
    denoiser = fresh(width=16)
    before = [p.clone() for p in denoiser.parameters()]
    with pytest.raises(CheckpointError, match="another network"):
        load_checkpoint(checkpoint, denoiser)
    assert all(torch.equal(a, b) for a, b in zip(before, denoiser.parameters()))


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"missing\.checkpoint"):
        load_checkpoint(tmp_path / "missing.checkpoint", fresh())


def test_a_full_disk_keeps_the_last_checkpoint_and_leaves_no_rubbish(tmp_path, monkeypatch):
    path = tmp_path / "run.checkpoint"
    training = train(fresh(), IMAGES, config=CONFIG, checkpoint=path, checkpoint_every=2)
    next(training), next(training)
    good = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("locality.training.os.fsync", full)
        with pytest.raises(CheckpointError, match=r"run\.checkpoint: .*No space left.*unchanged"):
            list(training)
    assert path.read_bytes() == good
    assert os.listdir(tmp_path) == ["run.checkpoint"]
    run(path)  # space again: the run goes on from the good checkpoint
    assert load_checkpoint(path, fresh())["step"] == 4


def test_a_file_size_limit_is_a_full_disk(tmp_path):
    """The real thing: the kernel refuses to let the file grow."""
    code = (
        "import resource, signal, sys, torch\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "from locality.training import write_atomically\n"
        "from pathlib import Path\n"
        "write_atomically(Path(sys.argv[1]), lambda part: part.write_bytes(bytes(50_000)))\n"
    )
    path = tmp_path / "run.checkpoint"
    path.write_bytes(b"good")
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120
    )
    assert result.returncode != 0 and "CheckpointError: cannot write" in result.stderr
    assert path.read_bytes() == b"good"
    assert os.listdir(tmp_path) == ["run.checkpoint"]


def test_an_unwritable_folder_is_named_before_training_starts(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("a file where a folder is expected")
    with pytest.raises(CheckpointError, match=r"cannot write .*file/run\.checkpoint"):
        next(train(fresh(), IMAGES, config=CONFIG, checkpoint=blocked / "run.checkpoint"))


def test_rubbish_of_a_killed_writer_does_not_disturb(tmp_path):
    (tmp_path / ".run.checkpoint.123.part").write_bytes(b"half a checkpoint")
    path = tmp_path / "run.checkpoint"
    run(path)
    assert load_checkpoint(path, fresh())["step"] == 4


def stored(folder):
    denoiser = fresh()
    spec = {"kind": "unet", "image_channels": 1, "channels": (8, 8), "groups": 4}
    about = {"network": spec, "sigma_data": 0.6, "parametrisation": "edm"}
    zoo.save("unet/tiny", denoiser, about, folder=folder)
    return denoiser


def test_the_zoo_returns_what_was_stored_in_half_precision(tmp_path):
    expected = stored(tmp_path)
    found = zoo.load("unet/tiny", folder=tmp_path)
    assert not any(p.requires_grad for p in found.parameters()) and not found.training
    for a, b in zip(expected.parameters(), found.parameters(), strict=True):
        torch.testing.assert_close(a.half().float(), b, rtol=0, atol=0)


def test_damaged_weights_in_the_zoo_are_named(tmp_path):
    stored(tmp_path)
    path = tmp_path / "unet" / "tiny.safetensors"
    weights = bytearray(path.read_bytes())
    weights[-3] ^= 4
    path.write_bytes(weights)
    with pytest.raises(ValueError, match="weights of unet/tiny are damaged: SHA-256 is"):
        zoo.load("unet/tiny", folder=tmp_path)


def test_a_wrong_name_gets_a_hint(tmp_path):
    stored(tmp_path)
    with pytest.raises(ValueError, match=r"no network 'unet/tyni'.*Did you mean 'unet/tiny'"):
        zoo.load("unet/tyni", folder=tmp_path)
    with pytest.raises(ValueError, match="There are: none"):
        zoo.card("unet/tiny", folder=tmp_path / "empty")


def test_an_unknown_architecture_on_a_card_is_named(tmp_path):
    stored(tmp_path)
    path = tmp_path / "unet" / "tiny.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | {"network": {"kind": "resnet"}}))
    with pytest.raises(ValueError, match="unknown kind of network 'resnet'"):
        zoo.load("unet/tiny", folder=tmp_path)
