"""submit: a faculty command as a job of a Ray cluster.

What can be known is checked before anything is sent: with the command's own parser, its own reading of the recipe, and
against the files and variables that the job will have.
"""

from __future__ import annotations

import argparse
import os
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli.common import write
from pipeline.errors import InputError
from pipeline.progress import Terminal
from pipeline.recipe.reading import VARIABLE
from pipeline.search.space import BUILT_IN
from pipeline.tasks.recipes import load_any
from pipeline.tasks.registry import task_of

if TYPE_CHECKING:
    from pipeline.engine.packing import Package

WORKING = ("run", "teach", "distill", "compare", "tune")
"""Commands that leave something in the recipe's `output` and `cache.root`."""
READ = ("calibrate", "data", "model", "source", "space", "student")
"""Options of commands that name what is read."""
OF_A_MACHINE = ("HOME", "HOSTNAME", "LANG", "LOGNAME", "PATH", "PWD", "PYTHONPATH", "SHELL", "TMPDIR", "USER")
"""Variables that every machine has for itself."""


def add(commands: argparse._SubParsersAction) -> None:
    """Declare this command."""
    submit = commands.add_parser(
        "submit", help="run a faculty command as a job of a Ray cluster: faculty submit run recipe.yaml"
    )
    submit.add_argument("--address", help="the cluster's dashboard (default: http://127.0.0.1:8265)")
    submit.add_argument(
        "--working-dir",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="folder that goes along (default: this one)",
    )
    submit.add_argument("--no-wait", action="store_true", help="do not follow the job's output")
    submit.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="...", help="the command with its options"
    )
    submit.set_defaults(run=_submit)


def _submit(options: argparse.Namespace) -> int:
    from pipeline.engine.packing import pack
    from pipeline.engine.submit import submit

    arguments = [a for i, a in enumerate(options.arguments) if not (i == 0 and a == "--")]
    if not arguments:
        raise InputError("faculty submit", "a command, as in `faculty submit run recipe.yaml`", "none")
    job = options.parse(arguments)
    if job.command == "submit":
        raise InputError("faculty submit", "a command, as in `faculty submit run recipe.yaml`", "submit")
    reporter, folder = Terminal(), options.working_dir
    names: list[str] = []
    own: list[str] = []
    reads = dict(_named(job))
    for option in ("out", "json"):
        _kept(f"--{option}" if option == "json" else option, getattr(job, option, None))
    if hasattr(job, "recipe"):
        recipe = load_any(folder / job.recipe, tuple(job.overrides))
        if job.command in WORKING:
            _outlives(recipe, job.recipe)
        names = _variables(folder / job.recipe, reporter)
        own = _own_folders(folder / job.recipe)
        reads |= {"the recipe": job.recipe, **dict(_read_by(recipe, job.recipe))}
    package = pack(folder, own)
    _goes_along(package, reads, reporter)
    return submit(
        arguments,
        address=options.address,
        package=package,
        variables=names,
        wait=not options.no_wait,
        say=reporter.say,
        write=write,
    )


def _outlives(recipe: Any, file: str) -> None:
    """Refuse outputs in the job's folder, which goes with the job."""
    for path, value in (("output", recipe.output), ("cache.root", recipe.cache.root)):
        if "://" not in value and not os.path.isabs(value):
            raise InputError(
                f"{file}: {path}",
                "a place that outlives the job: an s3:// or gs:// address, or an absolute path of a shared folder",
                value,
                f"Add --set {path}=...",
            )


def _kept(option: str, value: Any) -> None:
    """Refuse a result in the job's folder, which goes with the job; `-` is printed."""
    if value is not None and str(value) != "-" and not os.path.isabs(str(value)):
        raise InputError(option, "an absolute path of a shared folder, which outlives the job", str(value))


def _variables(file: Path, reporter: Terminal) -> list[str]:
    """The variables that the recipe names, which must go along."""
    names = sorted(set(VARIABLE.findall(file.read_text())))
    for name in [n for n in names if n in OF_A_MACHINE]:
        reporter.warn(f"{file}: ${{{name}}} is what the cluster's head has there, not {os.environ[name]}")
    return [n for n in names if n not in OF_A_MACHINE]


def _own_folders(file: Path) -> list[str]:
    """Where the recipe, run here without --set, keeps its outputs and cache: the job does not need them."""
    try:
        recipe = load_any(file)
    except InputError:  # valid with the command's --set alone: nobody has run it without
        return []
    found = [posixpath.normpath(path) for path in (recipe.output, recipe.cache.root) if "://" not in path]
    return [p for p in found if not posixpath.isabs(p) and p.split("/")[0] not in (".", "..")]


def _named(job: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """What the command's own options read."""
    for name in READ:
        value = getattr(job, name, None)
        for one in [value] if isinstance(value, (str, Path)) else value or ():
            if not (name == "space" and one in BUILT_IN):
                yield f"--{name} {one}", str(one)


def _read_by(recipe: Any, file: str) -> Iterator[tuple[str, str]]:
    """Paths that a run of the recipe reads, by their keys."""
    yield from ((f"{file}: {key}", path) for key, path in task_of(recipe).reads(recipe))


def _goes_along(package: Package, reads: dict[str, str], reporter: Terminal) -> None:
    """Refuse relative paths that the job would not find in its folder; warn of those that lose a part on the way."""
    for where, path in reads.items():
        if "://" in path:
            continue
        if os.path.isabs(path):
            if (package.folder / path).is_relative_to(package.folder):
                reporter.warn(
                    f"{where}: {path} is looked for at this very place on the cluster; it lies in the folder that goes "
                    "along, where a relative path would find it"
                )
            continue
        inside = posixpath.normpath(path)
        here = package.folder / inside
        if not here.exists():
            if where.endswith("checkpoint") or where.startswith(("--model", "--student")):
                continue  # a name of the zoo, or the command says what is wrong with it
            raise InputError(where, f"something in {package.folder}, which goes along", f"no {path}")
        count = package.below(inside) if not inside.startswith("..") else 0
        if not count:
            raise InputError(
                where,
                "something that goes along with the job",
                f"{path}, which lies outside of {package.folder} or is left out "
                f"({', '.join(package.excludes)}, .gitignore, .rayignore)",
                "Keep it where the cluster reaches it (s3://, a network folder), or in a folder that goes along.",
            )
        all_of_it = _count(here)
        if count < all_of_it:
            reporter.warn(
                f"{where}: {count} of {all_of_it} files of {path} go along, the others are left out"
            )


def _count(path: Path) -> int:
    return 1 if path.is_file() else sum(len(files) for _, _, files in os.walk(path, followlinks=True))
