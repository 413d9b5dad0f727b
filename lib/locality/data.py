"""Image sets: one function, `load`, that reads each set in the format its authors publish it in.

Every set becomes the same thing, an `ImageSet`: float32 images of shape (N, C, H, W) with pixel
values in [-1, 1], and labels where the set has them. A set is looked for in this order: shipped
with the package, the folder the environment variable LOCALITY_DATA names, the place Debian installs
it, the cache, a download from the official address (checked against a pinned SHA-256; nothing is
left behind when it fails). `NAME:PATH` reads the set from a path instead, so `folder:PATH` is any
folder of images. Nothing here uses memory beyond the images themselves: files are read in small
blocks straight into the result.
"""

from __future__ import annotations

import difflib
import gzip
import math
import os
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pooch
import requests
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".webp"}
# What a reader returns: the number of images in the split; (file, uint8 images (b, H, W, C)) in
# order, read when asked for; the labels, if any.
_Raw = tuple[int, Iterator[tuple[str, np.ndarray]], np.ndarray | None]
BLOCK = 1000  # images read at a time; nothing depends on the value but the memory in between
SHIPPED = Path(__file__).parent / "_data"


@dataclass(frozen=True)
class ImageSet:
    """A set of images, all of one shape.

    Attributes:
        images: float32 tensor (N, C, H, W), pixel values in [-1, 1], C = 1 (grey) or 3 (RGB).
        labels: int64 tensor (N,), or None where the set has no classes.
        name: the name it was loaded by; `NAME:PATH` keeps only the last part of the path.

    Raises:
        ValueError: the images or labels are not of that form.
    """

    images: Tensor
    labels: Tensor | None
    name: str

    def __post_init__(self) -> None:
        check_images(self.images, name=self.name)
        if self.labels is not None and (
            self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]
        ):
            raise ValueError(
                f"{self.name}: labels are {self.labels.dtype} of shape {tuple(self.labels.shape)}; "
                f"expected int64 of shape ({len(self.images)},), one label an image"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W), the shape of one image."""
        return tuple(self.images.shape[1:])

    def __len__(self) -> int:
        return len(self.images)


def check_images(images: Tensor, *, name: str = "images") -> None:
    """Raise a ValueError unless `images` is float32, (N, C, H, W), finite and within [-1, 1].

    `name` says in the message whose images they are. Reads the images once, in place.
    """
    if not isinstance(images, Tensor):
        raise ValueError(f"{name}: expected a torch tensor, got {type(images).__name__}")
    if images.dtype != torch.float32:
        raise ValueError(f"{name}: expected float32, got {images.dtype}")
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.numel() == 0:
        raise ValueError(
            f"{name}: expected shape (N, C, H, W) with C = 1 (grey) or 3 (RGB) and at least one "
            f"image, got {tuple(images.shape)}"
        )
    low, high = (bound.item() for bound in torch.aminmax(images))  # either is NaN if any pixel is
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = (~torch.isfinite(images.flatten(1).sum(1))).nonzero().flatten()
        raise ValueError(
            f"{name}: {len(bad)} of {len(images)} images hold NaN or infinite pixels, the first is "
            f"image {bad[0].item()}; expected finite values in [-1, 1]"
        )
    if low < -1 or high > 1:
        raise ValueError(
            f"{name}: pixel values lie in [{low:.4g}, {high:.4g}], expected [-1, 1] "
            "(for uint8 pixels p: p / 127.5 - 1)"
        )


def check_shape(x: Tensor, shape: tuple[int, int, int], *, name: str = "x") -> None:
    """Raise a ValueError unless `x` is a batch (B, C, H, W) of images of `shape` = (C, H, W).

    For a denoiser's input, which is noisy: its values may lie anywhere, but must be finite numbers.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{name}: expected a floating-point tensor, got {got}")
    if x.ndim != 4 or tuple(x.shape[1:]) != tuple(shape):
        kinds = {1: "grey", 3: "RGB"}
        hint = ""
        if x.ndim == 4 and tuple(x.shape[2:]) == tuple(shape[1:]):
            hint = (
                f": {kinds.get(x.shape[1], 'other')} images for a denoiser of "
                f"{kinds.get(shape[0], 'other')} ones; load(..., gray=True) makes a set grey"
            )
        expected = f"(B, {', '.join(str(side) for side in shape)})"
        raise ValueError(f"{name}: expected shape {expected}, got {tuple(x.shape)}{hint}")
    if not torch.isfinite(x).all():
        raise ValueError(f"{name}: holds NaN or infinite values, expected finite ones")


