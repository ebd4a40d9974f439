"""The wheel, the lock, the Makefile, CI and the cluster file say what they should."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pipeline

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
LISTED = PROJECT["tool"]["setuptools"]["packages"]
ROOTS = sorted({package.split(".")[0] for package in LISTED})
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel built from a copy, so that nothing is left in the checkout."""
    copy = tmp_path_factory.mktemp("wheel") / "copy"
    anywhere = shutil.ignore_patterns("__pycache__", ".*", "*.egg-info")
    outputs = {"build", "dist", "runs", "cache", "mlruns"}  # of the checkout itself: pipeline/cache is code

    def unwanted(folder: str, names: list[str]) -> set[str]:
        return anywhere(folder, names) | (outputs if Path(folder) == REPOSITORY else set())

    shutil.copytree(REPOSITORY, copy, ignore=unwanted)
    command = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    out = copy.parent
    done = subprocess.run(
        [sys.executable, "-c", command, str(out)], cwd=copy, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return zipfile.ZipFile(out / done.stdout.splitlines()[-1])


def test_wheel_holds_every_module_and_no_test(wheel: zipfile.ZipFile) -> None:
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    written = {
        str(file.relative_to(REPOSITORY)) for root in ROOTS for file in (REPOSITORY / root).rglob("*.py")
    }
    assert {name for name in held if name.endswith(".py")} == written
    assert {name.split("/")[0] for name in held} == set(ROOTS)
    assert not {name for name in held if "test" in Path(name).name}


def test_wheel_holds_recipes_and_demo_assets(wheel: zipfile.ZipFile) -> None:
    held = set(wheel.namelist())
    data = [
        str(file.relative_to(REPOSITORY))
        for folder in ("recipes", "demo")
        for file in (REPOSITORY / folder).rglob("*")
        if file.suffix in {".yaml", ".png", ".jpg", ".safetensors"}
    ]
    assert "recipes/demo.yaml" in data
    assert held.issuperset(data), sorted(set(data) - held)


def test_wheel_names_its_command_licence_and_pythons(wheel: zipfile.ZipFile) -> None:
    folder = f"faculty-{pipeline.__version__}.dist-info"
    assert "faculty = pipeline.cli:main" in wheel.read(f"{folder}/entry_points.txt").decode()
    assert "The Faculty authors" in wheel.read(f"{folder}/licenses/LICENSE").decode()
    metadata = Parser().parsestr(wheel.read(f"{folder}/METADATA").decode())
    assert metadata["Requires-Python"] in ("<3.14,>=3.10", ">=3.10,<3.14")
    assert metadata["License-Expression"] == "Apache-2.0"


def test_changelog_is_about_this_version() -> None:
    heading = re.search(r"^## (\S+?),? ", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heading and heading[1] == pipeline.__version__


def locked(python: str) -> dict[str, list[str]]:
    """Versions that the lock gives each package on one Python, on x86-64 Linux."""
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
    }
    versions: dict[str, list[str]] = {}
    for line in (REPOSITORY / "requirements.lock").read_text().splitlines():
        if line and not line.startswith("#"):
            entry = Requirement(line)
            assert str(entry.specifier).startswith("=="), line
            if entry.marker is None or entry.marker.evaluate(environment):
                versions.setdefault(canonicalize_name(entry.name), []).append(str(entry.specifier)[2:])
    return versions


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_gives_one_fitting_version_of_each_dependency(python: str) -> None:
    versions = locked(python)
    assert not {name: found for name, found in versions.items() if len(found) > 1}
    extras = PROJECT["project"]["optional-dependencies"]
    for text in [*PROJECT["project"]["dependencies"], *extras["dev"]]:
        wanted = Requirement(text)
        assert wanted.specifier, f"{text}: no range"
        found = versions.get(canonicalize_name(wanted.name), ["nothing"])[0]
        assert found != "nothing" and wanted.specifier.contains(found), f"{text}: the lock has {found}"


def test_lock_leaves_out_what_must_not_be_pinned_and_names_no_registry() -> None:
    text = (REPOSITORY / "requirements.lock").read_text()
    names = set().union(*(locked(python) for python in PYTHONS))
    assert not {
        name for name in names if name.startswith(("nvidia-", "cuda-")) or name in {"torchvision", "triton"}
    }
    assert "://" not in text and not re.search(r"^-", text, re.MULTILINE)


def test_every_makefile_target_is_known_to_make() -> None:
    help_text = subprocess.run(
        ["make", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    targets = re.findall(r"^  make (\S+)", help_text, re.MULTILINE)
    assert {"run", "test", "bench", "check", "ui", "clean"} <= set(targets)
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=REPOSITORY, capture_output=True, check=True)


def test_ci_runs_the_checks_and_the_command_of_the_readme() -> None:
    script = REPOSITORY / ".ci" / "run"
    assert os.access(script, os.X_OK)
    commands = re.findall(r"^make \S+", script.read_text(), re.MULTILINE)
    assert commands == ["make check", "make test"]
    assert "make test" in (REPOSITORY / "README.md").read_text()


def prepared(config: dict) -> dict:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(config)
    validate_config(config)
    return config


@pytest.mark.ray
def test_cluster_file_holds_to_rays_schema() -> None:
    config = prepared(yaml.safe_load((REPOSITORY / "cluster.yaml").read_text()))
    head, stays, worker = (
        config["available_node_types"][name] for name in ("head", "gpu_worker", "gpu_spot")
    )
    assert config["head_node_type"] == "head" and head["max_workers"] == 0
    assert worker["min_workers"] == 0 < worker["max_workers"] <= config["max_workers"]
    assert worker["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert "InstanceMarketOptions" not in stays["node_config"] and stays["resources"]["on_demand"] == 1
    assert "on_demand" not in worker["resources"]
    assert config["idle_timeout_minutes"] == 10 and "." in config["file_mounts"].values()


def test_kubernetes_manifest_is_a_ray_job_with_autoscaled_gpu_workers() -> None:
    job = yaml.safe_load((REPOSITORY / "docs" / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    command = job["spec"]["entrypoint"].split()
    cluster = job["spec"]["rayClusterSpec"]
    assert command[:2] == ["faculty", "run"] and (REPOSITORY / command[2]).is_file()
    locked_ray = locked("3.12")["ray"][0]
    assert cluster["rayVersion"] == locked_ray
    head = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    (group,) = cluster["workerGroupSpecs"]
    worker = group["template"]["spec"]["containers"][0]
    assert cluster["enableInTreeAutoscaling"] and group["minReplicas"] == 0 < group["maxReplicas"]
    assert head["image"] == worker["image"] and worker["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in head["resources"]["limits"]
    kept = {e["name"]: e["value"] for e in worker["env"]}
    limit = float(group["template"]["spec"]["volumes"][0]["emptyDir"]["sizeLimit"].removesuffix("Gi")) * 2**30
    assert kept["FACULTY_NODE_CACHE"] == worker["volumeMounts"][0]["mountPath"]
    assert float(kept["FACULTY_NODE_CACHE_GB"]) * 1e9 < limit


@pytest.mark.ray
def test_on_premise_variant_in_the_comment_holds_too() -> None:
    before, rest = (REPOSITORY / "cluster.yaml").read_text().split("max_workers:", 1)
    comment, after = rest.split("# -- on premise\n")[1].split("# -- end\n")
    text = before + re.sub(r"^# ", "", comment, flags=re.MULTILINE) + after
    config = prepared(yaml.safe_load(text))
    assert [kind["max_workers"] for kind in config["available_node_types"].values()] == [2]


@pytest.mark.ray
def test_a_wrong_key_in_the_cluster_file_is_refused() -> None:
    from jsonschema import ValidationError

    config = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())
    with pytest.raises(ValidationError):
        prepared({**config, "max_wokers": 3})
