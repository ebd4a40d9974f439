"""Errors that Faculty shows to its users.

Every message names what was looked at (a file or a path in the recipe), what was expected, what was found and what to
do about it. The classes are plain and picklable because they cross process borders.
"""

from __future__ import annotations

import re

_CLASS = re.compile(r"\[?\b[\w.]+(?:Error|Exception)\b\]?[\s:]*(\d+ : [A-Z_]+ : )?")
"""An exception's name in a text, with the numbers that ONNX Runtime puts after it."""
_SILENT: dict[type[BaseException], str] = {
    EOFError: "it ends too early",
    MemoryError: "it needs more memory than there is",
}
LONGEST = 300


def shown(text: str) -> str:
    """`text` as it can be printed and stored: bytes of a file's name that are not UTF-8 become `\\xff`."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def reason(error: BaseException) -> str:
    """What a library's exception says, in one line for people: no class names, at most `LONGEST` characters."""
    text = _CLASS.sub("", " ".join(str(error).split())).strip(" :")
    if isinstance(error, KeyError):
        text = f"no {text}"
    return text[:LONGEST] or _SILENT.get(type(error), "no reason given")


class FacultyError(Exception):
    """A failure with its cause first. The command exits with `exit_code`."""

    exit_code = 1


class InputError(FacultyError):
    """Bad input: a recipe key, a file or an option that the user can mend. Exit code 2."""

    exit_code = 2

    def __init__(self, where: str, expected: str, found: str, remedy: str = "") -> None:
        super().__init__(where, expected, found, remedy)
        self.where, self.expected, self.found, self.remedy = where, expected, found, remedy

    def __str__(self) -> str:
        text = f"{self.where}: expected {self.expected}, found {self.found}."
        return shown(f"{text} {self.remedy}" if self.remedy else text)
