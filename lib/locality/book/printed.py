"""The printed tables of chapter 9, whose entries `locality.scoreboard` describes."""

import re
from collections.abc import Mapping

from .. import scoreboard
from .plots import CALLED

# The data sets, how many images methods hold of each, and what numbers in the text are called by.
SETS = {
    "fashion-mnist": 10_000,
    "mnist": 10_000,
    "cifar10-gray": 10_000,
    "celeba": 9000,
    "afhq-cat": 4643,
    "cifar10": 10_000,
}
SHORT = dict(zip(SETS, ("fashion", "mnist", "cifar", "celeba", "cats", "colour"), strict=True))
PAPER_TAU = {data: scoreboard.PAPER_TAU[data.removesuffix("-gray")] for data in SETS}
# The mixtures of chapter 11.
OURS = tuple(f"wiener-mixture{end}" for end in ("", "-patch", "-pspc", "-soft", "-sharp"))
# The rows of the tables over data sets; {tau} is the paper's threshold, which differs among them.
ROWS = (
    "dit",
    *OURS,
    "local-{tau}",
    "local-0.05",
    "released-{tau}",
    "soft",
    "wiener",
    "pspc-wiener",
    "pspc-flex",
    "pspc-calibrated",
    "pspc-square",
    "ls-wiener",
    "ls-calibrated",
    "ls-published",
    "bbels-published",
    "els-released",
    "sigma-cfdm-2",
    "optimal",
    "nearest",
)
NAMES = CALLED | {"local-{tau}": "local, paper's tau", "released-{tau}": "released code"}
# Which methods are compared seed by seed on every data set, the first less the second.
PAIRS = {
    "lead": ("local-0.05", "wiener"),
    "broken": ("local-0.05", "bbels-published"),
    "squares": ("local-0.05", "pspc-square"),
    "flex": ("local-0.05", "pspc-flex"),
    "fitted": ("local-0.05", "pspc-calibrated"),
    "ls": ("ls-published", "wiener"),
    "bbels": ("bbels-published", "ls-published"),
    "torus": ("els-released", "bbels-published"),
    "form": ("pspc-wiener", "pspc-square"),
    "formw": ("pspc-wiener", "wiener"),
    "formflex": ("pspc-wiener", "pspc-flex"),
    "centre": ("pspc-wiener", "ls-wiener"),
    "dit": ("wiener-mixture-patch", "dit"),
}


def measures(entries: Mapping[str, dict]) -> None:
    """Print every measure of the methods of one data set, method -> entry."""
    print(f"{'method':24s} seeds   r2 [95 % interval]   Pearson    MSE  copies  Frechet  s/sample")
    for method, e in entries.items():
        r, distance = e["r2"], "    -" if e["frechet"] is None else f"{e['frechet']:5.2f}"
        print(
            f"{CALLED.get(method, method):24s} {e['settings']['seeds']:5d}  {r['mean']:5.2f} "
            f"[{r['low']:5.2f}, {r['high']:5.2f}]  {e['pearson']['mean']:7.2f} "
            f"{e['mse']['mean']:6.3f}  {e['copies']['share']:6.0%}  {distance:>7s}  "
            f"{e['seconds']:8.3f}"
        )


def agreement(tables: Mapping[str, Mapping[str, dict | None]], *, title: str) -> None:
    """Print r2, its interval and the number of seeds; three data sets stand abreast.

    Args:
        tables: data set -> method -> entry, or None for what was not scored; every data set has
            the same methods, by the names of ROWS. One that no data set has is left out.
    """
    rows = [m for m in next(iter(tables.values())) if any(found[m] for found in tables.values())]
    cells = {}
    for data, found in tables.items():
        cells[data] = {}
        for method in (m for m in rows if found[m]):
            r, seeds = found[method]["r2"], len(found[method]["r2_by_seed"])
            text = f"{r['mean']:5.2f} [{r['low']:5.2f},{r['high']:5.2f}] {seeds}"
            cells[data][NAMES[method]] = text
    _abreast(title, [NAMES[m] for m in rows], cells, widths=(18, 24))


def differences(
    gaps: Mapping[str, Mapping[str, tuple[float, float, float]]], *, title: str
) -> None:
    """Print the differences of PAIRS; three data sets stand abreast.

    Args:
        gaps: data set -> name in PAIRS -> mean, low, high; a name may be missing.
    """
    names = {key: " - ".join(NAMES[m] for m in pair) for key, pair in PAIRS.items()}
    cells = {
        data: {names[k]: _short(*gap) for k, gap in found.items()} for data, found in gaps.items()
    }
    _abreast(title, list(names.values()), cells, widths=(36, 20))


def _short(mean: float, low: float, high: float) -> str:
    """A difference and its interval; without zeros before the point three sets fit a page."""
    return re.sub(r"(?<=[+-])0(?=\.)", "", f"{mean:+.2f} [{low:+.2f},{high:+.2f}]")


def _abreast(
    title: str, rows: list[str], cells: Mapping[str, Mapping[str, str]], *, widths: tuple[int, int]
) -> None:
    """Print data set -> row -> text, three data sets beside each other; what is missing, dashed."""
    first, other = widths
    sets = list(cells)
    for group in (sets[i : i + 3] for i in range(0, len(sets), 3)):
        print(f"{title:{first}s}" + "".join(f"{data:^{other}s}" for data in group).rstrip())
        for row in rows:
            line = "".join(f"{cells[d].get(row, '-'.center(other)):{other}s}" for d in group)
            print(f"{row:{first}s}{line}".rstrip())
        print()
