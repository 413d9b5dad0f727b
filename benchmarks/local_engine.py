"""The local denoiser against a literal transcription of its formula: time, memory, same answer.

Sixteen images in the ten official steps, from the shipped 10,000 training images. Each method runs
in a process of its own, so that its peak memory can be told apart, and in turn with the others
several times, of which the fastest counts, in CPU time: other work on the machine disturbs all
alike. The transcription takes batches of 512 training images, forms all differences and contracts
them with the whole mask, and joins the batches exactly; it denoises the same noisy images as the
library did, so that the answers can be compared step by step. The optimal denoiser and the Wiener
filter are timed beside them.

    OMP_NUM_THREADS=1 python benchmarks/local_engine.py [--samples 16] [--rounds 3] [--output FILE]
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from locality.data import load
from locality.denoisers import LocalDenoiser, OptimalDenoiser, WienerDenoiser, masks
from locality.sampling import ddim, initial_noise
from locality.schedule import ddpm_sigmas
from locality.stats import PCA

THRESHOLDS = {"0.02": 0.02, "0.005": 0.005}
METHODS = ["wiener", "optimal"]
METHODS += [f"{kind} {threshold}" for threshold in THRESHOLDS for kind in ("local", "literal")]
RESULTS = Path(__file__).parent / "results" / "local_engine.json"


def peak_memory() -> float:
    """The largest resident size of this process so far, in MB."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux, where getrusage would start from the parent's peak
        line = next(row for row in status.read_text().splitlines() if row.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def literal(x: Tensor, sigma: float, images: Tensor, mask: Tensor, *, batch: int = 512) -> Tensor:
    """The paper's formula as one would write it down, streaming over batches exactly."""
    query, flat = x.flatten(1), images.flatten(1)
    peak, total, weighted = torch.tensor(float("-inf")), 0, 0
    for part in flat.split(batch):
        delta = (query[:, None] - part) ** 2  # (B, batch, D)
        logits = -torch.einsum("bkn,mn->bkm", delta, mask) / (2 * sigma**2)
        new = torch.maximum(peak, logits.amax(1))  # (B, D)
        weights = (logits - new[:, None]).exp()
        old = (peak - new).exp()
        total = total * old + weights.sum(1)
        weighted = weighted * old + torch.einsum("bkm,km->bm", weights, part)
        peak = new
    return (weighted / total).view_as(x)


def measure(method: str, samples: int, trajectory: Path) -> dict:
    """Run one method in this process, on the trajectory that the library left if it is literal."""
    bare = peak_memory()
    images = load("fashion-mnist").images
    data = images.numel() * images.element_size() / 1e6
    kind, _, threshold = method.partition(" ")
    start = time.perf_counter()
    pca = PCA.fit(images)
    fit = time.perf_counter() - start

    def mask(sigma: float) -> Tensor:
        return masks.pca(pca, sigma, THRESHOLDS[threshold])

    sigmas, seconds, steps = ddpm_sigmas(10), [], []
    cpu = time.process_time()
    start = time.perf_counter()
    difference = 0.0
    if kind == "literal":
        known = load_file(trajectory)
        for i, sigma in enumerate(sigmas.tolist()):
            answer = literal(known["x"][i], sigma, images, mask(sigma)).clamp(-1, 1)
            difference = max(difference, (answer - known["x0"][i]).abs().max().item())
            seconds.append(time.perf_counter() - start)
            start = time.perf_counter()
    else:
        denoiser = {
            "wiener": lambda: WienerDenoiser(pca),
            "optimal": lambda: OptimalDenoiser(images),
            "local": lambda: LocalDenoiser(images, mask),
        }[kind]()
        noise = initial_noise(samples, images.shape[1:], sigma=sigmas[0].item())
        for step in ddim(denoiser, noise, sigmas):
            steps.append(step)
            seconds.append(time.perf_counter() - start)
            start = time.perf_counter()
        found = {name: torch.stack([getattr(s, name) for s in steps]) for name in ("x", "x0")}
        save_file(found, trajectory)
    result = {
        "seconds": round(sum(seconds), 3),
        "seconds_a_step": [round(s, 3) for s in seconds],
        "cpu_seconds": round(time.process_time() - cpu, 3),
        "seconds_pca": round(fit, 3),
        "peak_mb_beyond_torch_and_data": round(peak_memory() - bare - data, 1),
    }
    if kind == "literal":
        result["largest_difference_to_the_library"] = difference
    return result


def machine() -> dict:
    """What the numbers were measured on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def main() -> None:
    """Run every method in a process of its own and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--method", choices=METHODS, help="run this one here and print its result")
    parser.add_argument("--trajectory", type=Path)
    args = parser.parse_args()
    if args.method:
        print(json.dumps(measure(args.method, args.samples, args.trajectory)))
        return
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        trajectory = Path(folder) / "trajectory.safetensors"
        for method in METHODS * args.rounds:
            command = [sys.executable, __file__, "--method", method, "--samples", str(args.samples)]
            command += ["--trajectory", str(trajectory)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            result = json.loads(output)
            memory = result["peak_mb_beyond_torch_and_data"]
            print(f"{method:14} {result['cpu_seconds']:8.2f} s {memory:8.0f} MB", flush=True)
            known = results.setdefault(method, result)
            results[method] = min(known, result, key=lambda r: r["cpu_seconds"])
    ratios = {}
    for threshold in THRESHOLDS:
        ours, theirs = results[f"local {threshold}"], results[f"literal {threshold}"]
        ratios[threshold] = round(theirs["cpu_seconds"] / ours["cpu_seconds"], 2)
        difference = theirs["largest_difference_to_the_library"]
        print(
            f"threshold {threshold}: the literal formula takes {ratios[threshold]} times as long, "
            f"largest difference {difference:.1e}"
        )
        assert difference < 1e-4, f"the answers differ by {difference:.1e}, allowed 1e-4"
    report = {
        "training_images": 10_000,
        "samples": args.samples,
        "rounds": args.rounds,
        "sigmas": [round(s, 4) for s in ddpm_sigmas(10).tolist()],
        "machine": machine(),
        "methods": results,
        "literal_over_library": ratios,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