def load(
    name: str,
    split: str = "train",
    *,
    n: int | None = None,
    size: int | None = None,
    gray: bool = False,
) -> ImageSet:
    """Load a set of images by its name.

    Args:
        name: one of `NAMES`, or `NAME:PATH` to read that set from a path (relative to LOCALITY_DATA
            if it exists there). "fashion-mnist" is the shipped subset: the first 10,000 training
            and the first 2,000 test images. "fashion-mnist-full" is all 60,000 and 10,000.
        split: "train" or "test". Of a set without an official split, the last ten of every hundred
            images, in the order of their files, are "test" and the others "train".
        n: only the first n images; None for all.
        size: resize to size x size pixels (bicubic, antialiased) after cutting out the central
            square; None keeps the set's own size (see the data appendix). For "photos": the
            patches' side.
        gray: turn RGB into grey, the luma of ITU-R BT.601.

    Returns:
        An `ImageSet`; uint8 pixels p become exactly p / 127.5 - 1.

    Raises:
        ValueError: an unknown name or split, n larger than the set, or a damaged file.
        FileNotFoundError: the set is not on this machine and cannot be downloaded; the message
            lists the ways to get it.
    """
    base, _, path = name.partition(":")
    if base not in _SETS:
        near = difflib.get_close_matches(base, NAMES, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"unknown data set {name!r}.{hint} Expected one of {', '.join(NAMES)}, or NAME:PATH, "
            "for example folder:PATH"
        )
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r}, expected 'train' or 'test'")
    for what, value in (("n", n), ("size", size)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{what}={value!r}, expected a positive integer or None")
    source = _SETS[base]
    if base == ("photos" if path else "folder"):
        takes = "no path" if path else "a path, folder:PATH"
        raise ValueError(f"{name!r}: {base} takes {takes}")
    root = _resolve(name) if path else _find(base)
    size = size or source.size
    total, blocks, labels = source.read(root, split, size)
    label = f"{base}:{root.name}" if path else base
    if total == 0:
        raise ValueError(
            f"{label}: the {split} split is empty: without an official split the last ten of every "
            "hundred images are the test images, so more than 90 are needed"
        )
    if n is not None and n > total:
        more = "; 'fashion-mnist-full' holds all" if name == "fashion-mnist" else ""
        raise ValueError(f"n={n}, but {label} has {total} {split} images{more}")
    count = n or total
    images = _to_tensor(blocks, count, size, gray)
    if labels is not None:
        labels = torch.from_numpy(labels[:count].astype(np.int64))
    return ImageSet(images, labels, label)


def available(name: str) -> bool:
    """Whether `load(name)`, of `NAMES`, needs no download: it ships, or is on this machine."""
    if name not in _SETS:
        raise ValueError(f"unknown data set {name!r}, expected one of {', '.join(NAMES)}")
    return _SETS[name].read is _read_photos or _on_this_machine(name) is not None


def _find(name: str) -> Path | None:
    """The folder the set `name` is read from, downloading it when it is nowhere on this machine.

    Returns None for "photos", which come with scikit-image and scikit-learn.
    """
    source = _SETS[name]
    if source.read is _read_photos:
        return None
    found = _on_this_machine(name)
    if found is None and source.files:
        found = _download(name)
    if found is None:
        raise FileNotFoundError(_how_to_get(name))
    return found


# --- from the files' bytes to the tensor ---------------------------------------------------------


def _to_tensor(
    blocks: Iterator[tuple[str, np.ndarray]], count: int, size: int | None, gray: bool
) -> Tensor:
    """The first `count` images of uint8 blocks (b, H, W, C) as float32 (count, C, H, W)."""
    images, start = None, 0
    for where, block in blocks:
        if start == count:  # asking for one block more lets a reader check the end of its file
            break
        block = block[: count - start]
        if gray and block.shape[3] == 3:
            block = _luma(block)
        if size is not None and block.shape[1:3] != (size, size):
            block = np.stack([_resize(image, size) for image in block])
        shape = (block.shape[3], *block.shape[1:3])
        if images is None:
            images, first = torch.empty(count, *shape), where
        elif images.shape[1:] != shape:
            remedy = "gray=True" if images.shape[2:] == shape[1:] else "size="
            raise ValueError(
                f"{where}: (channels, height, width) is {shape}, but {first} has "
                f"{tuple(images.shape[1:])}; expected images of one kind, load them with {remedy}"
            )
        part = images[start : start + len(block)]
        part.numpy()[...] = block.transpose(0, 3, 1, 2)
        part.div_(127.5).sub_(1)
        start += len(block)
    return images


def _luma(block: np.ndarray) -> np.ndarray:
    """Grey from RGB: .299 R + .587 G + .114 B, rounded (ITU-R BT.601); (b, H, W, 1) uint8."""
    weights = np.array([19595, 38470, 7471], dtype=np.uint32)  # times 2^16; they sum to 2^16
    return ((block @ weights + 2**15) >> 16).astype(np.uint8)[..., None]


def _resize(image: np.ndarray, size: int) -> np.ndarray:
    """The central square of one (H, W, C) uint8 image, resized; Pillow widens the bicubic kernel
    when it shrinks, which is the antialiasing."""
    picture = _central(Image.fromarray(image.squeeze(-1) if image.shape[2] == 1 else image))
    picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(picture).reshape(size, size, -1)


def _central(picture: Image.Image, side: int | None = None) -> Image.Image:
    """The central side x side square, by default the largest there is."""
    side = side or min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))


