"""The page that goes with a student: what it is, what it learned from, how good it is and how to open it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import students
from pipeline.cache.store import Store
from pipeline.cost import multiply_adds, parameters
from pipeline.deploy.export import StudentInfo
from pipeline.report.table import figure

MADE = "Made with Faculty."
"""In every card: by it a later export knows that it may replace the page."""
COST_SIDE = 48
"""LR pixels a side of the picture for which multiply-adds are given."""
_HEADS = {"images": "pictures", "psnr_y": "PSNR (dB)", "ssim_y": "SSIM", "exact": "not in the PSNR (exact)"}
_SHOWN = ("method", "teachers", "metrics", "protocol")


def model_card(path: str | Path, info: StudentInfo, files: Sequence[tuple[str, str, str]] = ()) -> None:
    """Write the card as Markdown, in one piece. `files`: (name, size, loss) of what lies beside it.

    Of `info.facts` it sets `teachers` ({name: sha256}), `metrics` ({set: {metric: value}}), `method` and `protocol`;
    every other fact is listed as it is.
    """
    path = Path(path)
    Store.open(path.parent).write_bytes(path.name, card(info, files).encode())


def _does(scale: int) -> str:
    return f"enlarges pictures {scale} times" if scale > 1 else "restores pictures"


def _size(scale: int) -> str:
    return f"the same, {scale} times as high and wide" if scale > 1 else "the same, of the same size"


def card(info: StudentInfo, files: Sequence[tuple[str, str, str]] = ()) -> str:
    """Return the card's text."""
    net = students.deployed(students.build(info.architecture, info.scale, **info.options)).eval()
    facts = info.facts
    taught = f", trained by the method `{facts['method']}`" if "method" in facts else ""
    options = {**_defaults(info.architecture), **info.options}
    shape = (1, 3, COST_SIDE, COST_SIDE)
    parts = [
        f"# {info.architecture} x{info.scale}",
        f"A network that {_does(info.scale)}{taught}. {MADE}",
        _table(
            ("", ""),
            [
                ("architecture", f"`{info.architecture}`"),
                ("options", ", ".join(f"{key} = {_plain(value)}" for key, value in options.items())),
                ("parameters", f"{parameters(net):,}"),
                (f"multiply-adds for {COST_SIDE}x{COST_SIDE} pixels", f"{multiply_adds(net, shape):,}"),
                ("input", "RGB, float in [0, 1], (batch, 3, height, width), any size"),
                ("output", f"{_size(info.scale)}, not clamped"),
            ],
        ),
    ]
    if teachers := facts.get("teachers"):
        rows = teachers.items() if isinstance(teachers, Mapping) else [(name, "") for name in teachers]
        parts += ["## Teachers", _table(("teacher", "SHA-256 of its weights"), list(rows))]
    if metrics := facts.get("metrics"):
        names = list(dict.fromkeys(name for values in metrics.values() for name in values))
        rows = [
            (dataset, *(_number(values.get(name)) for name in names)) for dataset, values in metrics.items()
        ]
        parts += ["## Results", _table(("set", *(_HEADS.get(name, name) for name in names)), rows)]
        if "protocol" in facts:
            parts.append(f"Measured on {facts['protocol']}.")
    if files:
        parts += [
            "## Files",
            _table(("file", "size", "loss against the student in PyTorch, float32"), list(files)),
        ]
    parts += ["## Open it", _usage(any(name.endswith(".pth") for name, *_ in files))]
    if rest := {key: value for key, value in facts.items() if key not in _SHOWN}:
        parts += [
            "## Where it comes from",
            _table(("", ""), [(key, _plain(value)) for key, value in rest.items()]),
        ]
    parts.append(
        "Before you publish these weights, look at the terms of the teachers and of the pictures they were trained on."
    )
    return "\n\n".join(parts) + "\n"


def _usage(pth: bool) -> str:
    chainner = "\n- chaiNNer, or anything built on spandrel: open the `.pth` file." * pth
    return f"""\
- A folder of pictures: `faculty upscale PICTURES OUT --student FILE` with the `.safetensors` or `.onnx` file.{chainner}
- ONNX Runtime, in Python:

  ```python
  session = onnxruntime.InferenceSession("FILE.onnx")
  (sr,) = session.run(None, {{"lr": lr}})  # lr: float32 (batch, 3, height, width)
  ```

- PyTorch:

  ```python
  from pipeline.deploy.export import load_student

  model, info = load_student("FILE.safetensors")
  sr = model(lr).clamp(0, 1)
  ```"""


def _defaults(architecture: str) -> dict[str, Any]:
    return {} if architecture.startswith("spandrel:") else students.options(architecture)


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _number(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return figure(value, 4) if isinstance(value, float) else "" if value is None else str(value)


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    cells = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in cells)
