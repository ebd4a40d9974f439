"""Enlarge a picture or a folder of pictures with a finished network, whatever file it comes in."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.cache.store import Store
from pipeline.data.files import counted, matters, suffixes, walk
from pipeline.deploy.upscale_pictures import (
    Layers,
    fill_hidden,
    read_layers,
    white_of,
    without_ringing,
    write_png,
)
from pipeline.errors import FacultyError, InputError, shown
from teachers.gate import warn_of
from teachers.onnx_network import OnnxUpscaler
from teachers.tiling import starts

log = logging.getLogger(__name__)


def open_network(
    path: str | Path, device: str = "cpu", reading: Mapping[str, Any] | None = None
) -> tuple[Callable[[Tensor], Tensor], int]:
    """Return (network, scale) for a student's .safetensors, any checkpoint a teacher can be, or an .onnx file.

    `reading` (`value_range`, `bgr`) overrules what is known of the network's units.
    """
    if str(path).endswith(".onnx"):
        from teachers.gate import read_as

        graph = OnnxUpscaler(path)
        return read_as(graph, **reading) if reading else graph, graph.scale
    from teachers.loading import load_teacher

    teacher = load_teacher(path).with_convention(**(reading or {})).to(device)
    return teacher, teacher.info.scale


def upscale_folder(
    source: str | Path,
    out: str | Path,
    student: str | Path,
    *,
    tile: int | None = 512,
    overlap: int = 16,
    device: str | None = None,
    on_picture: Callable[[int, int, Path], Any] | None = None,
    reading: Mapping[str, Any] | None = None,
    warn: Callable[[str], None] = log.warning,
) -> list[Path]:
    """Enlarge every picture under `source` (a folder, or one file) into PNG files under `out`; return their paths.

    Folders inside `source` are kept; results from an earlier call are replaced, an input never. For one file, `out`
    may be the name of a .png file. Pictures larger than `tile` LR pixels a side are done in tiles that overlap by
    `overlap` (None: always in one piece). Grey stays grey, 16 bits a channel stay 16, transparency is enlarged as a
    picture of its own, EXIF orientation is applied, the colour profile is kept, CMYK becomes sRGB.
    `on_picture(done, total, path)` is called after each. `warn` is told where the network seems to do something else
    than enlarging; `reading` as in `open_network`.

    A picture that cannot be read, or that the network refuses, does not stop the others. Raises InputError at the end
    for those, and at the start where nothing is found, a result would replace an input, or `student` cannot be opened.
    """
    if tile is not None and (overlap < 0 or tile <= 2 * overlap):
        raise InputError("tile", f"more than twice the overlap of {overlap} pixels", str(tile))
    folder, plan = plan_outputs(Path(source), Path(out))
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    network, scale = open_network(student, device, reading)
    warn_of(network, scale, str(student), warn, order=False)
    store = Store.open(folder)
    written: list[Path] = []
    refused: list[tuple[Path, FacultyError]] = []
    for done, (path, rel) in enumerate(plan, start=1):
        try:
            layers = read_layers(path)
            large = enlarge(network, layers, scale, tile=tile, overlap=overlap, device=device)
        except FacultyError as error:
            log.warning("%s", error if path.name in str(error) else f"{shown(str(path))}: {error}")
            refused.append((path, error))
        else:
            write_png(large, store, rel)
            written.append(folder / rel)
        if on_picture is not None:
            on_picture(done, len(plan), path)
    if refused:
        path, first = refused[0]
        why = first.found if isinstance(first, InputError) else str(first)
        readable = isinstance(first, InputError) and first.where == str(path)
        found = f"{len(refused)} {'unreadable' if readable else 'that the network refused'} ({path}: {why})"
        raise InputError(
            str(source), f"{len(plan)} readable pictures", found, f"The other {len(written)} are done."
        )
    return written


def enlarge(
    network: Callable[[Tensor], Tensor],
    layers: Layers,
    scale: int,
    *,
    tile: int | None = None,
    overlap: int = 16,
    device: str = "cpu",
) -> Layers:
    """Enlarge a decoded picture. Transparency goes through the network as a grey picture, unless it is constant.

    Networks overshoot at edges, which nobody sees in a photograph but which draws a rim around a cut-out shape; so
    each enlarged alpha value is held within the range of the 3x3 pixels that it comes from.
    """
    run = partial(_enlarge, network, scale=scale, tile=tile, overlap=overlap, device=device)
    colour, alpha = layers.colour, layers.alpha
    if alpha is not None:
        colour = fill_hidden(colour, alpha)
        if alpha.min() == alpha.max():
            alpha = np.full((alpha.shape[0] * scale, alpha.shape[1] * scale), alpha.flat[0])
        else:
            large = np.rint(run(alpha[:, :, None].repeat(3, 2)).mean(2, dtype=np.float32)).astype(alpha.dtype)
            alpha = without_ringing(large, alpha, scale)
    return replace(layers, colour=run(colour), alpha=alpha)


def _enlarge(
    network: Callable[[Tensor], Tensor],
    picture: np.ndarray,
    *,
    scale: int,
    tile: int | None,
    overlap: int,
    device: str,
) -> np.ndarray:
    """(H, W, 3) uint8 or uint16 -> (scale*H, scale*W, 3) of that type. Only one tile is held as floats at a time."""
    height, width = picture.shape[:2]
    tile = max(height, width) if tile is None else tile
    large = np.empty((height * scale, width * scale, 3), picture.dtype)
    white = white_of(picture)
    for y in starts(height, tile, overlap):
        for x in starts(width, tile, overlap):
            part = picture[y : y + tile, x : x + tile]
            bottom, right = y + part.shape[0], x + part.shape[1]
            lr = torch.from_numpy(part.astype(np.float32)).to(device).permute(2, 0, 1)[None] / white
            with torch.inference_mode():
                sr = network(lr)[0]
            if not sr.isfinite().all():
                raise FacultyError(f"the network returned values that are not finite at LR pixel {y}, {x}")
            levels = (sr.float().clamp(0, 1) * white).round().permute(1, 2, 0).cpu().numpy()
            # Cut edges lose their overlap, except at the picture's own borders; later tiles overwrite.
            top, left = y + (overlap if y else 0), x + (overlap if x else 0)
            bottom -= overlap if bottom < height else 0
            right -= overlap if right < width else 0
            large[top * scale : bottom * scale, left * scale : right * scale] = levels[
                (top - y) * scale : (bottom - y) * scale, (left - x) * scale : (right - x) * scale
            ]
    return large


def plan_outputs(source: Path, out: Path) -> tuple[Path, list[tuple[Path, str]]]:
    """Return the output folder and (input, name inside that folder) for every picture, sorted by name.

    `a.jpg` becomes `a.png`, or `a.jpg.png` where several inputs share the name without suffix. Raises InputError
    where there is nothing to do or where an input would be replaced.
    """
    if source.is_file():
        name = out.name if out.suffix.lower() == ".png" and not out.is_dir() else f"{source.stem}.png"
        folder = out.parent if name == out.name else out
        plan = [(source, name)]
    elif source.is_dir():
        folder, plan = out, _plan_folder(source, out)
    else:
        raise InputError(str(source), "a picture or a folder of pictures", "nothing there")
    if folder.exists() and not folder.is_dir():
        raise InputError(str(folder), "a folder for the results", "a file", "Choose another one.")
    inputs = {(status.st_dev, status.st_ino): path for path, _ in plan for status in [path.stat()]}
    for _, rel in plan:
        target = folder / rel
        if target.exists() and (replaced := inputs.get((target.stat().st_dev, target.stat().st_ino))):
            found = f"one that would replace the input {replaced}"
            raise InputError(str(target), "a name for the result", found, "Choose another output folder.")
    return folder, plan


def _plan_folder(source: Path, out: Path) -> list[tuple[Path, str]]:
    root, results = source.resolve(), out.resolve()
    if root == results:
        raise InputError(
            str(out), "an output folder apart from the pictures", "the folder of the pictures itself"
        )
    listing = walk(source)
    # Results of an earlier run inside the source are no input.
    inside = root in results.parents
    paths = [path for path in listing.pictures if not inside or results not in path.resolve().parents]
    if not paths:
        raise InputError(str(source), "at least one picture", f"no file named {' '.join(sorted(suffixes()))}")
    listing.others["earlier results"] = len(listing.pictures) - len(paths)
    line = counted(str(source), len(paths), listing.others)
    (log.warning if matters(listing.others) else log.info)("%s", shown(line))
    # Compared without case: some file systems do not tell `A.png` from `a.png`.
    names = [path.relative_to(source) for path in paths]
    sharing = Counter(name.with_suffix("").as_posix().lower() for name in names)
    results_of = [
        f"{(name if sharing[name.with_suffix('').as_posix().lower()] > 1 else name.with_suffix('')).as_posix()}.png"
        for name in names
    ]
    for rel, count in Counter(rel.lower() for rel in results_of).items():
        if count > 1:
            expected = "a name of its own for every result"
            raise InputError(str(source), expected, f"{count} inputs for {rel}", "Rename one.")
    return list(zip(paths, results_of, strict=True))
