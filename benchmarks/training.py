"""Images per second of the trainer, setting by setting, and against a well-known open-source UNet.

Each setting trains the laptop's UNet (or, for "diffusers", Hugging Face diffusers' `UNet2DModel` of
the same widths and parameter count) with `locality.training.train` in a process of its own. Two
rates are told: per second, and per second of CPU time, which other programs disturb less. On a
machine that others use, threads that wait for each other in spin locks burn CPU time: that is why
the zoo trains with one thread. diffusers is not among the book's requirements; its rows are left
out when it is not installed (`pip install diffusers`).

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

from locality.data import load
from locality.networks import NetworkDenoiser, architecture, build
from locality.training import TrainConfig, train

RESULTS = Path(__file__).parent / "results" / "training.json"
WARMUP = 3  # steps before the clock starts: allocation, kernel selection, compilation
CORES = os.cpu_count()
SETTINGS = {
    "fp32 eager, all threads": {"threads": CORES},
    "fp32 eager, 1 thread": {"threads": 1},
    "bf16, all threads": {"threads": CORES, "bf16": True},
    "bf16, 1 thread": {"threads": 1, "bf16": True},
    "bf16, 1 thread, channels last": {"threads": 1, "bf16": True, "channels_last": True},
    "bf16, 1 thread, compiled": {"threads": 1, "bf16": True, "compile": True},
    f"bf16, {CORES} processes of 1 thread": {"threads": 1, "bf16": True, "processes": CORES},
    "diffusers, fp32, all threads": {"threads": CORES, "network": "diffusers"},
    "diffusers, bf16, 1 thread": {"threads": 1, "bf16": True, "network": "diffusers"},
}
PLAIN, CHOSEN, OTHER = (
    "fp32 eager, all threads",
    "bf16, 1 thread",
    "diffusers, bf16, 1 thread",
)


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


def measure(setting: dict, *, steps: int, batch: int) -> dict:
    """Train for a few steps in this process; runs inside the process of one setting."""
    torch.set_num_threads(setting["threads"])
    if "RANK" in os.environ:
        torch.distributed.init_process_group("gloo")
    images = load("fashion-mnist", n=2000).images
    torch.manual_seed(0)
    other = setting.get("network") == "diffusers"
    network = Diffusers() if other else build(architecture("unet", (1, 28, 28)))
    if setting.get("channels_last"):
        network = network.to(memory_format=torch.channels_last)
    if setting.get("compile"):
        network.compile()
    denoiser = NetworkDenoiser(network, sigma_data=0.7)
    config = TrainConfig(steps=WARMUP + steps, batch=batch, bf16=setting.get("bf16", False))
    training = train(denoiser, images, config=config)
    for _ in range(WARMUP):
        next(training)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in training:
        pass
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "images_per_second": steps * batch / wall,
        "images_per_cpu_second": steps * batch / (cpu * setting.get("processes", 1)),
    }


def run(name: str, *, steps: int, batch: int) -> dict:
    """Measure one setting in a process of its own, or in several under torchrun."""
    launcher = []
    if count := SETTINGS[name].get("processes"):
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command = [sys.executable, *launcher, __file__, "--setting", name]
    result = subprocess.run(
        [*command, "--steps", str(steps), "--batch", str(batch)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": str(SETTINGS[name]["threads"])},
    )
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    """Measure all settings, print the table and the ratios, and write them down."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--only", nargs="*", choices=SETTINGS, help="measure these settings only")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--setting", choices=SETTINGS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = {"steps": options.steps, "batch": options.batch}
    if options.setting:
        rates = measure(SETTINGS[options.setting], **sizes)
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(rates))
        return
    names = options.only or list(SETTINGS)
    if importlib.util.find_spec("diffusers") is None:
        names = [name for name in names if SETTINGS[name].get("network") != "diffusers"]
    rates = {}
    for name in names:
        rates[name] = run(name, **sizes)
        print(
            f"{name:38s} {rates[name]['images_per_second']:7.0f} images/s"
            f" {rates[name]['images_per_cpu_second']:7.0f} images/CPU s",
            flush=True,
        )
    ratios = {}
    for label, against in (("plain fp32 eager", PLAIN), ("diffusers", OTHER)):
        if CHOSEN in rates and against in rates:
            pair = (rates[CHOSEN], rates[against])
            for unit in ("images_per_second", "images_per_cpu_second"):
                ratios[f"against {label}, {unit}"] = pair[0][unit] / pair[1][unit]
    for label, ratio in ratios.items():
        print(f"{CHOSEN} {label}: {ratio:.2f} times")
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": CORES,
        "load_average": os.getloadavg(),
        "torch": torch.__version__,
    }
    report = {"machine": machine, **sizes, "rates": rates, "ratios": ratios}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
