"""A module imports only from those below it."""

import ast
import functools
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
# From the ground up; what stands in one line knows nothing of each other.
LAYERS = """
shown
errors launchers architecture seeds garbage
chat documents files config
columns records compose
machine storage leases blocks
locks
markers recordlog
run
plan
hub models tracking
restarts
digests
manifest
engines
society
dataset
training
evaluation
stages report
work
cluster bench
launch
commands
__main__
""".split("\n")


def modules() -> dict[str, Path]:
    found = {}
    for path in (ROOT / "salign").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


@functools.cache
def import_statements(path: Path) -> list[ast.Import | ast.ImportFrom]:
    """Wherever in the module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def imported(path: Path, there: dict[str, Path]) -> set[str]:
    """Modules of salign that one imports."""
    names = set()
    for node in import_statements(path):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "salign":
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            names |= {name if name in there else node.module for name in full}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.split(".")[0] == "salign"}
    return names - {"salign"}


def test_every_part_of_the_package_imports_only_from_those_below_it():
    place = {name: number for number, layer in enumerate(LAYERS) for name in layer.split()}
    there = modules()
    parts = {name.split(".")[1] for name in there if "." in name}
    assert parts == set(place), "a part of the package has no layer"
    upward = [
        f"{name} imports {other}"
        for name, path in there.items()
        if "." in name
        for other in imported(path, there)
        if other.split(".")[1] != name.split(".")[1] and place[other.split(".")[1]] >= place[name.split(".")[1]]
    ]
    assert not upward


def test_no_modules_import_each_other_in_a_circle():
    there = modules()
    graph = {name: imported(path, there) & set(there) - {name} for name, path in there.items()}
    list(TopologicalSorter(graph).static_order())  # CycleError names the circle


def test_no_module_is_longer_than_can_be_held_in_mind():
    assert {str(p): n for p in (ROOT / "salign").rglob("*.py") if (n := len(p.read_text().splitlines())) > 400} == {}
