"""The wall between the core (plain Python, torch, pyarrow) and the engine, the only place for ray and mlflow.

The core must run in one process with no cluster, and the command must not wait for packages it does not need.
The same walk over the sources holds the rules on checkpoints: no pickles, no silent partial loads.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("pipeline", "teachers", "students", "tune_spaces")
ENGINE = {REPOSITORY / "pipeline" / "engine", REPOSITORY / "pipeline" / "cli"}
ENGINE_ONLY = {"ray", "mlflow"}
ON_DEMAND = {
    "spandrel",
    "torchvision",
    "matplotlib",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "optuna",
    "boto3",
    "moto",
    "timm",
    "sklearn",
}
UNPICKLERS = {"torch.jit.load", "pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load"}

CODE = sorted(file for package in PACKAGES for file in (REPOSITORY / package).rglob("*.py"))
CORE = [file for file in CODE if not ENGINE & set(file.parents)]
COMMAND = sorted((REPOSITORY / "pipeline" / "cli").rglob("*.py"))


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Top-level name and line of every import in a file, those inside functions and by name included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0], node.lineno
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            name = ast.literal_eval(node.args[0]) if isinstance(node.args[0], ast.Constant) else ""
            yield name.split(".")[0], node.lineno


def unsafe(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """What and where a file reads pickled code or accepts a state dict that does not fit."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            options = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if name == "torch.load" and options.get("weights_only") != "True":
                yield "torch.load without weights_only=True", node.lineno
            if name in UNPICKLERS:
                yield name, node.lineno
            if name.endswith("load_state_dict") and options.get("strict") == "False":
                yield "load_state_dict(strict=False)", node.lineno


def module_name(file: Path) -> str:
    parts = file.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_core_names_neither_ray_nor_mlflow() -> None:
    found = [
        f"{file.relative_to(REPOSITORY)}:{line} imports {name}"
        for file in CORE
        for name, line in imported(ast.parse(file.read_text()))
        if name in ENGINE_ONLY
    ]
    assert CORE and not found, "\n".join(found)


def test_importing_core_and_command_loads_neither_ray_nor_mlflow_nor_what_few_need() -> None:
    script = """
import importlib, json, sys
modules, unwanted = json.loads(sys.stdin.read())
seen, blame = set(), {}
for module in modules:
    importlib.import_module(module)
    for name in sorted((set(unwanted) & set(sys.modules)) - seen):
        seen.add(name)
        blame[name] = module
print(json.dumps(blame))
"""
    modules = [module_name(file) for file in [*CORE, *COMMAND]]
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps([modules, sorted(ENGINE_ONLY | ON_DEMAND)]),
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    blame = json.loads(done.stdout.splitlines()[-1])
    assert not blame, f"loaded too early, by package: {blame}"


def test_no_pickles_and_no_partial_loads() -> None:
    found = [
        f"{file.relative_to(REPOSITORY)}:{line} {what}"
        for file in CODE
        for what, line in unsafe(ast.parse(file.read_text()))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import ray.train", "ray"),
        ("def late():\n    from mlflow import log_metric", "mlflow"),
        ("importlib.import_module('ray.tune')", "ray"),
    ],
)
def test_the_walk_sees_every_kind_of_import(source: str, name: str) -> None:
    assert name in {found for found, _ in imported(ast.parse(source))}


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "pickle.loads(data)",
        "net.load_state_dict(state, strict=False)",
    ],
)
def test_the_walk_sees_unsafe_loads(source: str) -> None:
    assert list(unsafe(ast.parse(source)))


def test_the_walk_accepts_safe_loads() -> None:
    assert not list(unsafe(ast.parse("net.load_state_dict(torch.load(path, weights_only=True))")))
