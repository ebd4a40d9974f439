"""Recipe files: one YAML file, checked before anything is started.

Unknown keys, wrong types and impossible combinations end in one `InputError` that names the path inside the
recipe. Paths are relative to the folder in which the command runs; `${NAME}` is replaced by the environment
variable of that name.
"""

from __future__ import annotations

import codecs
import math
import os
import re
import reprlib
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.errors import InputError
from pipeline.recipe.complaints import key as key_of
from pipeline.recipe.complaints import telling
from pipeline.recipe.fusion import Fusion

Model = TypeVar("Model", bound=BaseModel)
VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
"""An environment variable in a recipe's text."""
FUSIONS = get_args(get_args(Fusion)[0])
"""The sections of all kinds of fusion."""
LARGEST = 100_000
"""Values that a recipe may hold."""


def read(path: str | Path, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """A recipe file's content with `overrides`, `a.b.c=value` with YAML values, not yet validated.

    Raises InputError naming the file for what is no table of settings.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(str(path), "a recipe file (YAML)", "no such file", "See recipes/ for examples.")
    try:
        content = _parse(_expand(read_text(file), str(file)))
    except yaml.YAMLError as error:
        raise InputError(str(path), "valid YAML", " ".join(str(error).split())) from None
    except (
        ValueError,
        OverflowError,
        TypeError,
        LookupError,
    ) as error:  # a date of month 13, a tag on a wrong value
        raise InputError(str(path), "values that a recipe can hold", " ".join(str(error).split())) from None
    except RecursionError:
        raise InputError(str(path), "valid YAML", "tables and lists nested too deeply") from None
    if not isinstance(content, dict):
        raise InputError(str(path), "a table of settings", type(content).__name__)
    for override in overrides:
        _apply(content, override, str(path))
    return content


def read_text(file: Path) -> str:
    """A text file's content: UTF-8 with or without a byte order mark, or UTF-16 with one.

    Raises InputError naming the file for another encoding, a file that cannot be read and a NUL in the text.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(str(file), "a readable file", error.strerror or "an error of the disk") from None
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    name = "UTF-16" if wide else "UTF-8"
    if not wide and b"\0" in data:
        unmarked = "UTF-16BE" if data.startswith(b"\0") else "UTF-16LE" if data[1:2] == b"\0" else ""
        remedy = _convert(file, unmarked) if unmarked else ""
        raise InputError(str(file), "a text in UTF-8", "NUL bytes in it", remedy)
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = f"the byte 0x{data[error.start]:02x} in line {line}, which is not {name}"
        raise InputError(
            str(file), "a text in UTF-8", found, "" if wide else _convert(file, "LATIN1")
        ) from None
    if "\0" in text:
        raise InputError(str(file), "a text in UTF-8", "NUL characters in it")
    return text


def _convert(file: Path, encoding: str) -> str:
    """The remedy for a text in another encoding, as a line for a shell."""
    source, target = shlex.quote(str(file)), shlex.quote(str(file.with_suffix(f".utf8{file.suffix}")))
    return f"If it is {encoding}, make one in UTF-8: iconv -f {encoding} -t UTF-8 {source} > {target}"


def _parse(text: str) -> Any:
    """YAML as plain data. Raises YAMLError, and ValueError for what YAML allows and no recipe means."""
    loader = yaml.SafeLoader(text)
    try:
        if (node := loader.get_single_node()) is None:
            return None
        if _written_out(node, {}) > LARGEST:
            raise ValueError(f"more than {LARGEST:,} values once its aliases are written out")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _written_out(node: yaml.Node, known: dict[int, float]) -> float:
    """How many values a node stands for, each alias counted as what it repeats; infinitely many if it holds itself."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = math.inf
        parts = [n for pair in node.value for n in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(_written_out(part, known) for part in parts)
    return known[id(node)]


def with_method(recipe: Model, method: str) -> Model:
    """The same recipe with another method or variant: its own settings where it is the recipe's, else the variant's,
    those of `compare.settings` where the recipe has such, or defaults.

    Raises InputError for an unknown name, and where the recipe lacks what the method needs.
    """
    own: Any = recipe
    if method == own.method.name:
        return recipe
    variant = own.compare.variants.get(method)
    if variant is None and method not in own.known_methods:
        names = ", ".join([*own.known_methods, *own.compare.variants])
        raise InputError("method", f"one of {names}", repr(method))
    settings = getattr(own.compare, "settings", {}).get(method, {})
    chosen = variant.model_dump(mode="json") if variant else {**settings, "name": method}
    return checked(type(recipe), {**recipe.model_dump(mode="json"), "method": chosen}, f"method {method}")


def changed(recipe: Model, values: Mapping[str, Any], where: str) -> Model:
    """The same recipe with other values at paths such as `method.hr` or `teachers.0.precision`.

    Raises InputError, which says `where`, for a path that the recipe does not have and for a value it does not take.
    """
    content = recipe.model_dump(mode="json")
    for path, value in values.items():
        _put(content, path, value, where)
    return checked(type(recipe), content, where)


def checked(model: type[Model], content: dict[str, Any], where: str) -> Model:
    """`content` as a `model`. Raises InputError with the first complaint."""
    try:
        made = model.model_validate(content)
    except ValidationError as error:
        first, others = telling(error.errors())
        tags = {*getattr(model, "known_methods", {}), *(m.__name__.lower() for m in FUSIONS)}
        key = key_of(first["loc"], tags)
        more = f" ({others} more problem{'s' * (others > 1)} after this one.)" if others else ""
        found = "an unknown key" if first["type"] == "extra_forbidden" else reprlib.repr(first.get("input"))
        if len(found) > 120:
            found = found[:117] + "..."
        if first["type"] == "extra_forbidden":
            known = _siblings(model, first["loc"])
            expected = "one of " + ", ".join(known) if known else "a known key"
        else:
            expected = first["msg"].removeprefix("Value error, ")
        if first["type"] == "value_error":
            raise InputError(f"{where}: {key}", "a consistent recipe", f"{expected}{more}") from None
        raise InputError(
            f"{where}: {key}",
            expected,
            found,
            f"`faculty recipe check FILE --schema` explains every key.{more}",
        ) from None
    if key := _truth_for_a_number(content, made):
        raise InputError(f"{where}: {key}", "a number, not yes or no", "one of these")
    return made


def _truth_for_a_number(content: Any, made: Any) -> str:
    """The key whose `yes` or `no` pydantic took for 1 or 0, which nobody means; nothing where there is none."""
    if isinstance(content, bool):
        return "." if isinstance(made, int | float) and not isinstance(made, bool) else ""
    pairs: Iterable[tuple[Any, Any, Any]] = ()
    if isinstance(content, dict):
        of = made.get if isinstance(made, dict) else lambda key: getattr(made, key, None)
        pairs = ((key, value, of(key)) for key, value in content.items())
    elif isinstance(content, list | tuple) and isinstance(made, list | tuple):
        pairs = ((place, *both) for place, both in enumerate(zip(content, made)))
    for key, value, taken in pairs:
        if found := _truth_for_a_number(value, taken):
            return f"{key}.{found}".rstrip(".")
    return ""


def _siblings(recipe: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys allowed where an unknown one stood."""
    model: Any = recipe
    methods = getattr(recipe, "known_methods", {})
    for part in location[:-1]:
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            options: list[Any] = [methods.get(str(part))] + [m for m in FUSIONS if m.__name__.lower() == part]
            model = next((m for m in options if m), model)
            continue
        model = _model_of(field.annotation) or model
    return sorted(getattr(model, "model_fields", {}))


def _model_of(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in getattr(annotation, "__args__", ()):
        found = _model_of(part)
        if found is not None:
            return found
    return None


def _apply(content: dict[str, Any], override: str, file: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise InputError(f"--set {override}", "key.path=value", override)
    try:
        value = _parse(text)
    except (yaml.YAMLError, ValueError, OverflowError, TypeError, LookupError, RecursionError) as error:
        raise InputError(f"--set {path}", "a YAML value", " ".join(str(error).split())) from None
    _put(content, path, value, f"{file}: --set {path}")


def _put(content: dict[str, Any], path: str, value: Any, where: str) -> None:
    node: Any = content
    *parents, last = path.split(".")
    for part in parents:
        key: Any = int(part) if isinstance(node, list) and part.isdigit() else part
        if isinstance(node, dict):
            node = node.setdefault(key, {})
        elif isinstance(node, list) and isinstance(key, int) and key < len(node):
            node = node[key]
        else:
            raise InputError(where, "a path of tables and list positions", f"no place {part!r}")
    if isinstance(node, list) and last.isdigit() and int(last) < len(node):
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise InputError(where, "a path of tables and list positions", f"no place {last!r}")


def _expand(text: str, where: str) -> str:
    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise InputError(where, f"the environment variable {name}", "not set", f"export {name}=...")
        return os.environ[name]

    return VARIABLE.sub(value, text)
