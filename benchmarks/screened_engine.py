"""The screened local denoiser against the exact one and the literal formula: time and error.

Eight images in the ten official steps on Fashion-MNIST, all 60,000 training images where they are
found, else the shipped 10,000. At every step of the exact trajectory the methods denoise the same
noisy images one after the other, five times; what counts is the process's CPU time, the least of
five, because other work on the machine disturbs them. The literal formula
(``local_engine.literal``) runs on the first 10,240 images only, and its time is scaled up to all of
them: it handles batches of 512, all at one cost. The exact denoiser runs with its usual tolerance,
and with one of 1e-3 ("rounded"). At last the screened denoiser samples on its own, and its images
are compared with the exact ones.

    OMP_NUM_THREADS=1 python benchmarks/screened_engine.py [--thresholds 0.02 0.005] [--output FILE]
"""

import argparse
import json
import time
from pathlib import Path

from local_engine import literal, machine
from torch import Tensor

from locality.data import ImageSet, load
from locality.denoisers import LocalDenoiser, ScreenedLocalDenoiser, masks
from locality.metrics import r2
from locality.sampling import ddim, initial_noise
from locality.schedule import ddpm_sigmas
from locality.stats import PCA

RESULTS = Path(__file__).parent / "results" / "screened_engine.json"
ROUNDED = 1e-3  # tolerance of the exact denoiser with fewer digits
FRACTION = 10_240  # images for the literal formula: twenty batches of 512


def training_set() -> ImageSet:
    """All 60,000 images where this machine has them or can fetch them, else the shipped 10,000."""
    try:
        return load("fashion-mnist-full")
    except FileNotFoundError:
        return load("fashion-mnist")


def compare(
    data: ImageSet,
    pca: PCA,
    threshold: float,
    samples: int,
    *,
    fraction: int = FRACTION,
    repeats: int = 5,
    keep: int = 1000,
) -> dict:
    """Every method at every step of the exact trajectory, then the screened one on its own.

    The literal formula runs on the first ``fraction`` images.
    """
    sigmas, images = ddpm_sigmas(10), data.images
    known = {float(s): masks.pca(pca, float(s), threshold) for s in sigmas}
    exact = LocalDenoiser(images, known.get)
    screened = ScreenedLocalDenoiser(images, known.get, keep=keep)
    rounded_off = LocalDenoiser(images, known.get, tolerance=ROUNDED)
    noise = initial_noise(samples, data.shape, sigma=sigmas[0].item())
    share = min(fraction, len(images)) / len(images)
    rows = []

    def watched(x: Tensor, sigma: float) -> Tensor:
        row, answers = {"sigma": round(sigma, 4)}, {}
        methods = {
            "exact": lambda: exact(x, sigma),
            "rounded": lambda: rounded_off(x, sigma),
            "screened": lambda: screened(x, sigma),
            "with_bound": lambda: screened.denoise_with_bound(x, sigma),
            "literal": lambda: literal(x, sigma, images[:fraction], known[sigma]),
        }
        for name, method in [*methods.items()] * repeats:
            start = time.process_time()
            answers[name] = method()
            spent = time.process_time() - start
            row[f"cpu_{name}"] = min(spent, row.get(f"cpu_{name}", spent))
        row["cpu_literal"] /= share
        wrong = (answers["screened"] - answers["exact"]).flatten(1)
        found = answers["with_bound"]
        off = answers["rounded"] - answers["exact"]
        row["largest_error_rounded"] = off.abs().max().item()
        row["largest_error"] = wrong.abs().max().item()
        row["rms_error"] = wrong.square().mean().sqrt().item()
        row["rms_estimate"] = found.estimate.square().mean().sqrt().item()
        row["error_95"] = wrong.abs().quantile(0.95, dim=1).tolist()
        row["bound_95"] = found.bound.tolist()
        row["share_within"] = (wrong.abs() <= found.bound[:, None]).float().mean(1).tolist()
        rows.append(row)
        print(threshold, *(f"{k} {v:.3f}" for k, v in row.items() if isinstance(v, float)))
        return answers["exact"]

    *_, reference = ddim(watched, noise, sigmas)
    *_, own = ddim(screened, noise, sigmas)
    scores = r2(own.x0, reference.x0)
    sums = {
        name: sum(row[f"cpu_{name}"] for row in rows)
        for name in ("literal", "exact", "rounded", "screened", "with_bound")
    }
    return {
        "steps": rows,
        "cpu_seconds": sums,
        "literal_over": {name: sums["literal"] / sums[name] for name in sums},
        "final_r2": scores.mean().item(),
        "final_r2_lowest": scores.min().item(),
        "final_largest_error": (own.x0 - reference.x0).abs().max().item(),
    }


def rounded(value: object) -> object:
    """Floats to five digits, everywhere in a report."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def main() -> None:
    """Compare the methods at every threshold and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.02, 0.005])
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    data = training_set()
    pca = PCA.fit(data)
    report = {
        "training_images": len(data),
        "samples": args.samples,
        "literal_measured_on": min(FRACTION, len(data)),
        "machine": machine(),
        "thresholds": {},
    }
    for threshold in args.thresholds:
        found = compare(data, pca, threshold, args.samples)
        report["thresholds"][str(threshold)] = found
        print({k: v for k, v in found.items() if k != "steps"}, flush=True)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(rounded(report), indent=1) + "\n")


if __name__ == "__main__":
    main()
