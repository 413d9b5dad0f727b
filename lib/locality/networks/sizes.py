"""The architectures of the book by name, for images of any shape."""

from torch import nn

from .classifier import Classifier
from .dit import DiT
from .linear import LinearDenoiser
from .unet import UNet

KINDS = {"unet": UNet, "dit": DiT, "linear": LinearDenoiser, "classifier": Classifier}
SIZES = ("laptop", "paper")


def architecture(kind: str, shape: tuple[int, int, int], *, size: str = "laptop") -> dict:
    """Kind and arguments of a network for images of ``shape`` (C, H, W), for `build`.

    "laptop": 0.6 to 1.3 M parameters (the classifier 0.06 M), trained in half an hour on one CPU
    core. "paper": the official UNet, 6.1 M parameters for grey images and 80.0 M for RGB.

    Raises:
        ValueError: for an unknown kind or size; the paper's size is known of its UNet only.
    """
    if kind not in KINDS or size not in SIZES:
        raise ValueError(
            f"kind {kind!r} and size {size!r}: expected one of {', '.join(KINDS)} "
            f"and one of {', '.join(SIZES)}"
        )
    if size == "paper" and kind != "unet":
        raise ValueError(f"there is no paper size of {kind!r}, only of 'unet'")
    channels = shape[0]
    if kind == "linear":
        # Square matrices of all 3,072 pixels of a 32 x 32 RGB image would take 38 MB. The price of
        # rank 200: on faces even the best such denoiser has twice the Wiener filter's error at
        # sigma = 0.1; from 0.7 up it is within 4 % of it.
        pixels = shape[0] * shape[1] * shape[2]
        return {"kind": kind, "shape": tuple(shape), "rank": pixels if pixels <= 1024 else 200}
    options = {"kind": kind, "image_channels": channels}
    if kind == "unet" and size == "paper":
        widths = (64, 128, 128) if channels == 1 else (128, 256, 384, 512)
        return options | {"channels": widths, "blocks": 2, "groups": 32, "dropout": 0.15}
    if kind == "unet":
        return options | {"channels": (16, 32, 64), "blocks": 1, "groups": 8}
    if kind == "dit":
        return options | {"patch": 4, "width": 128, "depth": 4, "heads": 4}
    return options


def build(architecture: dict) -> nn.Module:
    """The untrained network of an `architecture`."""
    options = dict(architecture)
    kind = options.pop("kind", None)
    if kind not in KINDS:
        raise ValueError(f"unknown kind of network {kind!r}, expected one of {', '.join(KINDS)}")
    return KINDS[kind](**options)
