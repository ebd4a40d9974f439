"""What a recognition student leaves as: safetensors, ONNX and a page that says what it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline.cost import multiply_adds, parameters
from pipeline.deploy.export import read_network, require_parity, write_whole
from pipeline.deploy.onnx_file import Run, onnx_file
from pipeline.deploy.shipping import attempt
from pipeline.errors import InputError, reason
from pipeline.tasks.recognition.networks import Recogniser
from pipeline.tasks.recognition.recipe import Network
from pipeline.tasks.recognition.showing import LR

if TYPE_CHECKING:
    from pipeline.tasks.recognition.task import RecognitionTask

OUTPUTS = ("logits", "embedding")
KIND = "a recognition network's .safetensors file"
EXPECTED = "tensors and metadata of one recognition network"


class _Plain(nn.Module):
    """Outputs as a tuple, which is what ONNX has."""

    def __init__(self, net: Recogniser) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        out = self.net(x)
        return tuple(out[name] for name in OUTPUTS)


def rebuilt(
    task: RecognitionTask, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], where: str
) -> Recogniser:
    """The network of a file that a run wrote, in evaluation mode. Raises InputError for a foreign file."""
    try:
        network = Network(name=facts["architecture"], options=facts["options"], embedding=facts["embedding"])
        height, width = facts["size"]
        net = task.build(network, (height, width), facts["classes"])
        net.load_state_dict(tensors)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(where, EXPECTED, reason(error)) from None
    return net.eval()


def export_onnx(net: Recogniser, path: str | Path, size: tuple[int, int], facts: Mapping[str, Any]) -> float:
    """Write `net` as ONNX: `picture` (batch, 3, h, w) RGB in [0, 1] of `size` -> `logits`, `embedding`.

    Returns the largest difference between ONNX Runtime and the network, relative to the values where these leave
    [-1, 1]. Raises FacultyError, and writes nothing, where it exceeds 1e-4.
    """
    model = _Plain(net).cpu().float().eval()
    examples = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def compare(run: Run) -> float:
        largest = 0.0
        for x in (examples, examples[:1]):
            for found, expected in zip(run(x), model(x)):
                scale = expected.abs().max().clamp(min=1)
                largest = max(largest, ((found - expected).abs().max() / scale).item())
        return largest

    axes = {0: torch.export.Dim.DYNAMIC}
    data, difference = onnx_file(model, examples, axes, "picture", OUTPUTS, facts, path, compare)
    require_parity(path, "ONNX Runtime", difference)
    write_whole(path, data)
    return difference


def export_recogniser(
    task: RecognitionTask,
    source: Path,
    out: Path,
    set_name: str,
    scores: Mapping[str, float],
    classes: tuple[str, ...],
) -> tuple[dict[str, Path], dict[str, str]]:
    """Write a trained network's file again, with ONNX and its page, into `out`.

    `scores` are its figures on the test pictures of `set_name`, `classes` the names of the classes in the order of
    its logits. Returns ({kind: path}, {kind that could not be written: why}).
    """
    tensors, facts = read_network(source, KIND)
    net = rebuilt(task, tensors, facts, str(source))
    out.mkdir(parents=True, exist_ok=True)
    stem = file_stem(facts["architecture"], facts["gap"])
    paths = {
        "safetensors": out / f"{stem}.safetensors",
        "onnx": out / f"{stem}.onnx",
        "card": out / "README.md",
    }
    write_whole(paths["safetensors"], Path(source).read_bytes())
    missing = {}
    if why := attempt(lambda: export_onnx(net, paths["onnx"], tuple(facts["size"]), facts)):
        missing["onnx"] = why.removeprefix(f"{paths.pop('onnx')}: ")
    write_whole(paths["card"], card(task, net, facts, set_name, scores, classes).encode())
    return paths, missing


def file_stem(network: str, gap: int) -> str:
    """How the files of a student are called."""
    return f"{re.sub(r'[^A-Za-z0-9._-]', '-', network)}_x{gap}"


def card(
    task: RecognitionTask,
    net: Recogniser,
    facts: Mapping[str, Any],
    set_name: str,
    scores: Mapping[str, float],
    classes: tuple[str, ...],
) -> str:
    """The page as Markdown."""
    height, width = facts["size"]
    stem = file_stem(facts["architecture"], facts["gap"])
    rows = [
        ("task", facts["task"]),
        ("trained by", f"`{facts['method']}`, seed {facts['seed']}"),
        ("parameters", f"{parameters(net):,}"),
        ("multiply-adds a picture", f"{multiply_adds(net, (1, 3, height, width)):,}"),
        ("input", f"RGB, float in [0, 1], (batch, 3, {height}, {width}){_lr(facts)}"),
        (
            "`logits`",
            task.logits,
        ),
        ("`embedding`", f"(batch, {facts['embedding']}), to be compared by cosine"),
    ]
    figures = "\n".join(
        f"| {name} | {value:.4f} | {_range(scores, name)} |"
        for name, value in scores.items()
        if not name.endswith(("_low", "_high"))
    )
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    parts = [
        f"# {facts['architecture']}, gap {facts['gap']}",
        "A recognition network for low-resolution pictures. Made with Faculty.",
        f"| | |\n| --- | --- |\n{table}",
        *([f"Classes, in the order of the logits: {', '.join(classes)}."] if classes else []),
        f"## Results on {set_name}",
        f"| metric | value | 95 % interval over its pictures |\n| --- | ---: | ---: |\n{figures}",
        "## Open it",
        "```python\nimport onnxruntime\n\n"
        f'session = onnxruntime.InferenceSession("{stem}.onnx")\n'
        'logits, embedding = session.run(None, {"picture": picture})  # float32\n```',
        "```python\nfrom pipeline.tasks.recognition.opening import load_recogniser\n\n"
        f'network, facts = load_recogniser("{stem}.safetensors")\n```',
    ]
    return "\n\n".join(parts) + "\n"


def _lr(facts: Mapping[str, Any]) -> str:
    """What the input is of an HR picture."""
    if facts["gap"] == 1:
        return ", as it is"
    ways = " or ".join(LR[kind] for kind in facts.get("lr", ("bicubic",)))
    enlarged = ", enlarged to HR's size (bicubic)" if facts.get("input") == "enlarged" else ""
    return f"; LR of HR x{facts['gap']} by {ways}{enlarged}"


def _range(scores: Mapping[str, float], name: str) -> str:
    low, high = (scores.get(f"{name}_{end}") for end in ("low", "high"))
    return "" if low is None or high is None else f"{low:.4f} to {high:.4f}"
