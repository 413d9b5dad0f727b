"""Presets: the same code at the size of a laptop, of a GPU machine, or of the paper.

The environment variable LOCALITY_PRESET names one of them; laptop is the default. Only numbers
differ between them.
"""

import os
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Preset:
    """Sizes that a notebook uses.

    Attributes:
        name: laptop, gpu or paper.
        data: the Fashion-MNIST set to load, the shipped subset or the full one.
        samples: how many images a notebook samples to measure a number.
        device: where tensors live.
    """

    name: str
    data: str
    samples: int
    device: torch.device


def device() -> torch.device:
    """CUDA if there is one, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def current() -> Preset:
    """The preset that LOCALITY_PRESET names.

    Raises:
        ValueError: if it names none of laptop, gpu, paper.
    """
    name = os.environ.get("LOCALITY_PRESET", "laptop")
    presets = {
        "laptop": Preset("laptop", "fashion-mnist", 16, torch.device("cpu")),
        "gpu": Preset("gpu", "fashion-mnist-full", 128, device()),
        "paper": Preset("paper", "fashion-mnist-full", 1000, device()),
    }
    if name not in presets:
        raise ValueError(f"LOCALITY_PRESET is {name!r}, expected one of {', '.join(presets)}")
    return presets[name]
