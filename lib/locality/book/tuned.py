"""The parameters that ``experiments/tune_mixture.py`` has chosen for each data set."""

import json
from pathlib import Path

from .. import zoo
from ..scoreboard import MIXTURES

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
