"""The screened equivariant machine on all 10,000 shipped images: time, and error of every kind.

Boundary-broken, with the published sides, in the ten official steps. Three parts, each written as
soon as it is there:

* ``steps``: sixteen samples, kept as ``images`` (see ``scoreboard.samples``). At every step the
  CPU time, cells included, and the errors against the exact answer at 59 random pixels of the
  first four images on the way.
* ``fewer_images``: the exact machine samples the same noises from 300 images, and so does the
  screened one, which keeps and draws the same share of the patches as of 10,000.
* ``all_images``: the exact machine samples the first noises from the 10,000.

What counts is the CPU time of the process on one thread; wall time is that of a machine with other
work.

    OMP_NUM_THREADS=1 python benchmarks/els.py [--samples 16] [--exact 2] [--output FILE]
"""

import argparse
import base64
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from local_engine import machine
from screened_engine import rounded
from torch import Tensor

from locality.data import load
from locality.denoisers import Denoiser, ELSDenoiser, ScreenedELSDenoiser
from locality.denoisers.sides import KAMB_SIDES, KAMB_SIGMAS, by_noise_level
from locality.denoisers.subset import audited
from locality.metrics import r2
from locality.sampling import ddim, initial_noise
from locality.schedule import ddpm_sigmas

RESULTS = Path(__file__).parent / "results" / "els.json"
SIDES = by_noise_level(KAMB_SIGMAS, KAMB_SIDES["fashion-mnist"])
BOUNDARY = "broken"
FEW = 300  # images
AUDITED = 4  # images


def timed(denoiser: Denoiser, rows: list[dict]) -> Callable[[Tensor, float], Tensor]:
    """The denoiser; every call adds its noise level and times to ``rows``."""

    def watched(x: Tensor, sigma: float) -> Tensor:
        cpu, wall = time.process_time(), time.perf_counter()
        answer = denoiser(x, sigma)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        rows.append({"sigma": sigma, "side": SIDES(sigma), "cpu": cpu, "wall": wall})
        print(f"sigma {sigma:.3f}: {cpu:.1f} s of CPU time", flush=True)
        return answer

    return watched


def sample(denoiser: Denoiser, noise: Tensor) -> tuple[list, list[dict]]:
    """The steps of the sampler, and what each took."""
    rows = []
    return list(ddim(timed(denoiser, rows), noise, ddpm_sigmas(10))), rows


def audit(screened: ScreenedELSDenoiser, x: Tensor, sigma: float, answer: Tensor) -> dict:
    """How far ``answer`` is from the exact one, at random pixels of each image."""
    pixels = audited(x[0].numel(), seed=1)
    errors = answer.flatten(1)[:, pixels] - screened.at_pixels(x, sigma, pixels)
    bounds = errors.abs().amax(1)  # one an image
    return {
        "rms_error": errors.square().mean().sqrt().item(),
        "error_95": errors.abs().quantile(0.95).item(),
        "bound_95_median": bounds.quantile(0.5).item(),
        "bound_95_largest": bounds.max().item(),
    }


def agreement(found: Tensor, reference: Tensor) -> dict:
    """What the final samples have in common with the exact machine's."""
    scores = r2(found, reference)
    return {
        "final_r2": scores.mean().item(),
        "final_r2_lowest": scores.min().item(),
        "final_rms_error": (found - reference).square().mean().sqrt().item(),
    }


def main() -> None:
    """Run the three parts and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--exact", type=int, default=2, help="samples of the exact machine")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    images = load("fashion-mnist").images
    noise = initial_noise(args.samples, images.shape[1:], sigma=ddpm_sigmas(10)[0].item(), seed=42)
    screened = ScreenedELSDenoiser(images, SIDES, boundary=BOUNDARY)
    report = {
        "training_images": len(images),
        "samples": args.samples,
        "boundary": BOUNDARY,
        "keep": screened.keep,
        "draw": screened.draw,
        "threads": torch.get_num_threads(),
        "machine": machine(),
    }

    def save() -> None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(rounded(report), indent=1) + "\n")

    steps, rows = sample(screened, noise)
    report["cpu_seconds"] = sum(row["cpu"] for row in rows)
    report["wall_seconds"] = sum(row["wall"] for row in rows)
    report["steps"] = rows
    pixels = ((steps[-1].x0 + 1) * 127.5).round().byte()
    report["images"] = base64.b64encode(pixels.numpy().tobytes()).decode()
    save()

    few = images[:FEW]
    share = FEW / len(images)
    exact, exact_rows = sample(ELSDenoiser(few, SIDES, boundary=BOUNDARY), noise)
    scaled = ScreenedELSDenoiser(
        few,
        SIDES,
        boundary=BOUNDARY,
        keep=int(screened.keep * share),
        draw=int(screened.draw * share),
    )
    found, found_rows = sample(scaled, noise)
    report["fewer_images"] = {
        "training_images": FEW,
        "keep": scaled.keep,
        "draw": scaled.draw,
        "cpu_exact": sum(row["cpu"] for row in exact_rows),
        "cpu_screened": sum(row["cpu"] for row in found_rows),
        **agreement(found[-1].x0, exact[-1].x0),
    }
    print(report["fewer_images"])
    save()

    # From low to high noise: the dictionaries of the last step are still there.
    for row, step in reversed(list(zip(rows, steps, strict=True))):
        x = step.x[:AUDITED]
        row |= audit(screened, x, step.sigma, screened(x, step.sigma))
        print(row, flush=True)
        save()

    if args.exact:
        exact, exact_rows = sample(
            ELSDenoiser(images, SIDES, boundary=BOUNDARY), noise[: args.exact]
        )
        report["all_images"] = {
            "samples": args.exact,
            "cpu_exact_a_sample": sum(row["cpu"] for row in exact_rows) / args.exact,
            "cpu_exact_all_samples": sum(row["cpu"] for row in exact_rows)
            * (args.samples / args.exact),
            **agreement(steps[-1].x0[: args.exact], exact[-1].x0),
        }
        print(report["all_images"])
        save()


if __name__ == "__main__":
    main()
