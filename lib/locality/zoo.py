"""The zoo: trained networks that ship with the package, each with a card that says what it is.

A network is two files: NAME.safetensors, the weights in float16, and NAME.json, the card, with the
architecture, the data and their checksum, the training, held-out losses and the weights' SHA-256.
`experiments/train_zoo.py` makes both; `python -m locality train` makes them in a folder of yours.
NAME.sides.json holds the patch sides that imitate a network best
(`experiments/calibrate_sides.py`).
"""

import difflib
import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from .denoisers.sides import Calibration
from .networks import Classifier, NetworkDenoiser
from .networks import build as build_network
from .training import write_atomically

ZOO = Path(__file__).parent / "_zoo"


def names(*, folder: str | Path = ZOO) -> list[str]:
    """The names of all networks in the zoo, or in a ``folder``: for example unet/fashion-mnist."""
    folder = Path(folder)
    cards = (path for path in folder.rglob("*.json") if path.with_suffix(".safetensors").exists())
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in cards)


def card(name: str, *, folder: str | Path = ZOO) -> dict:
    """What is known about a network: its data, training, losses and checksum.

    Raises:
        ValueError: if there is no network of that name.
    """
    known = names(folder=folder)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no network {name!r}.{hint} There are: {', '.join(known) or 'none'}")
    return json.loads((Path(folder) / f"{name}.json").read_text())


def load(
    name: str, *, device: torch.device | str = "cpu", folder: str | Path = ZOO
) -> NetworkDenoiser | Classifier:
    """A trained network, ready to be called as ``denoiser(x, sigma)``, with frozen weights.

    The name is "ARCHITECTURE/DATA". "classifier/fashion-mnist" is a `Classifier`, no denoiser.

    Raises:
        ValueError: if there is no such network, or its weights do not match the card's checksum.
    """
    about = card(name, folder=folder)
    weights = (Path(folder) / f"{name}.safetensors").read_bytes()
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
    """The untrained network a card describes: "network", "sigma_data" and "parametrisation"."""
    network = build_network(about["network"])
    if isinstance(network, Classifier):
        return network
    return NetworkDenoiser(
        network, sigma_data=about["sigma_data"], parametrisation=about["parametrisation"]
    )


def sides(name: str, method: str, *, folder: str | Path = ZOO) -> Calibration:
    """The patch sides with which a patch denoiser predicts the noise most like a network.

    ``zoo.sides("unet/fashion-mnist", "ls")(sigma)`` is a side in pixels; see `Calibration`.

    Args:
        method: "ls", "els", "bbels" (ELS with broken boundary) or "pspc".

    Raises:
        ValueError: if there is no such network, or its sides were not measured for the method.
    """
    card(name, folder=folder)  # an unknown network is told so
    path = Path(folder) / f"{name}.sides.json"
    methods = json.loads(path.read_text())["methods"] if path.exists() else {}
    if method not in methods:
        known = ", ".join(methods) or "none"
        raise ValueError(f"no sides of {method!r} measured on {name}; there are: {known}")
    found = methods[method]
    similarity = torch.tensor(found["similarity"])
    return Calibration(found["sigmas"], found["sides"], found["best"], similarity)


def save(name: str, model: nn.Module, about: dict, *, folder: str | Path = ZOO) -> None:
    """Add a network: its weights in float16, and ``about`` with their SHA-256 as its card.

    ``about`` must hold what `build` reads.
    """
    tensors = {
        key: (value.half() if value.is_floating_point() else value).detach().cpu().contiguous()
        for key, value in model.state_dict().items()
    }
    weights = save_tensors(tensors)
    text = json.dumps(about | {"sha256": hashlib.sha256(weights).hexdigest()}, indent=1) + "\n"
    # Not `with_suffix`, which would take the ".001" of a name like "lr-0.001" for one.
    folder = Path(folder)
    write_atomically(folder / f"{name}.safetensors", lambda part: part.write_bytes(weights))
    write_atomically(folder / f"{name}.json", lambda part: part.write_text(text))
