"""Bad input to the image sets: each gives an error that names what was wrong and what was expected.

The downloads here come from a server on this machine, so that nothing depends on a network."""

import gzip
import hashlib
import io
import shutil
import struct
import tarfile
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch
from PIL import Image

from locality import data
from locality.data import ImageSet, check_images, check_shape, load
from locality.denoisers import OptimalDenoiser


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """An empty LOCALITY_DATA and an empty cache for every test."""
    monkeypatch.setenv("LOCALITY_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("LOCALITY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def idx(array: np.ndarray, magic: int | None = None) -> bytes:
    magic = 0x0800 + array.ndim if magic is None else magic
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()


IMAGES = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)
LABELS = np.arange(30, dtype=np.uint8) % 10


def write_mnist(here: Path, *, images: bytes | None = None, labels: bytes | None = None) -> None:
    """MNIST's training files; `images` and `labels` are the .gz files' bytes."""
    (here / "mnist").mkdir()
    images = gzip.compress(idx(IMAGES)) if images is None else images
    labels = gzip.compress(idx(LABELS)) if labels is None else labels
    (here / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(images)
    (here / "mnist" / "train-labels-idx1-ubyte.gz").write_bytes(labels)


# --- idx files -----------------------------------------------------------------------------------


def test_the_files_these_tests_damage_are_good(here):
    write_mnist(here)
    assert len(load("mnist")) == 30


def test_wrong_magic_number(here):
    write_mnist(here, images=gzip.compress(idx(IMAGES, magic=0x0D03)))  # floats
    with pytest.raises(ValueError, match=r"train-images.*magic number 3331, expected 2051"):
        load("mnist")


def test_labels_where_images_should_be(here):
    write_mnist(here, images=gzip.compress(idx(LABELS)))
    with pytest.raises(ValueError, match=r"magic number 2049, expected 2051"):
        load("mnist")


@pytest.mark.parametrize("kept", [0, 5, 300, 10_000, -1])
def test_truncated_gz(here, kept):
    write_mnist(here, images=gzip.compress(idx(IMAGES))[:kept])
    with pytest.raises(ValueError, match=r"train-images.*(truncated|magic number none)"):
        load("mnist")


def test_truncated_inside(here):
    """The gz file is whole, what it holds is not."""
    write_mnist(here, images=gzip.compress(idx(IMAGES)[:-100]))
    with pytest.raises(ValueError, match=r"29 items of 30.*expected a complete one"):
        load("mnist")


def test_damaged_gz(here):
    packed = bytearray(gzip.compress(idx(IMAGES)))
    packed[-6] ^= 1  # one bit of the stored checksum
    write_mnist(here, images=bytes(packed))
    with pytest.raises(ValueError, match=r"damaged gz file.*CRC"):
        load("mnist")


def test_not_a_gz_file(here):
    write_mnist(here, images=idx(IMAGES))
    with pytest.raises(ValueError, match=r"damaged gz file.*Not a gzipped file"):
        load("mnist")


def test_more_data_than_the_header_tells(here):
    write_mnist(here, images=gzip.compress(idx(IMAGES) + b"\0"))
    with pytest.raises(ValueError, match=r"longer than its header tells \(30 items\)"):
        load("mnist")


def test_other_number_of_labels(here):
    write_mnist(here, labels=gzip.compress(idx(LABELS[:29])))
    with pytest.raises(ValueError, match=r"30 images but .*labels.* 29 labels"):
        load("mnist")


def test_missing_file(here):
    write_mnist(here)
    with pytest.raises(FileNotFoundError, match=r"t10k-images-idx3-ubyte.gz is missing"):
        load("mnist", "test")


def test_shipped_file_changed(tmp_path, monkeypatch):
    shutil.copytree(data.SHIPPED, tmp_path / "shipped")
    monkeypatch.setattr(data, "SHIPPED", tmp_path / "shipped")
    folder = tmp_path / "shipped" / "fashion-mnist"
    source = replace(data._SETS["fashion-mnist"], places=(folder,))
    monkeypatch.setitem(data._SETS, "fashion-mnist", source)
    assert len(load("fashion-mnist", n=1)) == 1
    with (folder / "train-images-idx3-ubyte.gz").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ValueError, match=r"train-images.*wrong checksum.*expected dbc97073"):
        load("fashion-mnist", n=1)


# --- CIFAR-10 and folders ------------------------------------------------------------------------


def test_cifar_with_part_of_a_record(here):
    (here / "cifar10").mkdir()
    (here / "cifar10" / "data_batch_1.bin").write_bytes(bytes(3073 * 2 - 1))
    with pytest.raises(ValueError, match=r"6145 bytes is no whole number of 3073-byte records"):
        load("cifar10")


