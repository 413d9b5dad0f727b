"""Images per second of the trainer, setting by setting, and against a well-known open-source UNet.

Each setting trains the laptop's UNet with `locality.training.train` in a process of its own, or in
several. The fastest on this machine is the chosen one; it is compared with plain float32 in one
process with all threads, and with Hugging Face diffusers' `UNet2DModel` of the same widths and
parameter count, trained by the same trainer in the same two settings. diffusers is not among the
book's requirements; its rows are left out when it is not installed (`pip install diffusers`).

Two rates are told: per second, and per second of CPU time, which other programs disturb less.
Beside them stands the bound: the network's arithmetic at the rate of this machine's matrix product,
in float32 on all cores. No setting that computes the same in float32 can pass it.

    python benchmarks/training.py [--steps 20] [--output benchmarks/results/training.json]
"""

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from locality.data import load
from locality.networks import NetworkDenoiser, architecture, build
from locality.training import TrainConfig, train

RESULTS = Path(__file__).parent / "results" / "training.json"
WARMUP = 3  # steps before the clock starts: allocation, kernel selection, compilation
CORES = os.cpu_count()
ALL = {"threads": CORES}
PLAIN = "fp32, all threads"
SETTINGS = {
    PLAIN: ALL,
    "fp32, 1 thread": {"threads": 1},
    "fp32, all threads, channels last": ALL | {"channels_last": True},
    "fp32, all threads, compiled": ALL | {"compile": True},
    f"fp32, {CORES} processes of 1 thread": {"threads": 1, "processes": CORES},
    f"fp32, {CORES} networks at once": {"threads": 1, "copies": CORES},
    f"fp32, {CORES} networks at once, channels last": {
        "threads": 1,
        "copies": CORES,
        "channels_last": True,
    },
    "bf16, all threads": ALL | {"bf16": True},
    "bf16, all threads, channels last": ALL | {"bf16": True, "channels_last": True},
    f"bf16, {CORES} networks at once": {"threads": 1, "copies": CORES, "bf16": True},
    f"bf16, {CORES} networks at once, channels last": {
        "threads": 1,
        "copies": CORES,
        "bf16": True,
        "channels_last": True,
    },
}
RATES = ("images_per_second", "images_per_cpu_second")


class Diffusers(nn.Module):
    """`UNet2DModel` with the widths of the laptop's UNet, called as the book's networks are."""

    def __init__(self):
        super().__init__()
        from diffusers import UNet2DModel

        self.model = UNet2DModel(
            sample_size=28,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(16, 32, 64),
            down_block_types=("DownBlock2D",) * 3,
            up_block_types=("UpBlock2D",) * 3,
            norm_num_groups=8,
            attention_head_dim=64,
        )

    def forward(self, x: Tensor, noise_label: Tensor) -> Tensor:
        """(B, C, H, W) and (B,) to (B, C, H, W)."""
        return self.model(x, noise_label).sample


def measure(setting: dict, *, network: str, steps: int, batch: int) -> dict:
    """Train for a few steps in this process; runs inside the process of one setting."""
    torch.set_num_threads(setting["threads"])
    if "RANK" in os.environ:
        torch.distributed.init_process_group("gloo")
    images = load("fashion-mnist", n=2000).images
    torch.manual_seed(0)
    raw = Diffusers() if network == "diffusers" else build(architecture("unet", (1, 28, 28)))
    if setting.get("channels_last"):
        raw = raw.to(memory_format=torch.channels_last)
    if setting.get("compile"):
        raw.compile()
    denoiser = NetworkDenoiser(raw, sigma_data=0.7)
    config = TrainConfig(steps=WARMUP + steps, batch=batch, bf16=setting.get("bf16", False))
    training = train(denoiser, images, config=config)
    for _ in range(WARMUP):
        next(training)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in training:
        pass
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "parameters": sum(p.numel() for p in raw.parameters()),
        "images_per_second": steps * batch / wall,
        # The ranks of one run share its batch, and take about the same CPU time.
        "images_per_cpu_second": steps * batch / (cpu * setting.get("processes", 1)),
    }


