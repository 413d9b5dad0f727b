"""The printed tables of chapter 9, whose entries `locality.scoreboard` describes."""

from collections.abc import Mapping

from .plots import CALLED


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


def agreement(
    tables: Mapping[str, Mapping[str, dict | None]], names: Mapping[str, str], *, title: str
) -> None:
    """Print r2, its interval and the number of seeds; three data sets stand abreast.

    Args:
        tables: data set -> method -> entry, or None for what was not scored; every data set has
            the same methods. A method that no data set has is left out.
        names: what the table calls a method.
    """
    rows = [m for m in next(iter(tables.values())) if any(found[m] for found in tables.values())]
    sets = list(tables)
    for group in (sets[i : i + 3] for i in range(0, len(sets), 3)):
        print(f"{title:18s}" + "".join(f"{data:^24s}" for data in group).rstrip())
        for method in rows:
            line = f"{names[method]:18s}"
            for entry in (tables[data][method] for data in group):
                if entry is None:
                    line += f"{'-':^24s}"
                    continue
                r = entry["r2"]
                cell = f"{r['mean']:5.2f} [{r['low']:5.2f},{r['high']:5.2f}] "
                line += f"{cell + str(len(entry['r2_by_seed'])):24s}"
            print(line.rstrip())
        print()
