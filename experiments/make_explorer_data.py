"""Writes the data of the sensitivity explorer: the statistics its page computes Wiener rows from.

For each set a classic script, book/_extra/explorer/NAME.js: mean image, all eigenvalues, the
leading eigenvectors in 8 and 4 bits, and the effective radius of every pixel's field at 13 noise
levels; and for readers without JavaScript one picture, explorer.png. The figure in which a reader
hides a shape of their own has the data of Fashion-MNIST, and its own picture, shaper.png.
Classic scripts, because a page opened as a file may load nothing else. Sets whose images are not
on this machine are skipped (see the data appendix). Nothing is random.

    LOCALITY_DATA=PATH python experiments/make_explorer_data.py [NAME ...]
"""

import argparse
import base64
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from locality import data
from locality.book import plots
from locality.shapes import letter_w
from locality.stats import PCA

OUT = Path(__file__).resolve().parents[1] / "book" / "_extra" / "explorer"
# file: (name for `load`, its options, eigenvectors kept, the pixel chosen at first, what it is).
# Fashion-MNIST keeps all its eigenvectors: its corners are nearly always black, so that even a
# small common share of missing ones would outshine their rows.
SETS = {
    "celeba": ("celeba", {"size": 32, "gray": True}, 512, (15, 11), "CelebA faces"),
    "fashion-mnist": ("fashion-mnist", {}, 784, (14, 5), "Fashion-MNIST images"),
    "photos": ("photos", {"size": 32, "gray": True}, 512, (15, 11), "patches of photographs"),
    "cifar10": ("cifar10", {"gray": True}, 512, (15, 11), "CIFAR-10 images"),
    "afhq-cat": ("afhq-cat", {"size": 32, "gray": True}, 512, (16, 10), "AFHQ cat faces"),
}
BLOCK = 64  # eigenvectors that share one scale a pixel
FINE = 128  # so many leading eigenvectors are kept in 8 bits, the others in 4
CURVE = [10 ** (2 - i / 3) for i in range(13)]  # noise levels of the radii, 100 to 0.01
RADIUS_STEP = 1 / 9  # pixels; a radius is one byte, and no field of 32 x 32 is wider than 27
CLIP = 3.0  # 4 bits reach to so many root mean squares; beyond, values are clipped
LEVELS = (100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)  # where the error is reported
PICTURE = {"celeba": "faces", "fashion-mnist": "Fashion-MNIST", "photos": "photographs"}
PIXEL, SIGMAS = (15, 11), torch.tensor([10.0, 3.0, 1.0, 0.3, 0.1])
# And in the picture of the W: a pixel on it, the noise levels and the amplitudes of chapter 8.
SHAPE_PIXEL, SHAPE_DEVIATION = (7, 6), 0.5
SHAPE_SIGMAS = torch.tensor([12.0, 3.44, 2.04, 1.24, 0.724, 0.342])


def as_text(values: np.ndarray) -> str:
    """Bytes as base64."""
    return base64.b64encode(values.tobytes()).decode("ascii")


def as_bfloat16(values: Tensor) -> np.ndarray:
    """The upper halves of float32 numbers, which a page widens by a shift."""
    return values.contiguous().to(torch.bfloat16).view(torch.int16).numpy().astype("<i2")


def encode_block(vectors: Tensor, bits: int) -> dict:
    """Eigenvectors (D, b) as integers times a scale a pixel times a scale a column.

    The scale a pixel keeps what little the eigenvectors hold of a pixel that hardly varies.
    4-bit numbers are packed in pairs along a row, the first in the low half, each plus 8.
    """
    top = 2 ** (bits - 1) - 1
    rows = vectors.square().mean(1, keepdim=True).sqrt().clamp_min(1e-9).bfloat16().float()
    scaled = vectors / rows
    reach = scaled.abs().amax(0)
    if bits == 4:
        reach = torch.minimum(reach, CLIP * scaled.square().mean(0).sqrt())
    columns = reach / top
    whole = (scaled / columns).round().clamp(-top, top).to(torch.int8).numpy()
    if bits == 4:
        nibbles = (whole + 8).astype(np.uint8)
        whole = nibbles[:, 0::2] | nibbles[:, 1::2] << 4
    return {
        "bits": bits,
        "columns": as_text(columns.numpy().astype("<f4")),
        "rows": as_text(as_bfloat16(rows[:, 0])),
        "values": as_text(whole),
    }