def run(name: str, *, network: str, steps: int, batch: int) -> dict:
    """Measure one setting in a process of its own, in several under torchrun, or in copies."""
    setting, launcher = SETTINGS[name], []
    if count := setting.get("processes"):
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command = [sys.executable, *launcher, __file__, "--setting", name, "--network", network]
    command += ["--steps", str(steps), "--batch", str(batch)]
    environment = os.environ | {"OMP_NUM_THREADS": str(setting["threads"])}
    copies = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(setting.get("copies", 1))
    ]
    outputs = [copy.communicate()[0] for copy in copies]
    if any(copy.returncode for copy in copies):
        raise RuntimeError(f"{network} in the setting {name!r} failed")
    rates = [json.loads(output.splitlines()[-1]) for output in outputs]
    return {
        "parameters": rates[0]["parameters"],
        "images_per_second": sum(rate["images_per_second"] for rate in rates),
        "images_per_cpu_second": sum(rate["images_per_cpu_second"] for rate in rates) / len(rates),
    }


def bound(batch: int) -> dict:
    """The network's arithmetic, the rate of the matrix product, and the images a second of both."""
    network = build(architecture("unet", (1, 28, 28)))
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(batch, 1, 28, 28), torch.zeros(batch)).sum().backward()
    per_image = counter.get_total_flops() / batch
    torch.set_num_threads(1)
    matrix = torch.randn(1024, 1024)
    repeats, rates = 10, []
    for _ in range(3):
        began = time.process_time()
        for _ in range(repeats):
            matrix @ matrix
        rates.append(repeats * 2 * 1024**3 / (time.process_time() - began))
    return {
        "gflop_per_image": per_image / 1e9,
        "matrix_product_gflop_per_cpu_second": max(rates) / 1e9,
        "images_per_second": CORES * max(rates) / per_image,
        "images_per_cpu_second": max(rates) / per_image,
    }


def main() -> None:
    """Measure all settings, choose the fastest, print the ratios, and write all down."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--setting", choices=SETTINGS, help=argparse.SUPPRESS)
    parser.add_argument("--network", default="locality", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = {"steps": options.steps, "batch": options.batch}
    if options.setting:
        rates = measure(SETTINGS[options.setting], network=options.network, **sizes)
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(rates))
        return
    rates = {"locality": {}, "diffusers": {}}

    def measure_and_tell(network: str, name: str) -> None:
        found = rates[network][name] = run(name, network=network, **sizes)
        told = " ".join(f"{found[rate]:7.1f} {rate.replace('_', ' ')}" for rate in RATES)
        print(f"{network:10s}{name:46s}{told}", flush=True)

    for name in SETTINGS:
        measure_and_tell("locality", name)
    ours = rates["locality"]
    chosen = max(ours, key=lambda name: ours[name]["images_per_second"])
    if importlib.util.find_spec("diffusers"):
        for name in dict.fromkeys([PLAIN, chosen]):
            measure_and_tell("diffusers", name)
    pairs = {"plain fp32": ours[PLAIN], "the bound": bound(options.batch)}
    pairs |= {f"diffusers, {name}": found for name, found in rates["diffusers"].items()}
    ratios = {
        f"against {label}": {rate: ours[chosen][rate] / other[rate] for rate in RATES}
        for label, other in pairs.items()
    }
    print(f"chosen: {chosen}")
    for label, ratio in ratios.items():
        print(f"  {label}: " + ", ".join(f"{value:.2f} ({rate})" for rate, value in ratio.items()))
    machine = {
        "processor": platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": CORES,
        "load_average": os.getloadavg(),
        "torch": torch.__version__,
    }
    report = {"machine": machine, **sizes, "rates": rates, "bound": pairs["the bound"]}
    report |= {"chosen": chosen, "ratios": ratios}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
