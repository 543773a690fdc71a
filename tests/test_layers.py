"""The layering of the package: imports point down only, folders say what they are, and tests mirror them."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import shadowpeft

SOURCE = Path(shadowpeft.__file__).parent
TESTS = Path(__file__).parent
# From the ground up; a module may import those of lower layers and of its own. Folders that are yet to come
# have their place: `integrations` above `train`.
LAYERS = [
    {"errors", "checked_fields", "embedded"},
    {"config"},
    {"arch", "data"},
    {"ops", "decoder"},
    {"shadow", "losses", "generate"},
    {"storage", "reporting"},
    {"route"},
    {"model"},
    {"evaluation", "export"},
    {"train", "trainer"},
    {"pretrain"},
    {"compare"},
    {"bench", "demo", "serve"},
    {"simulate"},
    {"cli", "doctor"},
]
# Modules whose tests stand elsewhere, and why.
MIRRORED_ELSEWHERE = {
    "arch/family.py": "a row of the table; the tests of every family read it",
    "cli/_choice.py": "names and a dataclass without behaviour; test__models.py runs the verbs that fill it",
    "compare/tasks/base.py": "dataclasses without behaviour; the tests of every task build them",
    "demo/settings.py": "numbers that recipes/demo_settings chose",
    "simulate/cloud.py": "calls of a robot; test_fleet.py has robots that make them",
    "serve/backend.py": "dataclasses without behaviour; the tests of every backend build them",
    "serve/errors.py": "statuses and bodies; test_app.py reads them with OpenAI's client",
    "serve/metrics.py": "counts; test_app.py reads them as Prometheus does",
    "serve/pumps.py": "several answers at once; test_app.py asks for them",
    "serve/roles.py": "roles from settings; test_run.py builds them",
    "serve/sse.py": "what servers elsewhere send; test_upstream.py has one that sends it",
    "serve/worker.py": "the thread of a model; test_local.py has models that answer, wait, stop and fail",
    "export/gguf_families.py": "a table; the exports of test_llama_cpp.py read every row of it",
    "trainer.py": "one import; test_public_names_resolve",
}
# Test files in the folder of one module that are about several, and what about.
TOPICS = {
    "cli/test_families.py": "every family and every kind of multimodal model, through all verbs",
    "export/test_llama_cpp.py": "exported files in llama.cpp",
    "export/test_onnxruntime.py": "exported folders in ONNX Runtime",
    "export/test_vllm.py": "exported folders in vLLM",
    "model/test_compiled_families.py": "a compiled step of every family",
    "model/test_heads_classifier.py": "classifiers, beside the language models of test_heads.py",
    "model/test_lean_losses.py": "losses without logits, through the model",
    "model/test_multimodal.py": "multimodal bases, from attach to unload",
    "model/test_types.py": "types of weights and results, through the model",
    "model/test_quantised.py": "quantised bases, from attach to detach",
    "serve/test_fuzz.py": "bodies that a fuzzer makes from the OpenAPI description",
    "serve/test_llama_cpp.py": "a real llama.cpp at the edge",
    "train/test_compile.py": "training steps under torch.compile",
    "train/test_lower_blocks.py": "blocks below the first boundary in training",
    "train/test_packing.py": "packed rows, from the examples to the loss",
    "train/test_shadow_trainer.py": "ShadowTrainer from Python, beside the command line of test_trainer.py",
    "train/test_trl.py": "TRL's trainers on a shadowed model",
}
# Where a field is read by its name, and why that cannot be avoided.
READ_BY_NAME = {
    "checked_fields.py": "checks every field of any class of settings",
    "bench/snapshot.py": "takes attributes off a model that a library put there",
    "compare/study.py": "checks fields by name",
    "export/gguf_layout.py": "fields of a configuration by the names in its table",
    "decoder/loan.py": "lends and gives back the attributes of a module, which has no other way to them",
}

MODULES = sorted(SOURCE.rglob("*.py"))
FOLDERS = sorted({path.parent for path in MODULES} - {SOURCE})


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def top_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def nodes_of(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def imported(path: Path) -> set[str]:
    """Top-level modules of the package that a file imports, at module level or inside a function."""
    names = set()
    for node in nodes_of(path):
        if isinstance(node, ast.ImportFrom) and node.module:
            first, _, rest = node.module.partition(".")
            if first == "shadowpeft":
                names |= {rest.split(".")[0]} if rest else {home_of(alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {part.name.split(".")[1] for part in node.names if part.name.startswith("shadowpeft.")}
    return names & set().union(*LAYERS)


def home_of(name: str) -> str:
    """The module behind a public name, which the package imports for whoever asks; else the name itself."""
    if name in shadowpeft.__all__:
        return shadowpeft._HOMES.get(name, "errors")
    return name


def imports_between_folders() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for path in MODULES:
        if top_of(path) not in ("__init__", "__main__"):
            graph.setdefault(top_of(path), set()).update(imported(path) - {top_of(path)})
    return graph


def layer_of(module: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if module in layer)


# Imports


def test_imports_point_down():
    """Catches a lower layer that reaches up, which makes the package one knot."""
    for module, names in imports_between_folders().items():
        for name in names:
            assert layer_of(name) <= layer_of(module), f"{module} imports {name} from a higher layer"


def test_every_module_has_one_layer():
    """Catches a new file that nobody placed, and a folder that stands in two layers."""
    modules = {top_of(path) for path in MODULES} - {"__init__", "__main__"}
    placed = sorted(name for layer in LAYERS for name in layer)
    assert placed == sorted(modules)


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """The names along one circle of imports; empty if there is none."""
    finished: set[str] = set()

    def walk(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in finished:
            return []
        for other in sorted(graph.get(name, ())):
            if found := walk(other, [*way, name]):
                return found
        finished.add(name)
        return []

    return next((found for name in sorted(graph) if (found := walk(name, []))), [])


def test_imports_make_no_circle():
    """Catches two folders of one layer that import each other, also through a third one."""
    assert circle_in(imports_between_folders()) == []


def test_a_circle_would_be_found():
    """Catches a search that stops too early."""
    assert circle_in({"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}) == ["b", "d", "b"]
    assert circle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


# The public surface


def test_public_names_resolve():
    for name in shadowpeft.__all__:
        assert getattr(shadowpeft, name).__module__.startswith("shadowpeft")


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'ShadowTrainor'"):
        _ = shadowpeft.ShadowTrainor


def test_importing_the_package_does_not_import_torch():
    """Catches an eager import that makes every `--help` wait."""
    code = "import sys, shadowpeft; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Folders and their tests


def has_functions(path: Path) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree.body)


def mirror_of(path: Path) -> Path:
    stem = path.stem.replace("__init__", "init")
    return TESTS / path.parent.relative_to(SOURCE) / f"test_{stem}.py"


def modules_to_mirror() -> list[Path]:
    """Every module but the package's own surface, which is tested here, and `__init__` that only imports."""
    surface = {SOURCE / "__init__.py", SOURCE / "__main__.py"}
    return [
        path for path in MODULES if path not in surface and (path.stem != "__init__" or has_functions(path))
    ]


