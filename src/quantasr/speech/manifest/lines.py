"""What every reader of a manifest needs: numbered lines, and recordings that exist."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from quantasr.errors import ManifestError


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines that hold something, each with the 'file:line' that errors name.

    Raises:
        ManifestError: the file cannot be opened or is not UTF-8.
    """
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}:{number}", line.rstrip("\r\n")
    except OSError as error:
        raise ManifestError(f"{path}: cannot be opened ({error.strerror}): check the path") from error
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}:{number + 1}: is not UTF-8 text: save it as UTF-8") from error


def find_audio(name: str, folders: tuple[Path, ...], source: str) -> Path:
    """The recording of that name, absolute or in one of the folders.

    Raises:
        ManifestError: there is none.
    """
    for folder in folders:
        path = folder / name  # an absolute name replaces the folder
        if path.is_file():
            return path
    places = "" if Path(name).is_absolute() else f" in {' or '.join(str(folder) or '.' for folder in folders)}"
    raise ManifestError(f"{source}: there is no recording '{name}'{places}: mend the path, or take the line out")
