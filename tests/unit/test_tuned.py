"""What the tuning script has stored is what chapter 11 prints."""

import json
import shutil
from pathlib import Path

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
