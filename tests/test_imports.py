"""A module imports only from those below it."""

import ast
import functools
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
# From the ground up; what stands in one line knows nothing of each other.
LAYERS = """
shown
errors launchers architecture seeds garbage calibration gpus
command_line
chat documents files config
columns records compose
machine storage leases blocks
locks logfiles
recordindex
markers recordlog arrays
run
plan
cache
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
cluster
launch
bench
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


OWN = ("self", "cls")
# Of other libraries, and of named tuples.
THEIRS = {"_attn_implementation", "_encode_pair", "_loglikelihood_tokens", "_compile_jinja_template", "_replace"}
THEIRS |= {"_asdict", "_fields", "_exit", "_index"}


def private_names(path: Path) -> list[str]:
    """Names with an underscore before them that a test takes from elsewhere: imported, of an object, or replaced."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id in OWN):
            names = [] if isinstance(node.value, ast.Call) else [node.attr]  # super()
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr":
            names = [str(word.value).rpartition(".")[2] for word in node.args if isinstance(word, ast.Constant)]
        else:
            names = []
        found += [name for name in names if name[:1] == "_" != name[1:2] and name not in THEIRS]
    return found


def test_no_test_takes_a_private_name():
    taken = {str(path): names for path in (ROOT / "tests").rglob("*.py") if (names := private_names(path))}
    assert not taken, "test through what is public, or make public what is relied on"


def test_no_two_files_of_tests_have_one_name():
    """Pytest imports them by it, and would collect neither."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names))