# --- idx.gz: MNIST and Fashion-MNIST -------------------------------------------------------------


def _read_idx(root: Path, split: str, size: int | None) -> _Raw:
    prefix = "train" if split == "train" else "t10k"
    images = root / f"{prefix}-images-idx3-ubyte.gz"
    labels = root / f"{prefix}-labels-idx1-ubyte.gz"
    for path in (images, labels):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing, expected the set's four idx .gz files")
        if root.is_relative_to(SHIPPED):
            _check_shipped(path)
    total, height, width = _idx_sizes(images, ndim=3)
    (count,) = _idx_sizes(labels, ndim=1)
    if total != count:
        raise ValueError(
            f"{images} holds {total} images but {labels.name} {count} labels, expected as many"
        )
    blocks = (
        (str(images), block.reshape(-1, height, width, 1)) for block in _idx_blocks(images, ndim=3)
    )
    return total, blocks, np.concatenate(list(_idx_blocks(labels, ndim=1)))


def _idx_sizes(path: Path, *, ndim: int) -> tuple[int, ...]:
    """The sizes in the header of an idx file: (N,) of labels, (N, H, W) of images."""
    magic = 0x0800 + ndim  # 08: unsigned bytes; then the number of dimensions
    with _open_gzip(path) as file:
        header = np.frombuffer(file.read(4 * (1 + ndim)), dtype=">u4")
    if len(header) < 1 + ndim or header[0] != magic:
        found = header[0] if len(header) else "none"
        raise ValueError(
            f"{path}: wrong magic number {found}, expected {magic} (an idx file of unsigned bytes, "
            f"{ndim}-dimensional)"
        )
    return tuple(int(side) for side in header[1:])


def _idx_blocks(path: Path, *, ndim: int) -> Iterator[np.ndarray]:
    """The items of an idx file as flat uint8 arrays, BLOCK items at a time."""
    count, *sides = _idx_sizes(path, ndim=ndim)
    item = math.prod(sides)
    with _open_gzip(path) as file:
        file.read(4 * (1 + ndim))
        for start in range(0, count, BLOCK):
            wanted = item * min(BLOCK, count - start)
            data = file.read(wanted)
            if len(data) < wanted:
                raise EOFError(f"{start + len(data) // item} items of {count}")
            yield np.frombuffer(data, dtype=np.uint8)
        if file.read(1):  # reading on to the end also verifies the gzip checksum
            raise ValueError(f"{path}: longer than its header tells ({count} items)")


@contextmanager
def _open_gzip(path: Path) -> Iterator[gzip.GzipFile]:
    try:
        with gzip.open(path) as file:
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f"{path}: truncated or damaged gz file ({error}), expected a complete one"
        ) from error


def _check_shipped(path: Path) -> None:
    sums = dict(
        reversed(line.split())
        for line in (path.parent / "checksums.sha256").read_text().splitlines()
    )
    found = pooch.file_hash(path, alg="sha256")
    if found != sums[path.name]:
        raise ValueError(
            f"{path}: wrong checksum, SHA-256 is {found}, expected {sums[path.name]}; "
            "install the package again"
        )


# --- CIFAR-10, binary version --------------------------------------------------------------------