def test_cifar_with_impossible_labels(here):
    (here / "cifar10").mkdir()
    (here / "cifar10" / "data_batch_1.bin").write_bytes(bytes([77]) * 3073)
    with pytest.raises(ValueError, match=r"label 77, expected 0 to 9"):
        load("cifar10")


def test_cifar_without_batches(here):
    (here / "cifar10" / "cifar-10-batches-bin").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"no data_batch_\*\.bin"):
        load("cifar10")


def write_images(folder: Path, *images: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index}.png")


GREY = np.zeros((8, 8), dtype=np.uint8)
RGB = np.zeros((8, 8, 3), dtype=np.uint8)


def test_empty_folder(here):
    (here / "set").mkdir()
    (here / "set" / "notes.txt").write_text("no image")
    with pytest.raises(FileNotFoundError, match=r"no image below .*set, expected files ending in"):
        load("folder:set")


def test_no_folder():
    with pytest.raises(FileNotFoundError, match=r"folder:nowhere: nowhere is no folder"):
        load("folder:nowhere")


def test_gray_and_rgb_in_one_folder(here):
    write_images(here / "set", GREY, RGB)
    with pytest.raises(ValueError, match=r"1\.png.*\(3, 8, 8\).*0\.png.*\(1, 8, 8\).*gray=True"):
        load("folder:set")
    assert load("folder:set", gray=True).shape == (1, 8, 8)


def test_two_sizes_in_one_folder(here):
    write_images(here / "set", GREY, GREY[:6])
    with pytest.raises(ValueError, match=r"1\.png.*\(1, 6, 8\).*\(1, 8, 8\).*size="):
        load("folder:set")
    assert load("folder:set", size=6).shape == (1, 6, 6)


