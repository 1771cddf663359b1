"""Imports between the packages point one way."""

import ast
import graphlib
import importlib
import re
from pathlib import Path

import pytest

import sitenet

PACKAGE = Path(sitenet.__file__).parent
# Later rooms may import earlier ones. Rooms of one line do not import each other.
ORDER = [
    {"system"},
    {"config"},
    {"ops"},
    {"crystal"},
    {"data"},
    {"pairs"},
    {"model"},
    {"published"},
    {"inference"},
    {"training"},
    {"report", "estimator"},
    {"serve"},
    {"cli"},
]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
# The oracle is for tests and benches, and __main__ only starts the command line.
OUTSIDE = {"reference": {"config"}, "__main__": {"cli"}}


def imported_rooms(source: str) -> set[str]:
    """Rooms of sitenet that a module imports, also inside functions and for types alone."""
    rooms = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        rooms |= {n.split(".")[1] for n in names if n.startswith("sitenet.")}
    return rooms - {"_C", "__version__"}


def wrong_imports(room: str, source: str) -> list[str]:
    """Imports of a module in a room that point the wrong way."""
    if room in OUTSIDE:
        return sorted(imported_rooms(source) - OUTSIDE[room])
    allowed = {r for r, level in LEVEL.items() if level < LEVEL[room]} | {room}
    return sorted(imported_rooms(source) - allowed)


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts != ("__init__",):  # the public names, imported on first use
            yield pytest.param(parts[0], path, id=".".join(parts))


@pytest.mark.parametrize(("room", "path"), list(modules()))
def test_imports_point_one_way(room, path):
    source = path.read_text(encoding="utf-8")
    assert wrong_imports(room, source) == []


@pytest.mark.parametrize(
    ("room", "source", "wrong"),
    [
        ("crystal", "from sitenet.model.sitenet import SiteNet", ["model"]),
        ("model", "def f():\n    from sitenet.inference.predict import predict", ["inference"]),
        ("pairs", "import sitenet.training.train", ["training"]),
        ("inference", "from sitenet import cli", ["cli"]),
        ("training", "from sitenet import reference", ["reference"]),
        ("report", "from sitenet.inference.explain import explain", []),
        ("model", "import sitenet", []),
    ],
)
def test_a_wrong_import_is_found(room, source, wrong):
    assert wrong_imports(room, source) == wrong


def test_no_module_imports_itself_by_way_of_others():
    """Circles inside a room too, types aside."""
    names = {
        ".".join(("sitenet", *path.relative_to(PACKAGE).with_suffix("").parts)): path
        for path in PACKAGE.rglob("*.py")
    }
    graph = {name: runtime_imports(path) & set(names) - {name} for name, path in names.items()}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError with the circle


def runtime_imports(path: Path) -> set[str]:
    """Full names of the modules that a module imports when it runs."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    names = set()
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def imported_tests(path: Path) -> set[str]:
    """Imports of test modules, or of tests from other modules."""
    return {n for n in runtime_imports(path) if any(p.startswith("test_") for p in n.split("."))}


def test_no_test_imports_another(tmp_path):
    """What tests and benches share lives in tests/cases."""
    wrong = tmp_path / "wrong.py"
    wrong.write_text("import test_cif\ndef f():\n    from cases.test_cif import cif")
    assert imported_tests(wrong) == {"test_cif", "cases.test_cif", "cases.test_cif.cif"}
    tests = Path(__file__).parent
    files = [*tests.rglob("*.py"), *(tests.parent / "bench").rglob("*.py")]
    imports = {str(path): imported_tests(path) for path in files}
    assert {path: names for path, names in imports.items() if names} == {}


def test_conveniences_call_functions_of_the_root():
    """What ``import sitenet`` makes of ``sitenet.name`` inside a package is a public name, so that
    the table of the root is the only place that knows where it lives."""
    called = set()
    for path in PACKAGE.rglob("*.py"):
        if path.parent == PACKAGE and path.stem == "__init__":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        called |= {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "sitenet"
        }
    assert called <= {*sitenet._MODULE_OF, "__version__"}


def test_every_public_name_is_there():
    for name in sitenet.__all__:
        assert getattr(sitenet, name) is not None, name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = sitenet.nonsense


def test_types_and_first_use_agree():
    """What a type checker imports for each public name is what Python imports on first use."""
    text = (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    typed = {n: m for m, n in re.findall(r"    from sitenet\.(\S+) import (\w+) as", text)}
    assert typed == sitenet._MODULE_OF


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("sitenet.crystal", ["read_cif", "read_cifs", "Crystal", "CifError", "Limits"]),
        ("sitenet.pairs", ["find_pairs", "Pairs", "PairFinder", "pair_features"]),
        ("sitenet.model", ["SiteNet", "Target"]),
        ("sitenet.data", ["Dataset", "LeftOut", "Preparation", "Split", "read", "split"]),
        ("sitenet.report", ["crystal_report", "run_report"]),
        ("sitenet.config", ["SiteNetConfig", "TrainingConfig", "load_config"]),
    ],
)
def test_paths_that_version_0_1_documented_still_import(module, names):
    imported = importlib.import_module(module)
    assert [n for n in names if not hasattr(imported, n)] == []
