"""The layering of the package: imports point down only, and the public surface is what `__init__` says."""

import ast
import subprocess
import sys
from pathlib import Path

import shadowpeft

SOURCE = Path(shadowpeft.__file__).parent
# From the ground up; a module may import those of lower layers and of its own.
LAYERS = [
    {"errors", "embedded", "settings"},
    {"config"},
    {"arch", "data"},
    {"ops", "decoder"},
    {"shadow", "losses"},
    {"storage", "reporting"},
    {"model"},
    {"evaluation", "export"},
    {"train", "trainer"},
    {"pretrain"},
    {"compare"},
    {"bench", "demo"},
    {"cli", "doctor"},
]


def imported(path: Path) -> set[str]:
    """Top-level modules of the package that a file imports, at module level or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            first, _, rest = node.module.partition(".")
            if first == "shadowpeft":
                names |= {rest.split(".")[0]} if rest else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {
                alias.name.split(".")[1] for alias in node.names if alias.name.startswith("shadowpeft.")
            }
    return names


def layer_of(module: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if module in layer)


def test_imports_point_down():
    """Catches a lower layer that reaches up, which makes the package one knot."""
    for path in sorted(SOURCE.rglob("*.py")):
        module = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if module in ("__init__", "__main__"):
            continue
        for name in imported(path) & set().union(*LAYERS):
            assert layer_of(name) <= layer_of(module), (
                f"{path.name} (layer of {module}) imports {name} from a higher layer"
            )


def test_every_module_has_a_layer():
    """Catches a new file that nobody placed."""
    modules = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in SOURCE.rglob("*.py")} - {
        "__init__",
        "__main__",
    }
    assert modules == set().union(*LAYERS)


def test_public_names_resolve():
    for name in shadowpeft.__all__:
        assert getattr(shadowpeft, name).__module__.startswith("shadowpeft")


def test_importing_the_package_does_not_import_torch():
    """Catches an eager import that makes every `--help` wait."""
    code = "import sys, shadowpeft; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_only_arch_looks_inside_models():
    """Catches guessing at model layouts outside the one table that knows them."""
    for path in sorted(SOURCE.rglob("*.py")):
        if path.parent == SOURCE / "arch" or path == SOURCE / "__init__.py":
            continue
        calls = [
            node.func.id
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        ]
        assert not {"getattr", "hasattr"} & set(calls), path.name
