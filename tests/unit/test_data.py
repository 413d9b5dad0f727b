"""The image sets: exact pixel values, every format written here and read back, the real sets."""

import gzip
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from locality import data
from locality.data import ImageSet, available, load

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
SHARED = Path(os.environ.get("LOCALITY_DATA", "nowhere"))


def needs(folder: str):
    """Skip where LOCALITY_DATA holds no such folder."""
    return pytest.mark.skipif(
        not (SHARED / folder).is_dir(), reason=f"no {folder} in LOCALITY_DATA"
    )


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty LOCALITY_DATA and an empty cache."""
    monkeypatch.setenv("LOCALITY_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("LOCALITY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def random_pixels():
    return np.random.default_rng(0)


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def write_images(folder: Path, images: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index:05d}.png")


def to_float(pixels: np.ndarray) -> torch.Tensor:
    """The definition, computed by NumPy: uint8 (N, H, W, C) to float32 (N, C, H, W)."""
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(127.5) - 1)


# --- the shipped subset --------------------------------------------------------------------------


@pytest.mark.parametrize("split, count", [("train", 10_000), ("test", 2_000)])
def test_shipped_subset(split, count, monkeypatch):
    monkeypatch.delenv("LOCALITY_DATA", raising=False)
    images = load("fashion-mnist", split)
    assert images.name == "fashion-mnist"
    assert len(images) == count and images.shape == (1, 28, 28)
    assert images.images.dtype == torch.float32 and images.images.is_contiguous()
    assert images.images.min() == -1 and images.images.max() == 1
    assert images.labels.dtype == torch.int64
    # Ten balanced classes: in a random part of the set none is far from a tenth.
    shares = torch.bincount(images.labels, minlength=10) / count
    assert shares.min() > 0.085 and shares.max() < 0.115


def test_shipped_subset_is_small_and_licensed():
    files = list((data.SHIPPED / "fashion-mnist").iterdir())
    assert sum(file.stat().st_size for file in files) < 7e6
    assert "MIT License" in (data.SHIPPED / "fashion-mnist" / "LICENSE").read_text()


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="dataset-fashion-mnist is not installed")
@pytest.mark.parametrize(
    "split, count, total", [("train", 10_000, 60_000), ("test", 2_000, 10_000)]
)
def test_shipped_subset_is_the_beginning_of_the_official_files(split, count, total):
    subset, full = load("fashion-mnist", split), load("fashion-mnist-full", split)
    assert len(full) == total
    assert torch.equal(subset.images, full.images[:count])
    assert torch.equal(subset.labels, full.labels[:count])


def test_values_of_known_pixels():
    """The first training image is an ankle boot; rows of the official file, read by hand."""
    with gzip.open(data.SHIPPED / "fashion-mnist" / "train-images-idx3-ubyte.gz") as file:
        raw = np.frombuffer(file.read()[16:], dtype=np.uint8).reshape(-1, 28, 28, 1)
    images = load("fashion-mnist", n=3)
    assert torch.equal(images.images, to_float(raw[:3]))
    assert images.labels.tolist() == [9, 0, 0]


# --- options -------------------------------------------------------------------------------------


def test_n_gives_the_first_images(fashion):
    few = load("fashion-mnist", n=7)
    assert torch.equal(few.images, fashion.images[:7]) and torch.equal(
        few.labels, fashion.labels[:7]
    )


def test_blocks_do_not_show(monkeypatch, fashion):
    monkeypatch.setattr(data, "BLOCK", 7)
    assert torch.equal(load("fashion-mnist", n=100).images, fashion.images[:100])


def test_every_pixel_value_is_exact(here):
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    write_idx(here / "mnist" / "train-images-idx3-ubyte.gz", ramp)
    write_idx(here / "mnist" / "train-labels-idx1-ubyte.gz", np.array([3], dtype=np.uint8))
    values = load("mnist").images.flatten()
    assert torch.equal(values, torch.arange(256, dtype=torch.float32) / 127.5 - 1)
    assert torch.equal(((values + 1) * 127.5).round(), torch.arange(256.0)), "and can be undone"


def test_gray_is_pillows_luma(here, random_pixels):
    pixels = random_pixels.integers(0, 256, (20, 9, 9, 3), dtype=np.uint8)
    write_images(here / "set", pixels)
    gray = load("folder:set", gray=True)
    luma = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in pixels[:20]])
    assert gray.shape == (1, 9, 9)
    assert torch.equal(gray.images, to_float(luma[..., None]))


def test_gray_changes_nothing_that_is_gray(fashion):
    assert torch.equal(load("fashion-mnist", n=10, gray=True).images, fashion.images[:10])


def test_resizing_is_antialiased(here):
    """A checkerboard of single pixels shrinks to its mean, not to black or white squares."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    write_images(here / "set", np.stack([board] * 3))
    small = load("folder:set", size=16).images
    torch.testing.assert_close(small, torch.zeros_like(small), atol=0.02, rtol=0)


