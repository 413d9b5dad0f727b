"""Makes the Fashion-MNIST subset that ships with the package, from the official idx files.

It is the first 10,000 images of the training file and the first 2,000 of the test file, in order,
with their labels, in the same idx.gz format, and a list of SHA-256 sums beside them:

    python experiments/make_subset.py --source /usr/share/datasets/fashion-mnist
"""

import argparse
import gzip
import hashlib
import struct
from pathlib import Path

import locality.data

COUNTS = {"train": 10_000, "t10k": 2_000}
FILES = {"images-idx3": 3, "labels-idx1": 1}  # kind of file -> dimensions in its header


def first_items(path: Path, count: int, ndim: int) -> bytes:
    """An idx file, decompressed, cut to its first `count` items."""
    with gzip.open(path) as file:
        magic, total, *sides = struct.unpack(f">{1 + ndim}I", file.read(4 * (1 + ndim)))
        if magic != 0x0800 + ndim or total < count:
            raise ValueError(
                f"{path}: magic {magic}, {total} items; expected {0x0800 + ndim}, {count}"
            )
        size = count
        for side in sides:
            size *= side
        return struct.pack(f">{1 + ndim}I", magic, count, *sides) + file.read(size)


def main() -> None:
    """Write the four files and checksums.sha256."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--source", type=Path, default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--target", type=Path, default=locality.data.SHIPPED / "fashion-mnist")
    arguments = parser.parse_args()
    arguments.target.mkdir(parents=True, exist_ok=True)
    sums = []
    for prefix, count in COUNTS.items():
        for kind, ndim in FILES.items():
            name = f"{prefix}-{kind}-ubyte.gz"
            content = first_items(arguments.source / name, count, ndim)
            packed = gzip.compress(content, 9, mtime=0)  # no time stamp: the same bytes every time
            (arguments.target / name).write_bytes(packed)
            sums.append(f"{hashlib.sha256(packed).hexdigest()}  {name}\n")
            print(f"{name}: {count} items, {len(packed) / 1e6:.2f} MB")
    (arguments.target / "checksums.sha256").write_text("".join(sums))


if __name__ == "__main__":
    main()
