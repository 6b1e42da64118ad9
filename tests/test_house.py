"""How the project is built: dependencies point one way, the base is light, every version is pinned."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "mednca"

#: Modules of the core and what they may import besides the standard library.
CORE = {
    "fire": set(),
    "errors": set(),
    "rule": set(),
    "nca": {"torch", "mednca.fire", "mednca.rule"},
}
#: Modules that work, and are quick to import, without torch.
LIGHT = [
    *("errors", "files", "fire", "sentinel", "slices", "synthetic", "figures"),
    *("volume", "formats", "io", "cases", "doctor"),
    *("dicom", "join", "download"),
    *("metrics", "evaluate", "report", "perturb"),
    *("robustness", "robustness.contenders", "robustness.folder", "robustness.images", "robustness.report"),
    *("export", "calibrate", "bench", "bench.task", "bench.engines", "bench.measure", "bench.report"),
    *("trust", "trust.fit", "trust.report", "trust.table", "trust.traits", "commands.trust"),
    *("rule", "config", "fingerprint", "cost", "plan", "recipes", "dataset", "modelfile", "card", "cli"),
    *("commands", "commands.predict", "commands.models", "commands.data", "commands.train", "commands.bench"),
    *("nnunet", "commands.nnunet", "commands.plan", "commands.robustness"),
    *("backends", "backends.numpy", "backends.onnx", "signals", "predict", "segment", "machine"),
    *("engine", "engine.binding", "engine.arrays", "engine.threads", "engine.model"),
]
#: Modules that talk to a person; the others log.
SPEAKING = {"cli", "commands", "demo", "__main__"}


def module(name: str) -> ast.Module:
    """Name of a module of the package -> its syntax tree."""
    path = SOURCE / name.replace(".", "/")
    return ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text("utf-8"))


def imports(nodes: list[ast.stmt]) -> Iterator[str]:
    """Statements -> names of the modules that they import when run at import time.

    Function bodies run later, and what stands under TYPE_CHECKING never runs; both are left out.
    """
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute here"
            if node.module == "mednca":
                yield from (f"mednca.{alias.name}" for alias in node.names)
            else:
                yield node.module or ""
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from imports(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for name in ("body", "orelse", "finalbody"):
                yield from imports([n for n in getattr(node, name, []) if isinstance(n, ast.stmt)])
            for handler in getattr(node, "handlers", []):
                yield from imports(handler.body)


def everything_imported(tree: ast.Module) -> Iterator[str]:
    """Syntax tree -> names of all modules that are imported anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports([node])


@pytest.mark.parametrize("name", CORE)
def test_the_core_imports_only_what_it_may(name: str) -> None:
    for imported in everything_imported(module(name)):
        top = imported.split(".")[0]
        allowed = top in sys.stdlib_module_names or top in CORE[name] or imported in CORE[name]
        assert allowed, f"mednca.{name} must not import {imported}"


@pytest.mark.parametrize("name", LIGHT)
def test_a_light_module_does_not_import_torch_itself(name: str) -> None:
    found = {imported.split(".")[0] for imported in imports(module(name).body)}
    assert not found & {"torch", "tensorboard"}


def test_neither_the_package_nor_its_light_modules_load_torch() -> None:
    names = [f"mednca.{name}" for name in LIGHT]
    program = (
        "import importlib, sys\n"
        f"for name in ['mednca', *{names!r}]:\n"
        "    importlib.import_module(name)\n"
        "    if 'torch' in sys.modules: sys.exit(f'{name} loads torch')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nothing_in_the_package_imports_what_is_built_on_it() -> None:
    for path in SOURCE.rglob("*.py"):
        tops = {name.split(".")[0] for name in everything_imported(ast.parse(path.read_text("utf-8")))}
        assert not tops & {"tests", "benchmarks", "reproduce", "runtime", "pytest", "hypothesis"}, path.name


def test_only_the_command_line_prints() -> None:
    for path in SOURCE.rglob("*.py"):
        if path.relative_to(SOURCE).parts[0].removesuffix(".py") in SPEAKING:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            called = isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
            assert not called, f"{path.name}:{getattr(node, 'lineno', 0)} prints; use logging"


def test_nothing_is_ever_unpickled() -> None:
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        assert not {"pickle", "dill", "joblib"} & set(everything_imported(tree)), path.name
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
                assert safe, f"{path.name}:{node.lineno}: torch.load needs weights_only=True"


# -- dependencies


def pins() -> dict[str, str]:
    """Canonical names -> pinned versions of constraints.txt."""
    found = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([\w.-]+)==([\w.]+)(; .+)?", line)
            assert match, f"not an exact pin: {line}"
            found[canonicalize_name(match[1])] = match[2]
    return found


def declared() -> list[Requirement]:
    """Everything that pyproject.toml asks for, with all extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["dependencies"] + [
        r for extra in project["optional-dependencies"].values() for r in extra
    ]
    return [Requirement(line) for line in lines]


def test_every_version_is_pinned_also_of_what_the_dependencies_need() -> None:
    pinned, seen, open_ = pins(), set(), declared()
    environment = {**default_environment(), "extra": ""}
    while open_:
        requirement = open_.pop()
        name = canonicalize_name(requirement.name)
        applies = requirement.marker is None or requirement.marker.evaluate(environment)
        # A CUDA build of torch brings libraries for which it has exact pins of its own.
        if name in seen or not applies or name.startswith(("nvidia-", "cuda-", "triton")):
            continue
        assert name in pinned, f"{name} is missing in constraints.txt"
        seen.add(name)
        try:
            open_ += [Requirement(line) for line in requires(name) or []]
        except PackageNotFoundError:
            continue  # an extra that is not installed here


def test_every_pin_is_within_the_range_that_the_package_declares() -> None:
    pinned = pins()
    for requirement in declared():
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} excludes the pinned {version}"


def test_a_pin_names_no_local_build() -> None:
    assert not [version for version in pins().values() if "+" in version]