def test_resizing_takes_the_central_square(here):
    wide = np.zeros((1, 10, 30), dtype=np.uint8)
    wide[:, :, 10:20] = 255
    write_images(here / "set", wide)
    assert (load("folder:set", size=10).images == 1).all()


def test_memory_is_that_of_the_result(here):
    """40,000 images are 120 MiB as float32; reading them takes little more."""
    write_idx(here / "mnist" / "train-images-idx3-ubyte.gz", np.zeros((40_000, 28, 28), np.uint8))
    write_idx(here / "mnist" / "train-labels-idx1-ubyte.gz", np.zeros(40_000, np.uint8))
    code = """if True:
        import resource, sys
        from locality.data import load
        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        before = peak()
        size = load("mnist").images.nbytes
        unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
        print(((peak() - before) * unit - size) / 2**20)"""
    extra = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert float(extra.stdout) < 40, "MiB beyond the images"


# --- formats -------------------------------------------------------------------------------------


def test_cifar_binary(here, random_pixels):
    """Labels and planes come back in order, over files numbered 1 to 11, and the official split."""
    folder = here / "cifar10" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    pixels = random_pixels.integers(0, 256, (24, 3, 32, 32), dtype=np.uint8)
    labels = random_pixels.integers(0, 10, 24, dtype=np.uint8)
    records = np.concatenate([labels[:, None], pixels.reshape(24, -1)], axis=1)
    for number in range(11):
        records[2 * number : 2 * number + 2].tofile(folder / f"data_batch_{number + 1}.bin")
    records[22:].tofile(folder / "test_batch.bin")
    train, test = load("cifar10"), load("cifar10", "test")
    assert torch.equal(train.images, to_float(pixels[:22].transpose(0, 2, 3, 1)))
    assert train.labels.tolist() == labels[:22].tolist()
    assert torch.equal(test.images, to_float(pixels[22:].transpose(0, 2, 3, 1)))
    assert len(load("cifar10", n=5)) == 5


def test_split_of_sets_without_one(here, random_pixels):
    """The last ten of every hundred are the test split; together they are everything, once."""
    pixels = random_pixels.integers(0, 256, (215, 4, 4, 3), dtype=np.uint8)
    write_images(here / "set", pixels)
    everything = to_float(pixels)
    test = [*range(90, 100), *range(190, 200)]
    train = [index for index in range(215) if index not in test]
    assert torch.equal(load("folder:set").images, everything[train])
    assert torch.equal(load("folder:set", "test").images, everything[test])


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_folders_with_an_official_split(here, random_pixels, held_out):
    pixels = random_pixels.integers(0, 256, (12, 4, 4, 3), dtype=np.uint8)
    write_images(here / "afhq" / "train" / "cat", pixels[:3])
    write_images(here / "afhq" / "train" / "dog", pixels[3:7])
    write_images(here / "afhq" / held_out / "cat", pixels[7:10])
    write_images(here / "afhq" / held_out / "wild", pixels[10:])
    everything = to_float(pixels)
    assert torch.equal(load("afhq", size=4).images, everything[:7])
    assert torch.equal(load("afhq", "test", size=4).images, everything[7:])
    assert torch.equal(load("afhq-cat", size=4).images, everything[:3])
    assert torch.equal(load("afhq-cat", "test", size=4).images, everything[7:10])


@pytest.mark.parametrize("width, height, side", [(89, 109, 74), (178, 218, 148)])
def test_celeba_keeps_the_face(here, width, height, side):
    face = np.zeros((1, height, width, 3), dtype=np.uint8)
    top, left = (height - side) // 2, (width - side) // 2
    face[:, top : top + side, left : left + side] = 255
    write_images(here / "celeba" / "img_align_celeba", face)
    faces = load("celeba")
    assert faces.shape == (3, 32, 32)
    assert (faces.images == 1).all(), "the crop reaches beyond the face"


def test_celebas_official_partition():
    numbers = list(range(1, 202_600))  # files are named by number, 000001.jpg to 202599.jpg
    train, test = data._celeba_part(numbers, "train"), data._celeba_part(numbers, "test")
    assert (train[0], train[-1], test[0], test[-1]) == (1, 162_770, 182_638, 202_599)
    assert len(test) == 19_962


