"""The live loss plot: what it draws is what it was told."""

import numpy as np
import pytest

from locality.book import live


@pytest.fixture
def plot(monkeypatch):
    monkeypatch.setattr(live, "display", lambda *args, **kwargs: None)
    plot = live.LossPlot(title="losses")
    yield plot
    plot.close()


def test_curves_are_smoothed_and_drawn(plot):
    for seen, loss in [(64, 1.0), (128, 0.0), (192, 0.0)]:
        plot.add("UNet", seen, loss)
    plot.add("DiT", 64, 0.5)
    plot.draw()
    lines = {line.get_label(): line.get_xydata() for line in plot.axis.lines}
    np.testing.assert_allclose(lines["UNet"], [(64, 1.0), (128, 0.9), (192, 0.81)])
    np.testing.assert_allclose(lines["DiT"], [(64, 0.5)])


def test_it_redraws_only_once_in_a_while(plot, monkeypatch):
    drawn = []
    monkeypatch.setattr(plot, "draw", lambda: drawn.append(1))
    plot.add("UNet", 64, 1.0)
    assert drawn == []
    monkeypatch.setattr(live, "REDRAW_SECONDS", -1.0)
    plot.add("UNet", 128, 1.0)
    assert drawn == [1]