def radii(pca: PCA) -> Tensor:
    """Effective radius of every pixel's field at the levels of CURVE, (D, 13), in pixels.

    The page cannot find it in rows of rounded eigenvectors: a hundredth of a field's energy, spread
    over the image by rounding, adds a pixel or two to a radius that should be small.
    """
    _, height, width = pca.shape
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).double()
    distance2 = torch.cdist(places, places).square()
    found = []
    for sigma in CURVE:
        energy = pca.wiener_matrix(sigma).double().square()
        found.append(((energy * distance2).sum(1) / energy.sum(1)).sqrt())
    return torch.stack(found, 1)


def encode(pca: PCA, count: int, *, pixel: tuple[int, int], about: str) -> str:
    """The classic script that hands statistics to the page through its own element.

    Args:
        pca: complete statistics of grey images.
        count: how many eigenvectors to keep.
        pixel: (row, column) chosen at first.
        about: what the images are.
    """
    starts = range(0, count, BLOCK)
    parts = [pca.eigenvectors[:, i : min(i + BLOCK, count)] for i in starts]
    basis = {
        "about": about,
        "shape": pca.shape,
        "pixel": pixel,
        "mean": as_text(as_bfloat16(pca.mean)),
        "radii": as_text((radii(pca) / RADIUS_STEP).round().to(torch.uint8).numpy()),
        "eigenvalues": as_text(pca.eigenvalues.numpy().astype("<f4")),
        "blocks": [
            encode_block(part, 8 if start < FINE else 4)
            for start, part in zip(starts, parts, strict=True)
        ],
    }
    return f"document.currentScript.basis = {json.dumps(basis, indent=1)};\n"


def decode(script: str) -> PCA:
    """What the page makes of a script: the same statistics with rounded eigenvectors."""
    basis = json.loads(script.partition("=")[2].rstrip(";\n"))

    def numbers(text: str, dtype: str) -> np.ndarray:
        return np.frombuffer(base64.b64decode(text), dtype)

    def widened(text: str) -> np.ndarray:
        return (numbers(text, "<u2").astype(np.uint32) << 16).view(np.float32)

    blocks, side = [], len(numbers(basis["eigenvalues"], "<f4"))
    for block in basis["blocks"]:
        whole = numbers(block["values"], "u1" if block["bits"] == 4 else "i1").reshape(side, -1)
        if block["bits"] == 4:
            whole = np.stack([whole & 15, whole >> 4], -1).reshape(side, -1).astype(np.int8) - 8
        blocks.append(whole * widened(block["rows"])[:, None] * numbers(block["columns"], "<f4"))
    return PCA(
        mean=torch.from_numpy(widened(basis["mean"])),
        eigenvalues=torch.from_numpy(numbers(basis["eigenvalues"], "<f4").copy()),
        eigenvectors=torch.from_numpy(np.concatenate(blocks, 1).astype(np.float32)),
        shape=tuple(basis["shape"]),
        count=0,
    )


