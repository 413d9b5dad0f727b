"""A loss plot that grows while networks train, in a live kernel; stored, it is its last state."""

import time

import matplotlib.pyplot as plt
from IPython.display import display

from .plots import COLOURS, INK

REDRAW_SECONDS = 1.0
SMOOTH = 0.9  # each point keeps this share of the one before


class LossPlot:
    """Smoothed training losses over the number of images seen, one curve a network.

    Attributes:
        curves: name -> (images seen, smoothed losses), two lists.
    """

    def __init__(self, *, title: str):
        self.figure, self.axis = plt.subplots(figsize=(6.4, 3.2))
        self.axis.set(xlabel="noisy images seen", ylabel="loss")
        self.axis.set_title(title)
        self.curves = {}
        self._lines = {}
        self._drawn = time.monotonic()
        self._display = display(self.figure, display_id=True)

    def add(self, name: str, seen: int, loss: float) -> None:
        """Add a point to the curve of ``name``; redraws once in a second."""
        if name not in self.curves:
            self.curves[name] = ([], [])
            colour = COLOURS.get(name, INK)
            (self._lines[name],) = self.axis.plot([], [], label=name, color=colour)
        seen_so_far, losses = self.curves[name]
        seen_so_far.append(seen)
        losses.append(SMOOTH * losses[-1] + (1 - SMOOTH) * loss if losses else loss)
        if time.monotonic() - self._drawn > REDRAW_SECONDS:
            self.draw()

    def draw(self) -> None:
        """Show all points there are."""
        for name, line in self._lines.items():
            line.set_data(*self.curves[name])
        self.axis.legend()
        self.axis.relim()
        self.axis.autoscale_view()
        self.axis.set_ylim(bottom=0)
        if self._display is not None:  # None outside a notebook
            self._display.update(self.figure)
        self._drawn = time.monotonic()

    def close(self) -> None:
        """Draw the last state, and keep the notebook from showing the figure a second time."""
        self.draw()
        plt.close(self.figure)
