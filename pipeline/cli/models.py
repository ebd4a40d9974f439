"""evaluate, export, upscale, teachers, students, methods: commands about single models."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli.common import add_json, emit
from pipeline.errors import FacultyError, InputError

if TYPE_CHECKING:
    from torch import Tensor


def add(commands: argparse._SubParsersAction) -> None:
    """Declare these commands."""
    evaluate = commands.add_parser("evaluate", help="PSNR and SSIM of a model on benchmark folders")
    evaluate.add_argument(
        "--model", required=True, metavar="NAME|FILE", help="checkpoint, zoo name, .onnx, or `bicubic`"
    )
    evaluate.add_argument("--data", required=True, nargs="+", metavar="DIR", help="folders of HR pictures")
    evaluate.add_argument("--scale", type=int, required=True, choices=(2, 3, 4))
    evaluate.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    _add_reading(evaluate)
    add_json(evaluate)
    evaluate.set_defaults(run=_evaluate)

    export = commands.add_parser(
        "export", help="write a student as ONNX and as a plain .pth, with a model card"
    )
    export.add_argument("student", metavar="FILE", help="student .safetensors")
    export.add_argument("out", metavar="DIR")
    export.add_argument("--half", action="store_true", help="store the safetensors in float16")
    export.add_argument(
        "--formats",
        nargs="+",
        default=[],
        metavar="KIND",
        help="smaller files too: fp16 and int8 (ONNX), ncnn; each only where it loses little",
    )
    export.add_argument(
        "--calibrate",
        metavar="DIR",
        help="HR pictures: every second one calibrates int8, the formats are checked on the others",
    )
    add_json(export)
    export.set_defaults(run=_export)

    upscale = commands.add_parser("upscale", help="enlarge a folder of pictures (or one) with a model")
    upscale.add_argument("source", metavar="DIR", help="folder or picture")
    upscale.add_argument("out", metavar="OUT", help="folder for the results")
    upscale.add_argument("--student", required=True, metavar="FILE", help=".safetensors, .pth or .onnx")
    upscale.add_argument(
        "--tile", type=int, default=512, help="largest LR side done in one piece (default: 512)"
    )
    _add_reading(upscale)
    upscale.set_defaults(run=_upscale)

    for name, text, run in (
        ("teachers", "the zoo of teachers", _teachers),
        ("students", "the networks that can be students", _students),
        ("methods", "the methods", _methods),
    ):
        command = commands.add_parser(name, help=text)
        add_json(command)
        command.set_defaults(run=run)


def _add_reading(command: argparse.ArgumentParser) -> None:
    """The keys of a recipe's teacher that say how its network is to be read."""
    command.add_argument(
        "--channels", choices=("rgb", "bgr"), help="order of channels that the network wants"
    )
    command.add_argument("--value-range", type=int, choices=(1, 255), help="what white is for the network")


def _evaluate(options: argparse.Namespace) -> None:
    import torch

    from pipeline.cost import known_multiply_adds
    from pipeline.deploy.evaluate import announce, bicubic, evaluate, load_set
    from pipeline.means import EXACT, decibels, exact_note
    from pipeline.progress import Terminal
    from teachers.descriptor import Teacher
    from teachers.gate import warn_of

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    sets = [load_set(folder, options.scale) for folder in options.data]
    reporter = Terminal()
    for benchmark in sets:
        if benchmark.survey is not None:
            announce(benchmark.survey, reporter, tested=True)
    parameters = operations = None
    if options.model == "bicubic":
        upscaler = bicubic(options.scale)
    else:
        upscaler = _open_model(options, device)
        if isinstance(upscaler, Teacher):
            parameters = upscaler.info.parameters
            channels = 1 if upscaler.convention.luma else 3
            operations = known_multiply_adds(upscaler.network, (1, channels, 48, 48))
        warn_of(upscaler, options.scale, options.model, reporter.warn)
    with reporter.line("evaluate", sum(len(s.pictures) for s in sets), "pictures") as line:
        try:
            found = evaluate(
                upscaler, sets, options.scale, device, on_picture=lambda s: line.advance(note=s.picture)
            )
        except FacultyError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                options.model, "a network with finite values of the right size", str(error)
            ) from error
    result = {
        "model": options.model,
        "scale": options.scale,
        "parameters": parameters,
        "multiply_adds": operations,
        "sets": found,
    }
    lines = [f"{options.model} x{options.scale}" + (f"  {parameters:,} parameters" if parameters else "")]
    lines += [
        f"{n:12} {s['images']:>4} pictures  {decibels(s['psnr_y'])}  {s['ssim_y']:.4f}"
        for n, s in found.items()
    ]
    lines += [exact_note(n, s[EXACT], s["images"]) for n, s in found.items() if EXACT in s]
    emit(options, result, "\n".join(lines))


