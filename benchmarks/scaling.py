"""How time and memory of the local denoiser grow, and what colour costs.

Growth: one call at sigma = 1.24, threshold .02, on Fashion-MNIST, for several numbers of training
images, of pixels and of queries; each in a process of its own, so that its peak memory can be told
apart. The literal formula (``local_engine.literal``) stands beside the library.

Colour: eight images in the ten official steps with CIFAR-10 (3,600 training images) and CelebA
(9,000) at 32 x 32 in colour, thresholds .02 and .005, compared as in ``screened_engine``: the same
times, errors and bounds, with the literal formula on the first 1,024 images. They are read from
LOCALITY_DATA, CIFAR-10 from its folder ``cifar10-lossless-4k``: copies that were once stored as
JPEG have lost their colours. A set that is not found is left out.
The screened denoiser draws more images than it does by default.

What counts everywhere is CPU time, which other work on the machine disturbs less.

    OMP_NUM_THREADS=1 python benchmarks/scaling.py [--parts growth colour] [--output FILE]

A part that is not measured stays as it is in the file.
"""

import argparse
import ctypes
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from local_engine import literal, machine, peak_memory
from screened_engine import compare, rounded

from locality.data import load
from locality.denoisers import LocalDenoiser, masks
from locality.stats import PCA

RESULTS = Path(__file__).parent / "results" / "scaling.json"
PARTS = ("growth", "colour")
SIGMA, THRESHOLDS = 1.24, (0.02, 0.005)  # the first threshold for growth, both for colour
STANDARD = {"images": 8000, "side": 28, "queries": 8}
GROWTH = {
    "images": (2000, 4000, 8000),
    "side": (14, 20, 28),
    "queries": (4, 8, 16, 32),
}
COLOUR = ("cifar10:cifar10-lossless-4k", "celeba")
REPEATS, LONG = 5, 10.0  # growth: at least so many calls, and seconds of them
COLOUR_REPEATS = 2
COLOUR_SAMPLES, COLOUR_FRACTION = 8, 1024
COLOUR_KEEP = 1500  # images drawn, about: the 1,000 that serve in grey leave faces below r2 .995


def forget_peak() -> None:
    """Let the peak memory begin anew, so that loading and PCA don't count; on Linux only.

    What they have freed goes back to the system first: the next arrays would take it unseen.
    """
    control = Path("/proc/self/clear_refs")
    if control.is_file():
        ctypes.CDLL(None).malloc_trim(0)
        control.write_text("5")


def measure(method: str, name: str, threshold: float, images: int, side: int, queries: int) -> dict:
    """CPU time of one call, the fastest of a few seconds of them, and memory, in this process."""
    data = load(name, n=images, size=side)
    pca = PCA.fit(data)
    mask = masks.pca(pca, SIGMA, threshold)
    noise = torch.randn(queries, *data.shape, generator=torch.Generator().manual_seed(0))
    x = data.images[:queries] + SIGMA * noise
    local = LocalDenoiser(data, lambda _: mask)
    call = {
        "local": lambda: local(x, SIGMA),
        "literal": lambda: literal(x, SIGMA, data.images, mask),
    }[method]
    forget_peak()
    before, seconds = peak_memory(), []
    while len(seconds) < REPEATS or sum(seconds) < LONG:
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return {
        "cpu_seconds": min(seconds),
        "peak_mb": peak_memory() - before,
        "pixels": data.images[0].numel(),
    }


def in_a_process(method: str, name: str, threshold: float, sizes: dict[str, int]) -> dict:
    """`measure` in a process of its own."""
    task = json.dumps({"method": method, "name": name, "threshold": threshold, **sizes})
    command = [sys.executable, __file__, "--task", task]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = json.loads(output)
    print(task, found, flush=True)
    return found


def growth() -> list[dict]:
    """One row for every size that differs from the standard in one respect, and method."""
    rows = []
    for what, values in GROWTH.items():
        for value in values:
            sizes = STANDARD | {what: value}
            for method in ("local", "literal"):
                found = in_a_process(method, "fashion-mnist", THRESHOLDS[0], sizes)
                rows.append({"varies": what, "method": method, **sizes, **found})
    return rows


def colour() -> dict[str, dict]:
    """The comparison of `screened_engine`, and the memory of one exact call, for each set found."""
    report = {}
    for name in COLOUR:
        try:
            data = load(name, size=32)
        except FileNotFoundError as error:
            print(f"{name} is left out: {error}")
            continue
        sizes = {"images": len(data), "side": 32, "queries": COLOUR_SAMPLES}
        pca, rows = PCA.fit(data), {}
        for threshold in THRESHOLDS:
            once = in_a_process("local", name, threshold, sizes)
            found = compare(
                data,
                pca,
                threshold,
                COLOUR_SAMPLES,
                fraction=COLOUR_FRACTION,
                repeats=COLOUR_REPEATS,
                keep=COLOUR_KEEP,
            )
            rows[str(threshold)] = {"peak_mb": once["peak_mb"], **found}
            print(name, {k: v for k, v in found.items() if k != "steps"}, flush=True)
        report[name.partition(":")[0]] = {**sizes, "thresholds": rows}
    return report


def main() -> None:
    """Measure everything and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--task", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        print(json.dumps(measure(**args.task)))
        return
    report = json.loads(args.output.read_text()) if args.output.exists() else {}
    if "growth" in args.parts:
        report |= {"sigma": SIGMA, "threshold": THRESHOLDS[0], "machine": machine()}
        report["growth"] = growth()
    if "colour" in args.parts:
        report |= {"colour_literal_measured_on": COLOUR_FRACTION, "colour_keep": COLOUR_KEEP}
        report |= {"colour_machine": machine(), "colour": colour()}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(rounded(report), indent=1) + "\n")


if __name__ == "__main__":
    main()