def test_photos_are_deterministic_and_splits_share_no_pixel():
    some = load("photos", n=500)
    assert some.name == "photos" and some.shape == (3, 32, 32) and some.labels is None
    assert torch.equal(some.images, load("photos", n=500).images)
    patches = {image.numpy().tobytes() for image in load("photos").images}
    assert 15_000 < len(patches) < 25_000
    test = load("photos", "test")
    # Flat sky repeats; a patch with any texture is in one split only.
    textured = test.images[test.images.flatten(1).std(1) > 0.05]
    assert len(textured) > 2000
    assert not any(image.numpy().tobytes() in patches for image in textured)


def test_photos_look_like_photographs():
    """Neighbouring pixels agree, contrast varies, and the spectrum falls about as 1/f."""
    images = load("photos", n=4000, gray=True).images[:, 0]
    assert images.shape[1:] == (32, 32)
    left, right = images[..., :-1].flatten(), images[..., 1:].flatten()
    assert torch.corrcoef(torch.stack([left, right]))[0, 1] > 0.9
    power = torch.fft.fft2(images - images.mean((1, 2), keepdim=True)).abs().square().mean(0)
    low, high = power[0, 2:4].mean(), power[0, 8:16].mean()
    assert 10 < low / high < 1000


# --- search order --------------------------------------------------------------------------------


def idx_set(folder: Path, value: int) -> None:
    write_idx(folder / "train-images-idx3-ubyte.gz", np.full((2, 28, 28), value, dtype=np.uint8))
    write_idx(folder / "train-labels-idx1-ubyte.gz", np.zeros(2, dtype=np.uint8))


def test_locality_data_comes_before_the_cache(here, tmp_path):
    idx_set(tmp_path / "cache" / "mnist", 0)
    assert load("mnist").images.max() == -1
    idx_set(here / "mnist", 255)
    assert load("mnist").images.min() == 1


def test_a_path_comes_before_everything(here, tmp_path):
    idx_set(here / "mnist", 0)
    idx_set(here / "other", 255)
    relative, absolute = load("mnist:other"), load(f"mnist:{here / 'other'}")
    assert relative.images.min() == absolute.images.min() == 1
    assert relative.name == absolute.name == "mnist:other", "no machine path in the name"


def test_available(here):
    assert available("fashion-mnist") and available("photos")
    assert not available("celeba")
    write_images(here / "celeba", np.zeros((1, 109, 89, 3), dtype=np.uint8))
    assert available("celeba")


# --- the real sets, where LOCALITY_DATA has them -------------------------------------------------


@needs("mnist")
def test_real_mnist():
    images = load("mnist", "test")
    assert len(images) == 10_000 and images.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert load("mnist", n=5).labels.tolist() == [5, 0, 4, 1, 9]


@needs("cifar10")
@needs("cifar10-lossless-4k")
def test_real_cifar10():
    damaged = load("cifar10", n=1000)
    assert damaged.shape == (3, 32, 32) and len(torch.unique(damaged.labels)) == 10
    lossless = load("cifar10:cifar10-lossless-4k")
    assert len(lossless) == 3600 and len(load("cifar10:cifar10-lossless-4k", "test")) == 400
    # The published means of CIFAR-10's channels, in units of [0, 1].
    means = (lossless.images.mean((0, 2, 3)) + 1) / 2
    torch.testing.assert_close(means, torch.tensor([0.4914, 0.4822, 0.4465]), atol=0.01, rtol=0)


@needs("celeba")
def test_real_celeba():
    faces = load("celeba", n=200)
    assert faces.shape == (3, 32, 32)
    # Aligned faces are symmetric on average; skin is redder than blue.
    mean = faces.images.mean(0)
    correlation = torch.corrcoef(torch.stack([mean[1].flatten(), mean[1].flip(1).flatten()]))
    assert correlation[0, 1] > 0.9
    assert mean[0].mean() > mean[2].mean()


@needs("afhq-cat-64")
def test_real_afhq():
    cats = load("afhq-cat", "test", n=50, size=32)
    assert cats.shape == (3, 32, 32) and cats.images.std() > 0.3


@needs("olivetti")
def test_real_olivetti():
    faces = load("olivetti")
    assert len(faces) == 360 and faces.shape == (1, 64, 64)
    assert len(load("olivetti", "test")) == 40, "persons 10, 20, 30 and 40"


def test_image_set_is_what_it_says(fashion):
    assert isinstance(fashion, ImageSet)
    with pytest.raises(AttributeError):
        fashion.name = "other"