def test_every_module_has_its_test_file():
    """Catches a module whose tests a reader would have to search for."""
    missing = [
        name_of(path)
        for path in modules_to_mirror()
        if not mirror_of(path).is_file() and name_of(path) not in MIRRORED_ELSEWHERE
    ]
    assert missing == []


def test_the_list_of_tests_elsewhere_is_needed():
    """Catches an entry that stays although its module is gone or has a test file now."""
    expected = {name_of(path) for path in modules_to_mirror() if not mirror_of(path).is_file()}
    assert set(MIRRORED_ELSEWHERE) - expected == set()


def test_every_test_file_has_its_module():
    """Catches a test file that keeps its name when its module moves, and a topic that is gone."""
    mirrors = {mirror_of(path) for path in MODULES}
    folders = {TESTS / folder.relative_to(SOURCE) for folder in FOLDERS}
    alone = {path for folder in folders for path in folder.glob("test_*.py")} - mirrors
    assert {path.relative_to(TESTS).as_posix() for path in alone} == set(TOPICS)


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_folders_say_who_lives_there(folder):
    """Catches a folder whose `__init__` does not say what it is for and what it may import."""
    described = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    ends = [word for word in described.split() if word.endswith((".", ".`", ".)"))]
    assert len(ends) >= 2
    assert re.search(r"\b[Ii]mports? ", described)