def test_damaged_image(here):
    write_images(here / "set", np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8))
    whole = (here / "set" / "0.png").read_bytes()
    for content in (whole[: len(whole) // 2], b"not an image"):
        (here / "set" / "0.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"0\.png: damaged or not an image"):
            load("folder:set")


def test_sixteen_bit_image(here):
    write_images(here / "set", np.zeros((8, 8), dtype=np.uint16))
    with pytest.raises(ValueError, match=r"mode I;16, expected 8 bits a channel"):
        load("folder:set")


def test_celeba_that_is_not_aligned(here):
    write_images(here / "celeba", np.zeros((64, 64, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"64x64 pixels, expected .*178x218 or 89x109"):
        load("celeba")


def test_too_few_images_for_a_test_split(here):
    write_images(here / "set", GREY, GREY)
    with pytest.raises(ValueError, match=r"the test split is empty.*more than 90"):
        load("folder:set", "test")


# --- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, nearest",
    [("fashion_mnist", "fashion-mnist"), ("cifar-10", "cifar10"), ("CelebA", "celeba")],
)
def test_unknown_name(name, nearest):
    with pytest.raises(ValueError, match=rf"unknown data set '{name}'. Did you mean '{nearest}'\?"):
        load(name)


def test_unknown_name_like_no_other():
    with pytest.raises(
        ValueError, match=r"unknown data set 'xyz'. Expected one of fashion-mnist, "
    ):
        load("xyz")
    with pytest.raises(ValueError, match=r"unknown data set 'xyz'"):
        data.available("xyz")


def test_path_where_none_belongs():
    with pytest.raises(ValueError, match="folder takes a path"):
        load("folder")
    with pytest.raises(ValueError, match="photos takes no path"):
        load("photos:here")


def test_unknown_split():
    with pytest.raises(ValueError, match=r"unknown split 'val', expected 'train' or 'test'"):
        load("fashion-mnist", "val")


@pytest.mark.parametrize("options", [{"n": 0}, {"n": -3}, {"n": 2.5}, {"size": 0}, {"size": "32"}])
def test_numbers_that_are_none(options):
    ((what, value),) = options.items()
    with pytest.raises(ValueError, match=rf"{what}={value!r}, expected a positive integer or None"):
        load("fashion-mnist", **options)


def test_n_too_large():
    with pytest.raises(
        ValueError, match=r"n=10001, but fashion-mnist has 10000 train images; 'fash"
    ):
        load("fashion-mnist", n=10_001)


# --- images --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_images_that_are_not_finite(value):
    images = torch.zeros(5, 1, 4, 4)
    images[3, 0, 1, 2] = value
    with pytest.raises(ValueError, match=r"mine: 1 of 5 images hold NaN.*the first is image 3"):
        check_images(images, name="mine")
    with pytest.raises(ValueError, match="hold NaN"):
        ImageSet(images, None, "mine")
    with pytest.raises(ValueError, match="hold NaN"):
        OptimalDenoiser(images)


@pytest.mark.parametrize(
    "images", [torch.full((2, 1, 4, 4), 255.0), torch.full((2, 3, 4, 4), -1.01)]
)
def test_images_out_of_range(images):
    with pytest.raises(ValueError, match=r"values lie in \[.*\], expected \[-1, 1\]"):
        ImageSet(images, None, "mine")
    with pytest.raises(ValueError, match=r"expected \[-1, 1\]"):
        OptimalDenoiser(images)


@pytest.mark.parametrize(
    "images, message",
    [
        (np.zeros((2, 1, 4, 4), dtype=np.float32), "expected a torch tensor, got ndarray"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), "expected float32, got torch.uint8"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.float64), "expected float32, got torch.float64"),
        (torch.zeros(2, 4, 4), r"expected shape \(N, C, H, W\).*got \(2, 4, 4\)"),
        (torch.zeros(2, 4, 4, 3), r"C = 1 \(grey\) or 3 \(RGB\).*got \(2, 4, 4, 3\)"),
        (torch.zeros(0, 1, 4, 4), "at least one image"),
    ],
)
def test_images_of_another_form(images, message):
    with pytest.raises(ValueError, match=message):
        ImageSet(images, None, "mine")


@pytest.mark.parametrize("labels", [torch.zeros(3, dtype=torch.int64), torch.zeros(2)])
def test_labels_of_another_form(labels):
    with pytest.raises(ValueError, match=r"expected int64 of shape \(2,\)"):
        ImageSet(torch.zeros(2, 1, 4, 4), labels, "mine")


def test_rgb_images_for_a_gray_denoiser():
    x = torch.zeros(2, 3, 4, 4)
    expected = r"expected shape \(B, 1, 4, 4\), got \(2, 3, 4, 4\): RGB images for .* grey ones"
    with pytest.raises(ValueError, match=expected):
        check_shape(x, (1, 4, 4))
    with pytest.raises(ValueError, match=expected):
        OptimalDenoiser(torch.zeros(5, 1, 4, 4))(x, 1.0)


@pytest.mark.parametrize(
    "x, message",
    [
        (torch.zeros(2, 1, 4, 5), r"expected shape \(B, 1, 4, 4\), got \(2, 1, 4, 5\)$"),
        (torch.zeros(1, 4, 4), r"got \(1, 4, 4\)$"),
        (torch.full((1, 1, 4, 4), float("nan")), "NaN or infinite"),
        (torch.zeros(1, 1, 4, 4, dtype=torch.int64), "floating-point tensor, got torch.int64"),
        ([[0.0]], "floating-point tensor, got list"),
    ],
)
def test_input_of_another_form(x, message):
    with pytest.raises(ValueError, match=message):
        check_shape(x, (1, 4, 4))


# --- downloads -----------------------------------------------------------------------------------

FILES = {
    "train-images-idx3-ubyte.gz": gzip.compress(idx(IMAGES), mtime=0),
    "train-labels-idx1-ubyte.gz": gzip.compress(idx(LABELS), mtime=0),
}


@pytest.fixture
def server():
    """A web server on this machine; `broken` names a file whose transfer breaks off half-way."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.rpartition("/")[2]
            content = self.server.files.get(name)
            self.server.requests.append(name)
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(
                content[: len(content) // 2] if name == self.server.broken else content
            )

        def log_message(self, *arguments):
            """Be quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.broken, server.requests = dict(FILES), None, []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def mnist_from(monkeypatch):
    """A function that lets "mnist" be downloaded from a server, with the checksums of `files`."""

    def use(server, files=FILES, name="mnist"):
        sums = tuple((file, hashlib.sha256(content).hexdigest()) for file, content in files.items())
        url = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setitem(data._SETS, name, replace(data._SETS[name], url=url, files=sums))

    return use


def left_behind(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache").rglob("*")) if (tmp_path / "cache").exists() else []


def test_download_once(server, mnist_from, tmp_path):
    mnist_from(server)
    assert not data.available("mnist")
    assert len(load("mnist")) == len(load("mnist")) == 30
    assert data.available("mnist")
    assert server.requests == list(FILES), "the second time it comes from the cache"
    files = [path.name for path in left_behind(tmp_path) if path.is_file()]
    assert sorted(files) == sorted(FILES)


def test_download_of_an_archive(server, mnist_from, tmp_path):
    record = bytes([3]) + bytes(3072)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        member = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
        member.size = len(record)
        archive.addfile(member, io.BytesIO(record))
    server.files = {"cifar-10-binary.tar.gz": buffer.getvalue()}
    mnist_from(server, server.files, name="cifar10")
    assert load("cifar10").labels.tolist() == [3]
    names = sorted(path.name for path in left_behind(tmp_path))
    assert names == ["cifar-10-batches-bin", "cifar10", "data_batch_1.bin"]


def test_download_with_wrong_checksum(server, mnist_from, tmp_path):
    mnist_from(server)
    server.files["train-labels-idx1-ubyte.gz"] = b"something else"
    with pytest.raises(ValueError, match=r"mnist: wrong checksum.*nothing was kept"):
        load("mnist")
    assert left_behind(tmp_path) == []


def test_download_that_breaks_off(server, mnist_from, tmp_path):
    mnist_from(server)
    server.broken = "train-images-idx3-ubyte.gz"
    with pytest.raises((FileNotFoundError, ValueError), match="mnist"):
        load("mnist")
    assert left_behind(tmp_path) == []
    server.broken = None
    assert len(load("mnist")) == 30, "the next attempt succeeds"


def test_download_that_is_interrupted(server, mnist_from, tmp_path, monkeypatch):
    """Ctrl-C while the second file is fetched."""
    mnist_from(server)
    retrieve = pooch.retrieve

    def interrupted(url, **options):
        if "labels" in url:
            raise KeyboardInterrupt
        return retrieve(url, **options)

    monkeypatch.setattr(pooch, "retrieve", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load("mnist")
    assert left_behind(tmp_path) == []


def test_two_processes_download_at_once(server, mnist_from, tmp_path, monkeypatch):
    """The other one finishes while ours fetches its last file."""
    mnist_from(server)
    retrieve = pooch.retrieve

    def overtaken(url, **options):
        retrieve(url, **options)
        if "labels" in url:
            shutil.copytree(options["path"], tmp_path / "cache" / "mnist")

    monkeypatch.setattr(pooch, "retrieve", overtaken)
    assert len(load("mnist")) == 30
    names = sorted(path.name for path in left_behind(tmp_path))
    assert names == sorted(["mnist", *FILES])


def test_no_network(server, mnist_from, tmp_path, here):
    """Nothing listens there: the error names the ways to get the set."""
    mnist_from(server)
    server.shutdown()
    server.server_close()
    with pytest.raises(FileNotFoundError) as caught:
        load("mnist")
    message = str(caught.value)
    assert "mnist is not on this machine" in message and "The download failed" in message
    assert f"LOCALITY_DATA names (it is '{here}')" in message
    assert "load('mnist:PATH')" in message
    assert f"downloads it from http://127.0.0.1:{server.server_port}/" in message
    assert left_behind(tmp_path) == []


def test_file_that_the_server_does_not_have(server, mnist_from):
    mnist_from(server)
    del server.files["train-labels-idx1-ubyte.gz"]
    with pytest.raises(FileNotFoundError, match="404"):
        load("mnist")


@pytest.mark.parametrize("name", ["celeba", "celeba-hq", "afhq", "afhq-cat", "olivetti"])
def test_sets_that_are_not_downloaded(name, monkeypatch):
    monkeypatch.delenv("LOCALITY_DATA")
    with pytest.raises(FileNotFoundError) as caught:
        load(name)
    message = str(caught.value)
    assert f"folder {data._SETS[name].folders[0]} of a folder" in message
    assert "LOCALITY_DATA names (it is not set)" in message
    assert data._SETS[name].home in message


def test_locality_data_that_is_no_folder(monkeypatch):
    monkeypatch.setenv("LOCALITY_DATA", "nowhere")
    with pytest.raises(FileNotFoundError, match=r"it is 'nowhere', no folder as seen from /"):
        load("celeba")


def test_debian_package_is_named(monkeypatch, server, mnist_from):
    mnist_from(server, name="fashion-mnist-full")
    source = replace(data._SETS["fashion-mnist-full"], places=())
    monkeypatch.setitem(data._SETS, "fashion-mnist-full", source)
    server.files = {}
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
        load("fashion-mnist-full")


def test_cache_that_cannot_be_written(server, mnist_from, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("a file, where a folder is needed")
    monkeypatch.setenv("LOCALITY_CACHE", str(tmp_path / "file"))
    mnist_from(server)
    with pytest.raises(OSError, match=r"cannot write mnist to the cache .*file .*LOCALITY_CACHE"):
        load("mnist")


def test_no_space_left(server, mnist_from, tmp_path, monkeypatch):
    mnist_from(server)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pooch, "retrieve", full)
    with pytest.raises(
        OSError, match=r"No space left.*expected a writable folder with enough space"
    ):
        load("mnist")
    assert left_behind(tmp_path) == []
