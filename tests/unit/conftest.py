"""Images and statistics that several test files use: the real, shipped Fashion-MNIST."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from locality.data import ImageSet, load
from locality.schedule import ddpm_sigmas
from locality.stats import PCA


@pytest.fixture(scope="session")
def fashion() -> ImageSet:
    """2,000 training images, (2000, 1, 28, 28)."""
    return load("fashion-mnist", n=2000)


@pytest.fixture(scope="session")
def fashion_test() -> ImageSet:
    """20 test images, which are in no training set here."""
    return load("fashion-mnist", "test", n=20)


@pytest.fixture(scope="session")
def fashion_pca(fashion: ImageSet) -> PCA:
    return PCA.fit(fashion)


@pytest.fixture(scope="session")
def small() -> ImageSet:
    """520 training images at a quarter of the size, (520, 1, 14, 14)."""
    return load("fashion-mnist", n=520, size=14)


@pytest.fixture(scope="session")
def small_pca(small: ImageSet) -> PCA:
    return PCA.fit(small)


@pytest.fixture(scope="session")
def tiny() -> ImageSet:
    """60 training images of 36 pixels, small enough for whole Jacobians, (60, 1, 6, 6)."""
    return load("fashion-mnist", n=60, size=6)


@pytest.fixture(scope="session")
def colour() -> ImageSet:
    """60 patches of photographs in RGB, (60, 3, 4, 4)."""
    return load("photos", n=60, size=4)


@pytest.fixture(scope="session")
def official_sigmas() -> list[float]:
    """The ten noise levels of the paper's protocol, high to low."""
    return ddpm_sigmas(10).tolist()


@pytest.fixture
def noised():
    """A function (images, sigma, seed=0) -> images + sigma * unit normal noise."""

    def add_noise(images: Tensor, sigma: float, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return images + sigma * torch.randn(images.shape, generator=generator)

    return add_noise


# The peak of this process alone: getrusage would start from that of the process that started it.
PEAK = """
import resource, sys
from pathlib import Path

def peak():
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(l for l in status.read_text().splitlines() if l.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
"""


@pytest.fixture
def measured_memory():
    """A function that runs a script, which may call peak(), in MB, and returns what it printed."""

    def run(script: str) -> list[float]:
        command = [sys.executable, "-c", PEAK + textwrap.dedent(script)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return [float(word) for word in output.split()]

    return run


@pytest.fixture
def ranks(request) -> Callable[..., int]:
    """A function that runs a command in several processes and returns how many they were.

    Tests ask for "torchrun, 2" or "forked, 4" as its parameter.

    torchrun starts every process anew, which takes most of the time of a small run; ranks.py
    forks them and sets the same variables.
    """
    how, processes = request.param.split(", ")
    launcher = [str(Path(__file__).with_name("ranks.py")), processes]
    if how == "torchrun":
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]

    def run(*command: str) -> int:
        done = subprocess.run(
            [sys.executable, *launcher, *command],
            capture_output=True,
            text=True,
            timeout=300,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        return int(processes)

    return run
