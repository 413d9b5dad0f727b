"""What ``experiments/tune_mixture.py`` and ``tune_sharpness.py`` have found for each data set."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from .. import zoo
from ..scoreboard import MIXTURES, SHARP, SHARP_TAU
from .plots import COLOURS, INK

LOCAL = f"local-{SHARP_TAU}"
STEPS = ("Wiener", "mixture, exact", "mixture", "mixture + patches")


def mixtures(folder: str | Path) -> dict[str, dict]:
    """Print what is stored in ``folder``, the experiments' results, and give it back.

    Returns:
        For each data set the r2 of Wiener, "mixture, exact", "mixture" and "mixture + patches" on
        seeds that were not used to choose, and under "by rounds" the r2 on those that were, for
        every number of rounds of expectation maximisation, all else equal.

    Raises:
        ValueError: if the results are those of another network than the zoo's.
    """
    found = {}
    print(" " * 14 + "".join(f"{name:>19s}" for name in STEPS))
    for data in MIXTURES:
        stored = json.loads((Path(folder) / f"mixture-{data}.json").read_text())
        if stored["settings"]["network_sha256"] != zoo.card(f"unet/{data}")["sha256"]:
            raise ValueError(f"the mixture of {data} was chosen for another network: tune it again")
        groups: dict[tuple, dict] = {}
        for tried in stored["tuning"]["tried"]:
            rest = tuple(value for key, value in tried.items() if key not in ("rounds", "r2"))
            groups.setdefault(rest, {})[tried.get("rounds", 0)] = tried["r2"]
        found[data] = {name: stored["methods"][name]["r2"]["mean"] for name in STEPS}
        print(f"{data:14s}" + "".join(f"{value:19.2f}" for value in found[data].values()))
        found[data]["by rounds"] = rounds = max(groups.values(), key=len)
        chosen = stored["tuning"]["chosen"]
        print("   ", ", ".join(f"{key} {value:g}" for key, value in chosen.items()))
        print("    r2 by rounds:", ", ".join(f"{n}: {r2:.3f}" for n, r2 in rounds.items()))
    return found


def sharpness(folder: str | Path) -> dict[str, dict]:
    """What ``experiments/tune_sharpness.py`` stored in ``folder``, for each data set.

    Raises:
        ValueError: if the results are those of another network than the zoo's.
    """
    found = {}
    for data in SHARP:
        found[data] = json.loads((Path(folder) / f"sharpness-{data}.json").read_text())
        if found[data]["network_sha256"] != zoo.card(f"unet/{data}")["sha256"]:
            raise ValueError(f"the sharpness of {data} is for another network: tune it again")
    return found


def draw_sharpness(found: dict[str, dict]) -> Figure:
    """r2 with the UNet against Frechet distance, a panel for each of ``sharpness``'s data sets.

    On a line one dial is turned: guidance, or where nothing was guided, evening out.
    """
    lines = {
        "mixture + patches": ("patches", None),
        "half PSPC below 1": ("pspc-square", 0.5),
        "PSPC below 1": ("pspc-square", 1.0),
        "quarter local below 3": (LOCAL, 0.25),
        "half local below 3": (LOCAL, 0.5),
        "local below 3": (LOCAL, 1.0),
    }
    figure, axes = plt.subplots(2, -(-len(found) // 2), figsize=(9.6, 6.5), squeeze=False)
    for axis, (name, report) in zip(axes.flat, found.items(), strict=True):
        for i, (label, way) in enumerate(lines.items()):
            rows = [r for r in report["tried"] if (r["partner"], r.get("share")) == way]
            if rows:  # in colour and on the faces not every partner was tried
                points = zip(*((r["r2"], r["frechet"]) for r in rows), strict=True)
                axis.plot(*points, marker="o^vPsD"[i], ms=4, color=f"C{i}", label=label)
        masked = report["rivals"][LOCAL]
        axis.plot(masked["r2"], masked["frechet"], "X", ms=9, color=INK, label="local, tau 0.05")
        axis.axhline(report["rivals"]["unet"]["frechet"], color=INK, lw=1, ls="--")
        axis.set(title=name, yscale="log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}")
    for axis in axes[:, 0]:
        axis.set_ylabel("Frechet distance, log scale")
    axes[-1, 1].set_xlabel("r2 with the UNet's samples")
    shown = {line.get_label(): line for axis in axes.flat for line in axis.get_lines()[:-1]}
    figure.legend(shown.values(), shown, loc="outside lower center", ncols=4)
    return figure


def draw_shares(kept: dict[str, Tensor]) -> Figure:
    """What samples keep of the variance of each principal component, (D,) for each label."""
    figure, axis = plt.subplots(figsize=(6.4, 3.2))
    for label, shares in kept.items():
        colour = COLOURS.get(label, "#E69F00")
        axis.plot(range(1, len(shares) + 1), shares, color=colour, label=label)
    axis.set(xscale="log", xlabel="principal component, leading to fine", ylim=(0, 1.3))
    axis.set_ylabel("share of variance kept")
    axis.set_title("Of fine detail a network keeps half, a blur a sixth")
    axis.legend(ncols=2)
    return figure
