"""What was measured on this machine and is remembered: a file of rows by keys that name CPU and versions."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantasr.atomic import write_atomically


def cache_file() -> Path:
    """Where it is: ``engines.json`` in ``$QUANTASR_CACHE`` or the user's cache folder."""
    folder = (
        os.environ.get("QUANTASR_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quantasr"
    )
    return Path(folder) / "engines.json"


def read_cache() -> dict[str, Any]:
    """Every row; none where the file is missing or broken: then it is measured again."""
    try:
        rows = json.loads(cache_file().read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return rows if isinstance(rows, dict) else {}


def remember(key: str, row: Mapping[str, Any]) -> None:
    """Add a row; in a home that cannot be written to, what was measured holds for this process."""
    path = cache_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({**read_cache(), key: dict(row)}, indent=1) + "\n")
    except OSError:
        return
