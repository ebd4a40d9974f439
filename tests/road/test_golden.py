"""The tensors that small inline runs end with, held by their sha256: rebuilding must not change what is learned.

`golden.json` keeps each recipe's changes beside the hashes. It is renewed on purpose, never silently:
`python tests/road/test_golden.py` (one core, inline) prints what is different and writes the file anew.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.cli import main

REPOSITORY = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).with_name("golden.json")


def machine() -> str:
    """What sums of floats depend on: another build or another instruction set rounds in another order."""
    return f"torch {torch.__version__.split('+')[0]}, {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def digest(file: Path) -> str:
    """sha256 over names, types, shapes and values of a safetensors file."""
    seen = hashlib.sha256()
    for name, tensor in sorted(load_file(file).items()):
        seen.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        seen.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return seen.hexdigest()


def run(case: dict[str, Any], folder: Path) -> dict[str, str]:
    """Train what a case names, inline on one thread; {training: sha256 of its final tensors}."""
    torch.set_num_threads(1)
    settings = [
        *case["set"],
        f"output={folder / 'runs'}",
        f"cache.root={folder / 'cache'}",
        "tracking.enabled=false",
    ]
    arguments = [argument for setting in settings for argument in ("--set", setting)]
    recipe = str(REPOSITORY / "recipes" / case["recipe"])
    assert (
        main(["compare", recipe, "--inline", "--methods", case["methods"], "--seeds", "1", *arguments]) == 0
    )
    found = {}
    for file in sorted(folder.glob(f"runs/{case['name']}/trainings/*/weights.safetensors")):
        label = file.parent.name.rpartition("-")[0]
        if label.split("-")[0] in {m.split("-")[0] for m in case["methods"].split(",")}:
            found[label] = digest(file)
    return found


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all cases: they share the cache, as a user's runs do."""
    return tmp_path_factory.mktemp("golden")


def _cases() -> list[Any]:
    """All of them; those of half a minute are for `make test-all`."""
    long = ("golden_aggregate", "golden_pisr", "golden_weighted")
    cases = json.loads(GOLDEN.read_text())["cases"]
    return [
        pytest.param(case, id=case["name"], marks=[pytest.mark.slow] if case["name"] in long else [])
        for case in cases
    ]


@pytest.mark.parametrize("case", _cases())
def test_same_tensors(case: dict[str, Any], workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = json.loads(GOLDEN.read_text())["machine"]
    if machine() != recorded:
        pytest.skip(f"recorded on {recorded}; this is {machine()}, which rounds in another order")
    monkeypatch.chdir(REPOSITORY)
    assert run(case, workplace) == case["sha256"]


def _renew() -> None:
    import os
    import tempfile

    os.chdir(REPOSITORY)
    content = json.loads(GOLDEN.read_text())
    with tempfile.TemporaryDirectory() as folder:
        for case in content["cases"]:
            found = run(case, Path(folder))
            for label, value in found.items():
                before = case.get("sha256", {}).get(label, "new")
                print(
                    f"{case['name']} {label}: {'same' if before == value else f'{before[:12]} -> {value[:12]}'}"
                )
            case["sha256"] = found
    content["machine"] = machine()
    GOLDEN.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(_renew())