_RECORD = 1 + 3 * 32 * 32  # a label byte, then the red, green and blue planes


def _read_cifar(root: Path, split: str, size: int | None) -> _Raw:
    if (root / "cifar-10-batches-bin").is_dir():
        root = root / "cifar-10-batches-bin"
    train = sorted(root.glob("data_batch_*.bin"), key=lambda path: (len(path.name), path.name))
    test = [path for path in (root / "test_batch.bin",) if path.is_file()]
    if not train:
        raise FileNotFoundError(
            f"{root} holds no data_batch_*.bin, expected CIFAR-10's binary version"
        )
    files = test if test and split == "test" else train
    labels = []
    for path in files:
        if path.stat().st_size % _RECORD:
            raise ValueError(
                f"{path}: {path.stat().st_size} bytes is no whole number of {_RECORD}-byte records "
                "(label, R, G and B planes); the file is truncated or of another format"
            )
        labels.append(np.memmap(path, dtype=np.uint8, mode="r")[::_RECORD].copy())
        if labels[-1].max(initial=0) > 9:
            raise ValueError(
                f"{path}: label {labels[-1].max()}, expected 0 to 9: not CIFAR-10's binary version"
            )
    labels = np.concatenate(labels)
    keep = np.ones(len(labels), dtype=bool) if test else _in_split(len(labels), split)
    return int(keep.sum()), _cifar_blocks(files, keep), labels[keep]


def _cifar_blocks(files: list[Path], keep: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    start = 0
    for path in files:
        records = np.memmap(path, dtype=np.uint8, mode="r").reshape(-1, _RECORD)
        for first in range(0, len(records), BLOCK):
            block = records[first : first + BLOCK]
            kept = block[keep[start : start + len(block)], 1:]
            start += len(block)
            yield path.name, kept.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


# --- folders of images ---------------------------------------------------------------------------


def _read_folder(root: Path, split: str, size: int | None, *, only: str | None = None) -> _Raw:
    """Images below `root`. A folder `train` beside a folder `test` or `val` is an official split.
    `only` keeps the images in folders of that name, where there are any."""
    held_out = [root / part for part in ("test", "val") if (root / part).is_dir()]
    official = (root / "train").is_dir() and held_out
    if official:
        files = _images_below([root / "train"] if split == "train" else held_out)
    else:
        files = _images_below([root])
    if only:
        files = [path for path in files if only in path.relative_to(root).parts[:-1]] or files
    if not official:
        files = _part(files, split)
    return len(files), (_open_image(path) for path in files), None


def _read_celeba(root: Path, split: str, size: int | None) -> _Raw:
    files = _celeba_part(_images_below([root]), split)
    return len(files), (_open_image(path, crop=_celeba_face) for path in files), None


def _celeba_part(files: list[Path], split: str) -> list[Path]:
    """The official partition goes by file number: training 1 to 162,770, validation, test from
    182,638. Where there is only a part of the 202,599 files, it is split like any folder."""
    if len(files) != 202_599:
        return _part(files, split)
    return files[:162_770] if split == "train" else files[182_637:]


def _celeba_face(picture: Image.Image, path: Path) -> Image.Image:
    """The central 148 x 148 of an aligned 178 x 218 face, or 74 x 74 of one at half that size."""
    if picture.size not in ((178, 218), (89, 109)):
        raise ValueError(
            f"{path}: {picture.width}x{picture.height} pixels, expected CelebA's aligned faces, "
            "178x218 or 89x109; folder:PATH reads other images"
        )
    return _central(picture, 148 if picture.width == 178 else 74)


def _images_below(folders: list[Path]) -> list[Path]:
    files = sorted(
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )
    if not files:
        raise FileNotFoundError(
            f"no image below {' or '.join(str(folder) for folder in folders)}, expected files "
            f"ending in {' '.join(sorted(IMAGE_SUFFIXES))}"
        )
    return files


def _open_image(path: Path, *, crop: Callable | None = None) -> tuple[str, np.ndarray]:
    try:
        with Image.open(path) as picture:
            picture.load()
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path}: damaged or not an image ({error})") from error
    if picture.mode.startswith(("I", "F")):
        raise ValueError(f"{path}: pixels of mode {picture.mode}, expected 8 bits a channel")
    if crop is not None:
        picture = crop(picture, path)
    pixels = np.array(picture.convert("L" if picture.mode in ("1", "L", "LA") else "RGB"))
    return str(path), pixels.reshape(1, *pixels.shape[:2], -1)


