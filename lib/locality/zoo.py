"""The zoo: trained networks that ship with the package, each with a card that says what it is.

A network is two files: NAME.safetensors, the weights in float16, and NAME.json, the card, with the
architecture, the data and their checksum, the training, held-out losses and the weights' SHA-256.
`experiments/train_zoo.py` makes both.
"""

import difflib
import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from .networks import Classifier, DiT, LinearDenoiser, NetworkDenoiser, UNet
from .training import write_atomically

ZOO = Path(__file__).parent / "_zoo"
KINDS = {"unet": UNet, "dit": DiT, "linear": LinearDenoiser, "classifier": Classifier}


def names() -> list[str]:
    """The names of all networks in the zoo, for example "unet/fashion-mnist"."""
    return sorted(path.relative_to(ZOO).with_suffix("").as_posix() for path in ZOO.rglob("*.json"))


def card(name: str) -> dict:
    """What is known about a network: its data, training, losses and checksum.

    Raises:
        ValueError: if the zoo holds no network of that name.
    """
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no network {name!r} in the zoo.{hint} It holds {', '.join(names())}")
    return json.loads((ZOO / f"{name}.json").read_text())


def load(name: str, *, device: torch.device | str = "cpu") -> NetworkDenoiser | Classifier:
    """A trained network, ready to be called as ``denoiser(x, sigma)``, with frozen weights.

    The name is "ARCHITECTURE/DATA". "classifier/fashion-mnist" is a `Classifier`, no denoiser.

    Raises:
        ValueError: if there is no such network, or its weights do not match the card's checksum.
    """
    about = card(name)
    weights = (ZOO / f"{name}.safetensors").read_bytes()
    found = hashlib.sha256(weights).hexdigest()
    if found != about["sha256"]:
        raise ValueError(
            f"the weights of {name} are damaged: SHA-256 is {found}, expected {about['sha256']}; "
            "install the package again"
        )
    model = build(about)
    model.load_state_dict({key: value.float() for key, value in load_tensors(weights).items()})
    return model.to(device).eval().requires_grad_(False)


def build(about: dict) -> NetworkDenoiser | Classifier:
    """The untrained network a card describes; only "network" and "sigma_data" are read."""
    spec = dict(about["network"])
    kind = spec.pop("kind")
    if kind not in KINDS:
        raise ValueError(f"unknown kind of network {kind!r}, expected one of {', '.join(KINDS)}")
    network = KINDS[kind](**spec)
    if kind == "classifier":
        return network
    return NetworkDenoiser(network, sigma_data=about["sigma_data"])


def save(name: str, model: nn.Module, about: dict) -> None:
    """Add a network to the zoo: float16 weights, and ``about`` with their SHA-256 as its card."""
    tensors = {k: v.detach().cpu().half().contiguous() for k, v in model.state_dict().items()}
    weights = save_tensors(tensors)
    about = about | {"sha256": hashlib.sha256(weights).hexdigest()}
    write_atomically(ZOO / f"{name}.safetensors", lambda part: part.write_bytes(weights))
    text = json.dumps(about, indent=1) + "\n"
    write_atomically(ZOO / f"{name}.json", lambda part: part.write_text(text))
