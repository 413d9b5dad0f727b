"""Controls for a live kernel: one slider over the noise level, and redraw.

On the published page these cells are hidden, since no kernel answers there.
"""

from collections.abc import Callable, Sequence

import ipywidgets
import matplotlib.pyplot as plt
from matplotlib.figure import Figure


def explore(
    draw: Callable[..., Figure], *, start: dict | None = None, **choices: Sequence
) -> ipywidgets.Widget:
    """Redraw ``draw(name=value, ...)`` whenever one of the sliders over ``choices`` moves.

    Every keyword becomes a slider over the given values, labelled with its name. A slider starts at
    the value that ``start`` has under its name, by default at its first.
    """
    start = start or {}
    if unknown := sorted(start.keys() - choices.keys()):
        raise ValueError(f"start names no slider: {unknown}; the sliders are {sorted(choices)}")
    sliders = {}
    for name, values in choices.items():
        options = [(f"{v:.3g}" if isinstance(v, float) else str(v), v) for v in values]
        sliders[name] = ipywidgets.SelectionSlider(
            options=options,
            value=start.get(name, values[0]),
            description=name,
            continuous_update=False,
        )

    def redraw(**values: object) -> None:
        plt.show(draw(**values))

    output = ipywidgets.interactive_output(redraw, sliders)
    return ipywidgets.VBox([*sliders.values(), output])
