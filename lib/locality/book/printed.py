"""The printed tables of chapter 9, whose entries `locality.scoreboard` describes."""

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
    sets = list(tables)
    for group in (sets[i : i + 3] for i in range(0, len(sets), 3)):
        print(f"{title:18s}" + "".join(f"{data:^24s}" for data in group).rstrip())
        for method in rows:
            line = f"{NAMES[method]:18s}"
            for entry in (tables[data][method] for data in group):
                if entry is None:
                    line += f"{'-':^24s}"
                    continue
                r = entry["r2"]
                cell = f"{r['mean']:5.2f} [{r['low']:5.2f},{r['high']:5.2f}] "
                line += f"{cell + str(len(entry['r2_by_seed'])):24s}"
            print(line.rstrip())
        print()