def _open_model(options: argparse.Namespace, device: str) -> Callable[[Tensor], Tensor]:
    """What `--model` names, read as `--channels` and `--value-range` say."""
    from pipeline.recipe.teachers import convention
    from teachers.gate import read_as
    from teachers.loading import load_teacher

    reading = convention(options.channels, options.value_range)
    if options.model.endswith(".onnx"):
        from teachers.onnx_network import OnnxUpscaler

        graph = OnnxUpscaler(options.model)
        if graph.scale != options.scale:
            raise InputError("--scale", f"{graph.scale}, as {options.model} enlarges", str(options.scale))
        return read_as(graph, **reading)
    return load_teacher(options.model, scale=options.scale).with_convention(**reading).to(device)


def _export(options: argparse.Namespace) -> None:
    from pipeline.deploy.export import load_student
    from pipeline.deploy.formats import chosen
    from pipeline.deploy.shipping import export_student, missing_note
    from pipeline.deploy.trial import from_folder

    formats = chosen(options.formats, "--formats")
    if options.calibrate and not formats:
        raise InputError("--calibrate", "--formats with it", "none", "Name some, such as --formats int8.")
    trial = None
    if options.calibrate:
        trial = from_folder(options.calibrate, load_student(options.student)[1].scale)
    made = export_student(
        Path(options.student), Path(options.out), half=options.half, formats=formats, trial=trial
    )
    lines = [
        f"{kind}: {path}" + (f"  ({made.losses[kind].text})" if kind in made.losses else "")
        for kind, path in made.files.items()
    ]
    result = {
        "files": {kind: str(path) for kind, path in made.files.items()},
        "losses": {kind: found.facts for kind, found in made.losses.items()},
        "missing": made.missing,
    }
    emit(options, result, "\n".join(lines))
    if made.missing:
        raise FacultyError(missing_note(options.student, made.missing))


def _upscale(options: argparse.Namespace) -> None:
    from pipeline.deploy.upscale import upscale_folder
    from pipeline.progress import Terminal
    from pipeline.recipe.teachers import convention

    reporter = Terminal()
    with reporter.line("upscale", 0, "pictures") as line:

        def done(count: int, total: int, path: Path) -> None:
            line.to(count, path.name, total)

        upscale_folder(
            options.source,
            options.out,
            options.student,
            tile=options.tile,
            on_picture=done,
            reading=convention(options.channels, options.value_range),
            warn=reporter.warn,
        )


def _teachers(options: argparse.Namespace) -> None:
    from teachers.zoo import ZOO

    rows = [{"name": e.name, "parameters": e.parameters, "scales": [e.scale]} for e in ZOO.values()]
    lines = [f"{e.name:28} x{e.scale}  {e.architecture:12} {e.licence}" for e in ZOO.values()]
    emit(
        options,
        rows,
        "\n".join([*lines, "", "Any checkpoint file that spandrel or Faculty detects works as well."]),
    )


def _students(options: argparse.Namespace) -> None:
    import students
    from pipeline.cost import parameters

    rows, lines = [], []
    for name in students.names():
        count, options_of = parameters(students.deployed(students.build(name, 2))), students.options(name)
        rows.append({"name": name, "parameters": count, "scales": list(students.SCALES)})
        shown = ", ".join(f"{k}={v}" for k, v in options_of.items())
        lines.append(f"{name:14} {count:>10,} parameters at x2   {shown}")
    emit(options, rows, "\n".join([*lines, "", "spandrel:<architecture> builds any of spandrel's."]))


def _methods(options: argparse.Namespace) -> None:
    from pipeline.methods import METHODS

    rows = [
        {"name": n, "target": m.target, "summary": m.summary, "tasks": list(m.tasks)}
        for n, m in METHODS.items()
    ]
    lines = [f"{n:8} {m.summary:62} {', '.join(m.tasks)}" for n, m in METHODS.items()]
    emit(options, rows, "\n".join(lines))
