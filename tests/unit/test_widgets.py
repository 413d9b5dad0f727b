"""The sliders of a live kernel: where they start, and what they redraw."""

from types import SimpleNamespace

import pytest

from locality.book import widgets
from locality.book.widgets import explore


@pytest.fixture
def shown(monkeypatch):
    """The values of every redraw; nothing is drawn."""
    calls = []
    monkeypatch.setattr(widgets, "plt", SimpleNamespace(show=calls.append))
    return calls


def draw(**values):
    return values


def sliders(widget):
    return {slider.description: slider for slider in widget.children[:-1]}


def test_every_slider_starts_at_its_first_value(shown):
    widget = explore(draw, sigma=[0.5, 2.0], row=[3, 4])
    assert {n: slider.value for n, slider in sliders(widget).items()} == {"sigma": 0.5, "row": 3}
    assert shown == [{"sigma": 0.5, "row": 3}]


def test_a_start_is_what_is_drawn_first(shown):
    widget = explore(draw, start={"row": 4}, sigma=[0.5, 2.0], row=range(3, 6))
    assert {n: slider.value for n, slider in sliders(widget).items()} == {"sigma": 0.5, "row": 4}
    assert shown == [{"sigma": 0.5, "row": 4}]
    sliders(widget)["row"].value = 3
    assert shown[1:] == [{"sigma": 0.5, "row": 3}]


def test_a_start_without_a_slider_is_refused():
    with pytest.raises(ValueError, match=r"no slider: \['column'\].*\['row', 'sigma'\]"):
        explore(draw, start={"column": 1}, sigma=[0.5], row=[3])
