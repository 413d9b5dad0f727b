"""The house style of the figures: image grids, sensitivity fields, curves over the noise level.

Figures have an opaque light background, so that they read the same on a light and a dark page.
Colours are those of Okabe and Ito, which colour-blind readers can tell apart; every method keeps
its colour through the whole book.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from torch import Tensor

INK, GRID, PAPER = "#222222", "#dddddd", "#ffffff"
COLOURS = {
    "optimal": "#D55E00",
    "Wiener": "#0072B2",
    "square patches": "#CC79A7",
    "analytical local": "#009E73",
    "UNet": "#222222",
    "DiT": "#777777",
    "linear": "#56B4E9",
}
# What figures and tables call the methods of `locality.scoreboard`, in the order of the figures.
METHODS = {
    "unet": "UNet",
    "dit": "DiT",
    "wiener-mixture": "Wiener mixture",
    "wiener-mixture-patch": "mixture + patches",
    "wiener-mixture-pspc": "mixture + PSPC",
    "local-0.05": "local, tau 0.05",
    "pspc-calibrated": "PSPC, fitted",
    "ls-calibrated": "LS, fitted",
    "pspc-square": "PSPC",
    "soft": "local, soft",
    "local-0.005": "local, tau 0.005",
    "released-0.005": "released code",
    "wiener": "Wiener",
    "ls-published": "LS",
    "sigma-cfdm-2": "sigma-CFDM",
    "nearest": "nearest image",
    "optimal": "optimal",
}
# And what tables call those that figures leave out.
CALLED = METHODS | {
    "wiener-mixture-soft": "mixture + soft",
    "wiener-mixture-sharp": "mixture, sharpened",
    "wiener-mixture-patch-guided-0.4": "guided, weight 0.4",
    "wiener-mixture-patch-guided-1": "guided, weight 1",
    "pspc-flex": "PSPC-Flex",
    "pspc-wiener": "PSPC, data's form",
    "ls-wiener": "LS, data's form",
    "bbels-published": "broken ELS",
    "els-released": "ELS, released",
    "released-0.005-exact": "its mask, exact",
    "sigma-cfdm-1": "sigma-CFDM, width 1",
    "sigma-cfdm-4": "sigma-CFDM, width 4",
}
OTHERS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222")


def use_style() -> None:
    """Set the house style for all figures of a notebook."""
    plt.rcParams.update(
        {
            "figure.facecolor": PAPER,
            "savefig.facecolor": PAPER,
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "axes.titlesize": 10,
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": GRID,
            "grid.linewidth": 0.6,
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "lines.linewidth": 1.8,
            "legend.frameon": False,
            "axes.prop_cycle": plt.cycler(color=OTHERS),
            "image.cmap": "gray",
            "image.interpolation": "nearest",
        }
    )


def show_image(axis: Axes, image: Tensor) -> None:
    """One image (C, H, W) in [-1, 1], grey or RGB, without axes; values outside are clipped."""
    picture = (image.detach().cpu().float().clamp(-1, 1) + 1) / 2
    picture = picture.permute(1, 2, 0).squeeze(-1).numpy()
    axis.imshow(picture, vmin=0, vmax=1)
    _bare(axis)


def image_grid(
    rows: Mapping[str, Tensor],
    *,
    title: str,
    columns: Sequence[str] = (),
    scale: float = 0.72,
) -> Figure:
    """A table of images: one labelled row for each entry of ``rows``, images (n, C, H, W).

    Args:
        title: the figure's message.
        columns: labels above the columns, if any.
        scale: width of one image, in inches.
    """
    count = max(len(images) for images in rows.values())
    *_, height, width = next(iter(rows.values())).shape
    tall = scale * height / width * len(rows)
    figure, axes = plt.subplots(
        len(rows),
        count,
        squeeze=False,
        figsize=(scale * count + 1.3, tall + 0.5 + 0.2 * bool(columns)),
        gridspec_kw={"wspace": 0.04, "hspace": 0.04},
    )
    for (label, images), line in zip(rows.items(), axes, strict=True):
        for axis in line:
            _bare(axis)
        for axis, image in zip(line, images, strict=False):
            show_image(axis, image)
        line[0].set_ylabel(
            label, rotation=0, ha="right", va="center", color=COLOURS.get(label, INK), labelpad=6
        )
    for axis, label in zip(axes[0], columns, strict=False):
        axis.set_title(label, fontsize=8)
    figure.suptitle(title, fontsize=11)
    return figure


def fields(
    panels: Mapping[str, Sequence[Tensor]],
    *,
    pixel: tuple[int, int],
    title: str,
    columns: Sequence[str] = (),
    scale: float = 1.0,
) -> Figure:
    """A table of sensitivity fields (H, W), each relative to its own largest value.

    One labelled row for each entry; the pixel they belong to is ringed. The colours follow the
    square root of the value, which keeps weak distant parts visible.
    """
    count = max(len(row) for row in panels.values())
    figure, axes = plt.subplots(
        len(panels),
        count,
        squeeze=False,
        figsize=(scale * count + 1.9, scale * len(panels) + 0.6),
        gridspec_kw={"wspace": 0.06, "hspace": 0.06},
    )
    norm = PowerNorm(0.5, vmin=0, vmax=1)
    for (label, row), line in zip(panels.items(), axes, strict=True):
        for axis in line:
            _bare(axis)
        for axis, field in zip(line, row, strict=False):
            values = field.detach().abs().cpu().numpy()
            picture = axis.imshow(values / max(values.max(), 1e-30), cmap="magma", norm=norm)
            axis.plot(pixel[1], pixel[0], "o", ms=5, mfc="none", mec="#56B4E9", mew=1.0)
        line[0].set_ylabel(
            label, rotation=0, ha="right", va="center", color=COLOURS.get(label, INK), labelpad=6
        )
    for axis, label in zip(axes[0], columns, strict=False):
        axis.set_title(label, fontsize=8)
    bar = figure.colorbar(picture, ax=axes, shrink=0.9, aspect=12, ticks=[0, 0.1, 0.5, 1])
    bar.set_label("relative sensitivity")
    figure.suptitle(title, fontsize=11)
    return figure


def curves(
    sigmas: Tensor,
    lines: Mapping[str, Tensor],
    *,
    ylabel: str,
    title: str,
    bands: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    log: bool = False,
    axis: Axes | None = None,
) -> Figure:
    """Curves over the noise level, which runs from high on the left to low as sampling does.

    Args:
        sigmas: (n,) noise levels.
        lines: label -> (n,) values.
        bands: label -> (low, high), drawn as a band behind the line of that label.
        log: logarithmic vertical axis.
        axis: draw here rather than in a new figure.
    """
    if axis is None:
        _, axis = plt.subplots(figsize=(6.4, 3.4))
    markers = "osD^vPX"
    taken = {COLOURS[label] for label in lines if label in COLOURS}
    free = cycle([colour for colour in OTHERS if colour not in taken])
    for i, (label, values) in enumerate(lines.items()):
        colour = COLOURS[label] if label in COLOURS else next(free)
        axis.plot(sigmas, values, marker=markers[i % 7], ms=4, label=label, color=colour)
        if bands and label in bands:
            axis.fill_between(sigmas, *bands[label], color=colour, alpha=0.18, lw=0)
    sigma_axis(axis)
    if log:
        axis.set_yscale("log")
    axis.set_ylabel(ylabel)
    axis.set_title(title)
    if len(lines) > 1:
        axis.legend()
    return axis.figure


def intervals(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float, float]]]],
    *,
    xlabel: str,
    title: str,
    names: Sequence[str] = (),
    reference: float = 0.0,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Means with their intervals, three panels abreast that share their rows and their scale.

    Args:
        panels: panel -> row -> one (mean, low, high) for each of ``names``; a row that a panel
            lacks stays empty there.
        names: what the dots of a row are; without, one dot a row, in its label's colour.
        reference: where a dashed line stands.
        limits: of the horizontal axis.
    """
    labels = list(dict.fromkeys(label for rows in panels.values() for label in rows))
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    row = 0.27 + 0.09 * max(0, len(names) - 1)  # inches
    size = ((6.8, 8.2, 9.6)[across - 1], down * (row * len(labels) + 0.5) + 0.5)
    figure, axes = plt.subplots(down, across, squeeze=False, sharex=True, sharey=True, figsize=size)
    for (panel, rows), axis in zip(panels.items(), axes.flat, strict=False):
        axis.axvline(reference, color=INK, lw=1, ls="--")
        for label, found in rows.items():
            for i, (mean, low, high) in enumerate(found):
                place = labels.index(label) + 0.25 * (i - (len(found) - 1) / 2)
                colour = OTHERS[i] if names else COLOURS.get(label, INK)
                axis.plot([low, high], [place, place], color=colour, lw=2)
                axis.plot(mean, place, "osD"[i], color=colour, ms=4.5)
        axis.set_title(panel)
    axes[0, 0].set_yticks(range(len(labels)), labels)
    axes[0, 0].set_ylim(len(labels) - 0.4, -0.6)
    axes[0, 0].set_xlim(limits)
    axes[-1, across // 2].set_xlabel(xlabel)
    if names:
        dots = [plt.Line2D([], [], color=OTHERS[i], marker="osD"[i]) for i in range(len(names))]
        figure.legend(dots, names, loc="outside lower center", ncols=len(names))
    figure.suptitle(title, fontsize=11)
    return figure


def places(
    panels: Mapping[str, Mapping[str, tuple[float, float]]],
    *,
    xlabel: str,
    ylabel: str,
    title: str,
    lines: tuple[str, Mapping[str, float]],
    highest: float,
) -> Figure:
    """The same things at two numbers each, three panels abreast with scales of their own.

    Args:
        panels: panel -> label -> (x, y).
        lines: what the dashed line of every panel is, and panel -> its height.
        highest: no panel reaches further up; what lies beyond is not shown.
    """
    down = -(-len(panels) // 3)
    figure, axes = plt.subplots(down, 3, squeeze=False, figsize=(9.6, 2.4 * down + 0.8))
    name, heights = lines
    labels = [label for found in panels.values() for label in found]
    free = [c for c in OTHERS if c not in {COLOURS.get(label) for label in labels}]
    colours = dict(zip((x for x in dict.fromkeys(labels) if x not in COLOURS), free, strict=False))
    for (panel, found), axis in zip(panels.items(), axes.flat, strict=False):
        axis.axhline(heights[panel], color=INK, lw=1, ls="--", label=name)
        for (label, place), marker in zip(found.items(), "^osDvPX", strict=False):
            axis.plot(*place, marker, color=(COLOURS | colours)[label], label=label)
        axis.set_ylim(0, 1.15 * min(highest, max(y for _, y in found.values())))
        axis.locator_params(axis="x", nbins=4)
        axis.set_title(panel)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4)
    axes[-1, 1].set_xlabel(xlabel)
    figure.supylabel(ylabel, fontsize=10)
    figure.suptitle(title, fontsize=11)
    return figure


def labelled(
    points: Mapping[str, tuple[float, float, str, str]],
    *,
    xlabel: str,
    ylabel: str,
    title: str,
    left: Sequence[str] = (),
    lower: Mapping[str, float] | None = None,
) -> Axes:
    """Points with their names beside them, on one axis from zero upwards.

    Args:
        points: name -> (x, y, colour, marker).
        left: names that stand to the left of their point.
        lower: name -> how far below its point it stands, in points, where names crowd.
    """
    _, axis = plt.subplots(figsize=(6.8, 3.8))
    for name, (x, y, colour, marker) in points.items():
        axis.plot(x, y, marker, color=colour)
        shift, align = (-7, "right") if name in left else (7, "left")
        place = (shift, -(lower or {}).get(name, 0))
        options = {"textcoords": "offset points", "va": "center", "ha": align}
        axis.annotate(name, (x, y), xytext=place, **options)
    axis.set_ylim(bottom=0)
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
    return axis


def sigma_axis(axis: Axes) -> None:
    """Make the horizontal axis of ``axis`` the noise level, logarithmic, high noise on the left."""
    axis.set_xscale("log")
    if not axis.xaxis_inverted():
        axis.invert_xaxis()
    ticks = np.array([100, 30, 10, 3, 1, 0.3, 0.1, 0.03, 0.01])
    low, high = sorted(axis.get_xlim())
    ticks = ticks[(ticks >= low) & (ticks <= high)]
    axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axis.xaxis.set_minor_locator(plt.NullLocator())
    axis.set_xlabel("noise level sigma")


def sigma_labels(sigmas: Tensor) -> list[str]:
    """Short column labels of noise levels."""
    return [f"σ = {s:.3g}" for s in torch.as_tensor(sigmas).tolist()]


def _bare(axis: Axes) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(False)