def page_matrix(rounded: PCA, sigma: float) -> Tensor:
    """The Wiener matrix as the page computes it, row by row, (D, D).

    Where eigenvectors are missing this is `PCA.wiener_matrix`. Where all are there, U U^T = 1, so
    W = r U U^T + U (s - r) U^T for any r a row, and off the diagonal the first term is zero. The
    page takes as r the mean of s over the components in 4 bits, weighted as they are in that pixel:
    the less is left in the second term, the less the rounding of U matters.
    """
    count = rounded.eigenvectors.shape[1]
    if count < len(rounded.mean):
        return rounded.wiener_matrix(sigma)
    shrinkage, weights = rounded.shrinkage(sigma), rounded.eigenvectors.square()
    share = (weights[:, FINE:] @ shrinkage[FINE:]) / weights[:, FINE:].sum(1)
    rest = (rounded.eigenvectors * (shrinkage - share[:, None])) @ rounded.eigenvectors.T
    return rest + (share * weights.sum(1)).diag()


def row_errors(exact: PCA, rounded: PCA, sigma: float) -> Tensor:
    """Largest |row' - row| over the largest |row|, of each row of the Wiener matrix, (D,)."""
    row = exact.wiener_matrix(sigma)
    return (page_matrix(rounded, sigma) - row).abs().amax(1) / row.abs().amax(1)


def draw(statistics: dict[str, PCA]) -> None:
    """The picture that stands in for the explorer: fields of one pixel at five noise levels."""
    plots.use_style()
    panels = {}
    for name, label in PICTURE.items():
        pca = statistics[name]
        _, height, width = pca.shape
        flat = [PIXEL[0] * width + PIXEL[1]]
        panels[label] = [pca.wiener_rows(s, flat).view(height, width) for s in SIGMAS.tolist()]
    title = "How far a pixel looks is set by the noise, where it looks by the data"
    figure = plots.fields(
        panels, pixel=PIXEL, columns=plots.sigma_labels(SIGMAS), title=title, scale=1.15
    )
    figure.savefig(OUT / "explorer.png", dpi=130, metadata={"Software": None})
    plt.close(figure)


def draw_shape(pca: PCA) -> None:
    """The picture that stands in for the reader's own shape: fields without and with a W."""
    plots.use_style()
    flat = [SHAPE_PIXEL[0] * 28 + SHAPE_PIXEL[1]]
    panels = {
        f"{label} the W": [
            pca.wiener_rows_with(s, flat, letter_w(28, 28).flatten(), variance=variance).view(
                28, 28
            )
            for s in SHAPE_SIGMAS.tolist()
        ]
        for label, variance in {"without": 0.0, "with": SHAPE_DEVIATION**2}.items()
    }
    figure = plots.fields(
        panels,
        pixel=SHAPE_PIXEL,
        columns=plots.sigma_labels(SHAPE_SIGMAS),
        title="A W in the images is a W in the field",
        scale=1.15,
    )
    figure.savefig(OUT / "shaper.png", dpi=130, metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    """Write the files of the named sets, by default of all whose images are on this machine."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SETS)}")
    names = parser.parse_args().names or list(SETS)
    OUT.mkdir(parents=True, exist_ok=True)
    statistics = {}
    for name in names:
        source, options, count, pixel, what = SETS[name]
        if not data.available(source):
            print(f"{name}: skipped, its images are not on this machine")
            continue
        images = data.load(source, **options)
        pca = PCA.fit(images)
        statistics[name] = pca
        side = "×".join(str(s) for s in pca.shape[1:])
        about = f"{len(images):,} {what}, {side}, grey"
        script = encode(pca, count, pixel=pixel, about=about)
        (OUT / f"{name}.js").write_text(script, encoding="utf-8")
        print(f"{name}: {about}, {len(script) / 1e6:.2f} MB", flush=True)
        spread = pca.covariance().diagonal().clamp_min(0).sqrt()
        for sigma in LEVELS:
            errors = row_errors(pca, decode(script), sigma)[spread > 0.1]
            low, high = errors.median(), errors.quantile(0.99)
            print(f"  sigma {sigma:g}: median {low:.4f}, 99th percentile {high:.4f}")
    if statistics.keys() >= PICTURE.keys():
        draw(statistics)
    if "fashion-mnist" in statistics:
        draw_shape(statistics["fashion-mnist"])


if __name__ == "__main__":
    main()