def _part(files: list[Path], split: str) -> list[Path]:
    return [files[index] for index in _in_split(len(files), split).nonzero()[0]]


def _in_split(total: int, split: str) -> np.ndarray:
    """Boolean (total,): the last ten of every hundred images are the test split. Neighbours stay
    together, because files next to each other often show the same person, animal or scene."""
    return (np.arange(total) % 100 >= 90) == (split == "test")


# --- patches of photographs ----------------------------------------------------------------------

# The colour photographs, and no micrograph, drawing or astronomical plate, inside the packages.
_SKIMAGE_PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "stereo_motorcycle")
_SKLEARN_PHOTOS = ("china.jpg", "flower.jpg")
_STRIDE = 9  # odd, so that patches do not line up with the 8 x 8 blocks of the JPEG photographs


def _read_photos(root: None, split: str, size: int) -> _Raw:
    """size x size patches on a grid of stride 9, of each photograph and of its half-size copy.
    Test patches come from the right fifth of a photograph, training patches from the rest: they
    share no pixel. A fixed permutation mixes them: the first n come from all photographs."""
    import skimage.data
    from sklearn.datasets import load_sample_image

    photos = []
    for name in _SKIMAGE_PHOTOS:
        photo = getattr(skimage.data, name)()
        photos.append(
            photo[0] if isinstance(photo, tuple) else photo
        )  # left eye of the stereo pair
    photos += [load_sample_image(name) for name in _SKLEARN_PHOTOS]
    patches = []
    for photo in photos:
        height, width = photo.shape[:2]
        half = Image.fromarray(photo).resize((width // 2, height // 2), Image.Resampling.BICUBIC)
        for scaled in (photo, np.asarray(half)):
            border = scaled.shape[1] * 4 // 5
            side = scaled[:, :border] if split == "train" else scaled[:, border:]
            if min(side.shape[:2]) < size:
                continue
            windows = np.lib.stride_tricks.sliding_window_view(side, (size, size), axis=(0, 1))
            grid = windows[::_STRIDE, ::_STRIDE]  # a view: (rows, columns, C, size, size)
            patches += [patch.transpose(1, 2, 0) for row in grid for patch in row]
    order = np.random.default_rng(0).permutation(len(patches))
    return len(patches), (("", patches[index][None]) for index in order), None


# --- where the sets are --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    read: Callable[..., _Raw]  # called with (root, split, size)
    folders: tuple[str, ...] = ()  # looked for in LOCALITY_DATA, in this order
    places: tuple[Path, ...] = ()  # other places: shipped, or where Debian installs it
    size: int | None = None  # the side images are resized to when the caller names none
    home: str = ""  # where a person finds the set
    url: str = ""  # where the files below are downloaded from
    files: tuple[tuple[str, str], ...] = ()  # (file, SHA-256)
    hint: str = ""  # one more way to get it


_SETS = {
    "fashion-mnist": _Source(_read_idx, places=(SHIPPED / "fashion-mnist",)),
    "fashion-mnist-full": _Source(
        _read_idx,
        folders=("fashion-mnist",),
        places=(Path("/usr/share/datasets/fashion-mnist"),),
        home="https://github.com/zalandoresearch/fashion-mnist",
        url="https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        files=(
            (
                "train-images-idx3-ubyte.gz",
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            ),
            (
                "train-labels-idx1-ubyte.gz",
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            ),
            (
                "t10k-images-idx3-ubyte.gz",
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            ),
            (
                "t10k-labels-idx1-ubyte.gz",
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            ),
        ),
        hint="apt-get install dataset-fashion-mnist (Debian, Ubuntu)",
    ),
    "mnist": _Source(
        _read_idx,
        folders=("mnist",),
        home="http://yann.lecun.com/exdb/mnist/",
        url="https://ossci-datasets.s3.amazonaws.com/mnist/",
        files=(
            (
                "train-images-idx3-ubyte.gz",
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            ),
            (
                "train-labels-idx1-ubyte.gz",
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            ),
            (
                "t10k-images-idx3-ubyte.gz",
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            ),
            (
                "t10k-labels-idx1-ubyte.gz",
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            ),
        ),
    ),
    "cifar10": _Source(
        _read_cifar,
        folders=("cifar10", "cifar-10-batches-bin"),
        home="https://www.cs.toronto.edu/~kriz/cifar.html",
        url="https://www.cs.toronto.edu/~kriz/",
        files=(
            (
                "cifar-10-binary.tar.gz",
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            ),
        ),
    ),
    "celeba": _Source(
        _read_celeba,
        folders=("celeba",),
        size=32,
        home="https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html (img_align_celeba.zip, by consent)",
    ),
    "celeba-hq": _Source(
        _read_folder,
        folders=("celeba-hq",),
        size=64,
        home="https://github.com/tkarras/progressive_growing_of_gans (by consent)",
    ),
    "afhq": _Source(
        _read_folder,
        folders=("afhq",),
        size=64,
        home="https://github.com/clovaai/stargan-v2 (by consent)",
    ),
    "afhq-cat": _Source(
        partial(_read_folder, only="cat"),
        folders=("afhq-cat", "afhq-cat-64", "afhq"),
        size=64,
        home="https://github.com/clovaai/stargan-v2 (by consent)",
    ),
    "olivetti": _Source(
        _read_folder,
        folders=("olivetti",),
        home="scikit-learn's fetch_olivetti_faces, saved as PNG files (see the data appendix)",
    ),
    "photos": _Source(_read_photos, size=32),
    "folder": _Source(_read_folder),
}

NAMES = tuple(name for name in _SETS if name != "folder")


def _resolve(name: str) -> Path:
    """The folder NAME:PATH means: PATH in LOCALITY_DATA if it is there, else PATH."""
    path = Path(name.partition(":")[2]).expanduser()
    given = os.environ.get("LOCALITY_DATA")
    for root in ([Path(given).expanduser() / path] if given else []) + [path]:
        if root.is_dir():
            return root
    raise FileNotFoundError(f"{name}: {path} is no folder, expected one")


def _on_this_machine(name: str) -> Path | None:
    source = _SETS[name]
    given = os.environ.get("LOCALITY_DATA")
    candidates = [Path(given).expanduser() / folder for folder in source.folders] if given else []
    candidates += source.places
    if source.files:
        candidates.append(_cache() / name)
    return next((root for root in candidates if root.is_dir()), None)


def _cache() -> Path:
    """LOCALITY_CACHE, or the operating system's folder for caches."""
    return Path(os.environ.get("LOCALITY_CACHE") or pooch.os_cache("locality")).expanduser()


def _download(name: str) -> Path:
    """Fetch all files of a set into the cache. The set's folder appears there complete or not at
    all: the files are fetched and checked in a temporary folder, which is then renamed."""
    source, target = _SETS[name], _cache() / name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".part-") as part:
            folder = Path(part) / name
            for file, sha256 in source.files:
                pooch.retrieve(
                    source.url + file,
                    known_hash=f"sha256:{sha256}",
                    fname=file,
                    path=folder,
                    progressbar=True,
                )
                if file.endswith(".tar.gz"):
                    with tarfile.open(folder / file) as archive:
                        archive.extractall(folder, filter="data")
                    (folder / file).unlink()
            folder.rename(target)
    except requests.exceptions.RequestException as error:
        raise FileNotFoundError(f"{_how_to_get(name)}\nThe download failed: {error}") from error
    except ValueError as error:  # pooch: the SHA-256 differs
        raise ValueError(
            f"{name}: wrong checksum of a file from {source.url}, nothing was kept: {error}"
        ) from error
    except OSError as error:
        if target.is_dir():  # another process, of a distributed training perhaps, was faster
            return target
        raise OSError(
            f"cannot write {name} to the cache {target.parent} ({error}); expected a writable "
            "folder with enough space, set LOCALITY_CACHE to one"
        ) from error
    return target


def _how_to_get(name: str) -> str:
    source = _SETS[name]
    given = os.environ.get("LOCALITY_DATA")
    state = f"is {given!r}" if given else "is not set"
    if given and not Path(given).expanduser().is_dir():
        state += f", no folder as seen from {Path.cwd()}"
    ways = [
        f"put its files into the folder {source.folders[0]} of a folder that the environment "
        f"variable LOCALITY_DATA names (it {state})",
        f"load it from where it is: load('{name}:PATH')",
    ]
    if source.files:
        ways.append(f"connect to the network: load('{name}') downloads it from {source.url}")
    else:
        ways.append(f"ask for it, it is not downloaded for you: {source.home}")
    if source.hint:
        ways.append(source.hint)
    return "\n".join(
        [f"{name} is not on this machine. To get it:"]
        + [f"  {number}. {way}" for number, way in enumerate(ways, start=1)]
    )