# Attributes by name


def test_only_arch_looks_inside_models():
    """Catches guessing at model layouts outside the one table that knows them."""
    for path in MODULES:
        if path.parent == SOURCE / "arch" or path == SOURCE / "__init__.py":
            continue
        calls = {
            node.func.id
            for node in nodes_of(path)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not {"getattr", "hasattr"} & calls, name_of(path)


def reads_by_name(node: ast.AST) -> bool:
    """Return whether a node is `vars(x)[name]` or `x.__dict__[name]`: `getattr` by another name."""
    if not isinstance(node, ast.Subscript):
        return False
    read = node.value
    if isinstance(read, ast.Attribute):
        return read.attr == "__dict__"
    return isinstance(read, ast.Call) and isinstance(read.func, ast.Name) and read.func.id == "vars"


def test_fields_are_read_by_type():
    """Catches `vars(x)[name]` where `x.name` would let a type checker read along."""
    found = {name_of(path) for path in MODULES if any(map(reads_by_name, nodes_of(path)))}
    assert found == set(READ_BY_NAME)


def test_reading_by_name_would_be_found():
    texts = ["vars(x)['a']", "x.__dict__[name]", "vars(x).get('a')", "x['vars']"]
    found = [any(map(reads_by_name, ast.walk(ast.parse(text)))) for text in texts]
    assert found == [True, True, False, False]


# Text of files


def opens_in_locale(node: ast.AST) -> bool:
    """Return whether a call opens text in the encoding of the locale, so that it differs between machines."""
    if not isinstance(node, ast.Call) or any(word.arg == "encoding" for word in node.keywords):
        return False
    words = {word.arg for word in node.keywords}
    if isinstance(node.func, ast.Attribute):
        name, method = node.func.attr, True
    else:
        name, method = ast.unparse(node.func), False
    if name in ("read_text", "write_text"):
        return method and len(node.args) == (name == "write_text")
    if name in ("run", "Popen", "check_output"):
        return "text" in words
    if name != "open" or (method and ast.unparse(node.func).partition(".")[0] in ("os", "Image", "tarfile")):
        return False
    # The mode is the second argument of a function, the first of a path's method.
    owner = ast.unparse(node.func).partition(".")[0]
    modes = node.args[0 if method and owner != "gzip" else 1 :][:1]
    modes += [word.value for word in node.keywords if word.arg == "mode"]
    mode = modes[0].value if modes and isinstance(modes[0], ast.Constant) else "r" * (not modes)
    binary = "b" in str(mode) or (owner == "gzip" and "t" not in str(mode))
    return bool(mode) and not binary


def test_every_file_of_text_is_opened_as_utf8():
    """Catches a file that is read or written in another encoding where the locale is not UTF-8."""
    root = TESTS.parent
    found = [
        f"{path.relative_to(root)}:{node.lineno}"
        for folder in ("src", "docs", "recipes", "tests")
        for path in sorted((root / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if opens_in_locale(node)
    ]
    assert found == []


def test_opening_in_the_locale_would_be_found():
    texts = ["p.read_text()", "open(p)", "open(p, 'rb')", "p.open('w')", "gzip.open(p)", "run(w, text=True)"]
    found = [any(map(opens_in_locale, ast.walk(ast.parse(text)))) for text in texts]
    assert found == [True, True, False, True, False, True]
