"""Rules that hold for every file: what it may import, that it says what it is."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "lib" / "locality"
# Data flows one way. A module may import those of its own layer and of the layers before.
LAYERS = [
    {"data", "schedule", "shapes"},
    {"stats"},
    {"denoisers", "networks"},
    {"distributed", "training", "zoo"},
    {"sampling", "sensitivity"},
    {"metrics"},
    {"scoreboard"},
    {"cli", "__main__"},
    {"book"},
]
ORDER = {room: number for number, layer in enumerate(LAYERS) for room in layer}
MODULES = sorted(path.relative_to(LIBRARY) for path in LIBRARY.rglob("*.py"))
FOLDERS = ["lib", "scripts", "tests", "benchmarks", "experiments", "book"]
FILES = sorted(
    path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")
)


def room(module: Path) -> str:
    """Return the name right under the package: `denoisers` for denoisers/wiener.py."""
    return module.parts[0].removesuffix(".py")


def imported_rooms(module: Path) -> set[str]:
    """Return the rooms of the package that a module imports, anywhere in its code."""
    package = ["locality", *module.with_suffix("").parts[:-1]]
    names = []
    for node in ast.walk(ast.parse((LIBRARY / module).read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            names += [f"{start}.{alias.name}" for alias in node.names]
    parts = [name.split(".") for name in names]
    return {p[1] for p in parts if p[0] == "locality" and len(p) > 1}


def test_every_room_has_a_place():
    rooms = {room(module) for module in MODULES} - {"__init__"}
    assert rooms <= set(ORDER), "give the new module a layer"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_no_module_imports_a_later_one(module):
    if room(module) == "__init__":
        return  # the front door may show every room
    known = imported_rooms(module) & set(ORDER)
    later = sorted(other for other in known if ORDER[other] > ORDER[room(module)])
    assert later == [], f"{module} imports a later room"


def test_the_import_rule_can_fail(tmp_path, monkeypatch):
    (tmp_path / "data.py").write_text("from .stats import PCA\nimport locality.metrics\n")
    monkeypatch.setitem(globals(), "LIBRARY", tmp_path)
    assert imported_rooms(Path("data.py")) == {"stats", "metrics"}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_file_says_what_it_is(path):
    docstring = ast.get_docstring(ast.parse((ROOT / path).read_text()))
    assert docstring, f"{path} does not start with a paragraph that says what it is"


def test_no_pickle_is_loaded():
    forbidden = ("pickle", "joblib", "dill", "shelve", "marshal")
    found = []
    for module in MODULES:
        for node in ast.walk(ast.parse((LIBRARY / module).read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                found += [f"{module}: {n}" for n in names if n.split(".")[0] in forbidden]
            elif isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load":
                found.append(f"{module}: torch.load")
    assert found == []
