"""What the README and the metadata promise holds: its code runs, its commands and address exist."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_the_code_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
        promised = re.findall(r"print\(.*\)  # (.*)", block)
        assert capsys.readouterr().out.splitlines() == promised


def test_the_commands_exist():
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
    named = set(re.findall(r"make ([a-z]+)\b", "\n".join(re.findall(r"`[^`]+`", README))))
    assert named
    assert named <= targets


def test_one_address_of_the_repository():
    url = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["repository-code"] == url


def test_the_lock_holds_what_is_asked_for():
    def names(file: str) -> set[str]:
        lines = (ROOT / file).read_text().splitlines()
        found = {re.split(r"[=<>; ]", line, maxsplit=1)[0].lower() for line in lines}
        return {name for name in found if name and not name.startswith(("#", "-"))}

    locked = names("requirements.lock")
    assert names("requirements.txt") <= locked
    assert not {name for name in locked if name.startswith(("nvidia", "cuda", "triton"))}
