"""What the tuning script has stored is what chapter 11 prints."""

import json
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from locality.book import tuned

RESULTS = Path(__file__).resolve().parents[2] / "experiments" / "results"


def test_prints_and_returns_what_is_stored(capsys):
    found = tuned.mixtures(RESULTS)
    printed = capsys.readouterr().out
    for data, values in found.items():
        stored = json.loads((RESULTS / f"mixture-{data}.json").read_text())
        assert values["mixture"] == stored["methods"]["mixture"]["r2"]["mean"]
        assert f"{values['mixture + patches']:.2f}" in printed
        assert len(values["by rounds"]) >= 2 and 0 in values["by rounds"]
    tried = json.loads((RESULTS / "mixture-cifar10-gray.json").read_text())["tuning"]["tried"]
    assert found["cifar10-gray"]["by rounds"] == {t["rounds"]: t["r2"] for t in tried[:4]}


def test_results_of_another_network_are_refused(tmp_path):
    for path in RESULTS.glob("mixture-*.json"):
        shutil.copy(path, tmp_path)
    path = tmp_path / "mixture-mnist.json"
    stored = json.loads(path.read_text())
    stored["settings"]["network_sha256"] = "0" * 64
    path.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="mnist was chosen for another network"):
        tuned.mixtures(tmp_path)


def test_the_dial_is_drawn_from_what_is_stored(tmp_path):
    found = tuned.sharpness(RESULTS)
    figure = tuned.draw_sharpness(found)
    assert [axis.get_title() for axis in figure.axes] == list(found)
    for axis, report in zip(figure.axes, found.values(), strict=True):
        drawn = {tuple(point) for line in axis.lines[:-1] for point in line.get_xydata().tolist()}
        rows = [*report["tried"], report["rivals"][tuned.LOCAL]]
        assert drawn == {(row["r2"], row["frechet"]) for row in rows}
    plt.close(figure)
    for path in RESULTS.glob("sharpness-*.json"):
        shutil.copy(path, tmp_path)
    path = tmp_path / "sharpness-mnist.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"network_sha256": "0" * 64}))
    with pytest.raises(ValueError, match="mnist is for another network"):
        tuned.sharpness(tmp_path)
