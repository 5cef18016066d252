"""Kaldi's configuration files: one ``--name=value`` a line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantasr.errors import ModelLoadError

Value = bool | int | float | str

_TRUE, _FALSE = ("true", "t", "1", ""), ("false", "f", "0")
_MAX_BYTES = 1 << 20
_MAX_DEPTH = 10


@dataclass(frozen=True)
class Option:
    """One line: the name as Kaldi normalises it (lower case, ``-`` for ``_``), the text behind ``=``, and where."""

    name: str
    text: str
    path: Path
    line: int

    def fail(self, what: str) -> ModelLoadError:
        """An error that begins with file, line and option."""
        return ModelLoadError(f"{self.path}:{self.line}: option --{self.name}: {what}")

    def value(self, like: Value) -> Value:
        """The text as the type of ``like``; raises ModelLoadError when it is none of that type."""
        if isinstance(like, bool):
            if self.text.lower() in _TRUE + _FALSE:
                return self.text.lower() in _TRUE
            raise self.fail(f"{self.text!r} is neither true nor false")
        if isinstance(like, str):
            return self.text
        kind, what = (int, "an integer") if isinstance(like, int) else (float, "a number")
        try:
            found: int | float = kind(self.text)
        except ValueError:
            raise self.fail(f"{self.text!r} is not {what}") from None
        if found != found or found in (float("inf"), float("-inf")):
            raise self.fail(f"{self.text!r} is not {what}")
        return found

    def file(self, root: Path | None = None) -> Path:
        """The file that the value names.

        Paths in Kaldi's folders are often those of the machine where it was trained, or relative to the folder where
        its scripts ran: of what the text says, what lies beside this file, and beside the folders above it, the first
        that exists. Raises ModelLoadError when none does.
        """
        named = Path(self.text)
        bases = [Path(), self.path.parent, *([root] if root else []), *list(self.path.resolve().parents)[1:4]]
        for base in bases:
            for tail in (named, Path(named.name)):
                if (base / tail).is_file():
                    return base / tail
        raise self.fail(f"there is no file {self.text!r}, nor one of that name beside {self.path.name}")


def read_options(path: str | Path) -> dict[str, Option]:
    """The options of a configuration file by name; the last of several wins.

    ``#`` begins a comment; a nested ``--config=FILE`` is read in its place. Raises ModelLoadError, with file and line,
    on what is no option, and when the file cannot be read.
    """
    return parse_options(_lines(Path(path)), path)


def parse_options(lines: Iterable[str], path: str | Path, *, _depth: int = 0) -> dict[str, Option]:
    """As :func:`read_options`, of lines that were read from ``path`` already."""
    path = Path(path)
    found: dict[str, Option] = {}
    for number, line in enumerate(lines, 1):
        text = line.split("#", 1)[0].strip()
        if not text:
            continue
        name, _, value = text[2:].partition("=")
        name = name.strip().replace("_", "-").lower()
        if not text.startswith("--") or not name:
            raise ModelLoadError(f"{path}:{number}: {text[:60]!r} is no option; each line must read --name=value")
        option = Option(name, value.strip(), path, number)
        if name != "config":
            found[name] = option
            continue
        if _depth == _MAX_DEPTH:
            raise option.fail(f"files name each other more than {_MAX_DEPTH} deep")
        nested = option.file()
        found |= parse_options(_lines(nested), nested, _depth=_depth + 1)
    return found


def fill(defaults: Any, options: Mapping[str, Option], names: Mapping[str, str], ignored: tuple[str, ...] = ()) -> Any:
    """A dataclass with what ``options`` say; ``names`` gives Kaldi's option -> the field.

    Raises ModelLoadError on an option that is neither in ``names`` nor ``ignored``, and on one of the wrong type.
    """
    values: dict[str, Any] = {}
    for name, option in options.items():
        if name in names:
            values[names[name]] = option.value(getattr(defaults, names[name]))
        elif name not in ignored:
            raise option.fail(f"is unknown here; known are {', '.join(sorted({*names, *ignored}))}")
    return replace(defaults, **values)


def _lines(path: Path) -> list[str]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ModelLoadError(f"{path}: is over {_MAX_BYTES} bytes, which is no configuration file")
        return path.read_text("utf-8").splitlines()
    except UnicodeDecodeError:
        raise ModelLoadError(f"{path}: is not text") from None
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read: {error.strerror or error}") from None
