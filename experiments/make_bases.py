"""Computes the principal components that ship for the data sets whose images cannot be shipped.

For each set: the mean, all eigenvalues and the leading eigenvectors (float16, safetensors), and a
card (JSON) that says from which images they come and how well the truncated basis reproduces the
Wiener filter of the complete one. It needs the images (see the data appendix); sets that are not on
this machine are skipped. Nothing is random.

    LOCALITY_DATA=PATH python experiments/make_bases.py [NAME ...]
"""

import argparse
import hashlib
import json
from pathlib import Path

import torch

from locality import data
from locality.data import ImageSet
from locality.schedule import ddpm_sigmas
from locality.stats import BASES, PCA

# name of the basis: (name for `load`, its options, eigenvectors kept). The numbers of eigenvectors
# share out 6 MB so that the filter's rows err least where the book shows them (the cards say by how
# much): RGB sets need more than grey ones, faces more than CIFAR-10.
RECIPES = {
    "celeba": ("celeba", {"size": 32}, 300),
    "celeba-gray": ("celeba", {"size": 32, "gray": True}, 240),
    "afhq-cat": ("afhq-cat", {"size": 32}, 240),
    "cifar10": ("cifar10:cifar10-lossless-4k", {}, 130),
    "cifar10-gray": ("cifar10", {"gray": True}, 300),
    "mnist": ("mnist", {}, 200),
    "olivetti": ("olivetti", {"size": 32}, 160),
}
NOTES = {
    "cifar10": "4,000 bit-exact images; the last ten of every hundred are held out",
    "cifar10-gray": "a copy of 20,000 training images whose chroma was damaged by JPEG and whose "
    "luma is nearly intact; the last ten of every hundred are held out",
    "celeba": "the first 10,000 aligned faces at 89x109, central 74x74; the last ten of every "
    "hundred are held out",
    "afhq-cat": "5,153 cat faces at 64x64; the last ten of every hundred are held out",
    "mnist": "the official 60,000 training images",
    "olivetti": "400 faces of 40 people; persons 10, 20, 30 and 40 are held out. The covariance of "
    "360 images has 359 components that are not zero",
}


def filter_error(complete: PCA, kept: PCA, sigma: float) -> dict[str, float]:
    """How far the rows of the Wiener filter move when only `kept`'s eigenvectors are used.

    Over 128 evenly spaced output pixels m, without those whose row is shorter than a thousandth of
    the longest: the median of |row' - row| / |row|, and the largest entry of |row' - row| over the
    largest of |row|.
    """
    pixels = torch.arange(128) * len(complete.mean) // 128
    exact, approximate = (pca.wiener_rows(sigma, pixels) for pca in (complete, kept))
    norms, difference = exact.norm(dim=1), approximate - exact
    rows = norms > 1e-3 * norms.max()
    relative = difference.norm(dim=1)[rows] / norms[rows]
    return {
        "row_median": round(relative.median().item(), 4),
        "entry_max": round((difference.abs().max() / exact.abs().max()).item(), 4),
    }


def card(name: str, images: ImageSet, complete: PCA, kept: PCA, path: Path) -> dict:
    """What a reader must know about the file at `path`."""
    source, options, count = RECIPES[name]
    pixels = ((images.images + 1) * 127.5).round().to(torch.uint8)
    variance = complete.eigenvalues[:count].sum() / complete.eigenvalues.sum()
    return {
        "name": name,
        "data": source.partition(":")[0],
        "note": NOTES[name.removesuffix("-gray") if name not in NOTES else name],
        "split": "train",
        "images": len(images),
        "shape": images.shape,
        "options": options,
        "images_sha256": hashlib.sha256(pixels.numpy().tobytes()).hexdigest(),
        "seed": None,
        "eigenvectors": count,
        "dtype": "float16",
        "variance_kept": round(variance.item(), 5),
        "wiener_error": {
            f"{sigma:.3f}": filter_error(complete, kept, sigma)
            for sigma in ddpm_sigmas(10).tolist()
        },
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def main() -> None:
    """Make the named bases, by default all whose images are on this machine."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RECIPES)}")
    names = parser.parse_args().names or list(RECIPES)
    BASES.mkdir(exist_ok=True)
    for name in names:
        source, options, count = RECIPES[name]
        try:
            images = data.load(source, **options)
        except FileNotFoundError as error:
            print(f"{name}: skipped. {error}")
            continue
        complete = PCA.fit(images)
        path = BASES / f"{name}.safetensors"
        complete.truncate(count).save(path, dtype=torch.float16)
        about = card(name, images, complete, PCA.load(path), path)
        path.with_suffix(".json").write_text(json.dumps(about, indent=2) + "\n")
        print(f"{name}: {about['images']} images, {about['bytes'] / 1e6:.2f} MB", flush=True)
        for sigma, error in about["wiener_error"].items():
            print(f"  sigma {sigma}: rows {error['row_median']}, entries {error['entry_max']}")


if __name__ == "__main__":
    main()
