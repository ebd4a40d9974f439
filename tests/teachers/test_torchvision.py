"""spandrel opens checkpoints in a new process with any torchvision, broken or absent."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from teachers.spandrel_import import import_spandrel

LOAD = """
import sys, torch
{before}
from teachers.loading import load_teacher
teacher = load_teacher({path!r}, scale=2)
assert teacher.info.architecture == "Compact", teacher.info
lent = [name for name in sys.modules if name.startswith("torchvision")]
{after}
"""
BLOCKED = """
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torchvision":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""


@pytest.mark.parametrize("torchvision", ["absent", "broken", "working"])
def test_spandrel_opens_with_any_torchvision_in_a_new_process(
    tmp_path: Path, repository: Path, torchvision: str
) -> None:
    save_compact(tmp_path / "compact.pth")
    package = tmp_path / "site" / "torchvision"
    if torchvision != "absent":
        (package / "transforms").mkdir(parents=True)
        (package / "extension.py").write_text("loaded = True\n")
        body = "from torchvision import extension\n"
        if torchvision == "broken":
            body += "raise RuntimeError('operator torchvision::nms does not exist')\n"
        (package / "__init__.py").write_text(body)
        (package / "transforms" / "__init__.py").touch()
        (package / "transforms" / "functional.py").write_text(
            "InterpolationMode = rotate = normalize = None\n"
        )
    after = (
        "assert 'torchvision' in lent"
        if torchvision == "working"
        else "assert 'torchvision' not in lent, lent"
    )
    before = BLOCKED if torchvision == "absent" else ""
    code = LOAD.format(path=str(tmp_path / "compact.pth"), before=before, after=after)
    path = os.pathsep.join([str(tmp_path / "site"), str(repository)])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def save_compact(path: Path) -> None:
    import_spandrel()
    from spandrel.architectures.Compact import Compact

    torch.save({"params": Compact(num_feat=8, num_conv=1, upscale=2).state_dict()}, path)
