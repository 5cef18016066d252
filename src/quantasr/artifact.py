"""The artifact: a folder that holds everything needed to transcribe, and nothing that is executed.

artifact.json     format version, frontend, recipe, provenance, parity, measured figures, checksums
graph.onnx        the QDQ graph (and graph.onnx.data, beyond 1.5 GB)
tokenizer.json    vocabulary and rules of the text
layers.json       what was done with each layer, and why some stayed float
recipe.toml       the recipe, ready to be edited and used again
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantasr.errors import ArtifactError
from quantasr.speech.frontend import Frontend, frontend_from_dict
from quantasr.speech.tokenizer import CtcTokenizer
from quantasr.version import __version__

FORMAT = 1
MANIFEST = "artifact.json"
GRAPH = "graph.onnx"
WEIGHTS = "graph.onnx.data"
TOKENIZER = "tokenizer.json"
LAYERS = "layers.json"
CALIBRATION = "calibration.json"


@dataclass(frozen=True)
class Artifact:
    """What ``artifact.json`` says; ``folder`` is where it lies.

    ``parity`` and ``measured`` are the figures found when it was made; ``compute`` and ``engine`` are what the recipe
    wants, each perhaps ``auto``.
    """

    folder: Path
    name: str
    family: str
    decoder: str
    padded_batches: bool
    frame_seconds: float
    min_samples: int
    frontend: Frontend
    tokenizer: CtcTokenizer
    recipe: dict[str, Any]
    provenance: dict[str, Any]
    parity: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def graph(self) -> Path:
        """The ONNX file."""
        return self.folder / GRAPH

    @property
    def engine(self) -> str:
        """The engine that the recipe asks for, or ``auto``."""
        return str(self.recipe.get("engine", "auto"))

    @property
    def compute(self) -> str:
        """The compute type of the float rest that the recipe asks for, or ``auto``."""
        return str(self.recipe.get("compute", "auto"))

    @property
    def weights(self) -> Path | None:
        """The weights' file, where they lie beside the graph."""
        return self.folder / WEIGHTS if WEIGHTS in self.files else None

    @property
    def checksum(self) -> str:
        """SHA-256 of graph and weights: the identity of what is computed."""
        parts = (self.files[name]["sha256"] for name in (GRAPH, WEIGHTS) if name in self.files)
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def layers(self) -> list[dict[str, Any]]:
        """A row for each layer of the model: path, kind, how it is quantized or why not."""
        rows: list[dict[str, Any]] = _read_json(self.folder / LAYERS)
        return rows

    def calibration(self) -> list[dict[str, Any]]:
        """Fingerprints of the recordings that it was calibrated on."""
        rows: list[dict[str, Any]] = _read_json(self.folder / CALIBRATION)
        return rows

    @classmethod
    def load(cls, folder: str | Path, *, verify: bool = True) -> Artifact:
        """Read a folder; ``verify`` compares every file with its checksum.

        Raises :class:`ArtifactError` when a file is missing, changed, or of a newer format.
        """
        folder = Path(folder)
        if not (folder / MANIFEST).is_file():
            raise ArtifactError(f"{folder}: not an artifact: it has no {MANIFEST}")
        row = _read_json(folder / MANIFEST)
        if not isinstance(row, dict) or not isinstance(row.get("format"), int):
            raise ArtifactError(f"{folder / MANIFEST}: not an artifact: it has no format number")
        if row["format"] > FORMAT:
            raise ArtifactError(
                f"{folder}: format {row['format']} is newer than this quantasr reads ({FORMAT}): upgrade quantasr"
            )
        if row.get("checksum") != _checksum_of(row):
            raise ArtifactError(f"{folder / MANIFEST}: changed since it was written: make or copy the artifact again")
        if verify:
            _verify(folder, row["files"])
        try:
            return cls(
                folder=folder,
                frontend=frontend_from_dict(row["frontend"]),
                tokenizer=CtcTokenizer.from_dict(_read_json(folder / TOKENIZER)),
                **{key: row[key] for key in _PLAIN},
                files=row["files"],
            )
        except KeyError as error:
            raise ArtifactError(f"{folder / MANIFEST}: lacks {error}: make the artifact again") from None

    def write_manifest(self) -> None:
        """Write ``artifact.json`` for the files as they lie in :attr:`folder`, atomically."""
        row: dict[str, Any] = {
            "format": FORMAT,
            "quantasr": __version__,
            **{key: getattr(self, key) for key in _PLAIN},
            "frontend": self.frontend.to_dict(),
            "files": {
                path.name: {"sha256": sha256(path), "bytes": path.stat().st_size}
                for path in sorted(self.folder.iterdir())
                if path.name != MANIFEST
            },
        }
        row["checksum"] = _checksum_of(row)
        write_atomically(self.folder / MANIFEST, json.dumps(row, indent=2, ensure_ascii=False) + "\n")


_PLAIN = (
    "name",
    "family",
    "decoder",
    "padded_batches",
    "frame_seconds",
    "min_samples",
    "recipe",
    "provenance",
    "parity",
    "measured",
)


def create(folder: Path, fill: Callable[[Path], None], *, overwrite: bool = False) -> None:
    """Make a folder all or nothing: ``fill`` writes into a hidden sibling, which takes its place at the end.

    Whatever stops ``fill`` (an error, a full disk, Ctrl-C) leaves neither the sibling nor a changed ``folder``.
    Raises :class:`ArtifactError` when ``folder`` exists, unless it is an artifact and ``overwrite`` is set.
    """
    folder = folder.absolute()
    check_target(folder, overwrite=overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _scratch(folder) as fresh:
        try:
            fill(fresh)
            _sync(fresh)
        except OSError as error:
            raise ArtifactError(f"{folder}: cannot write the artifact: {error.strerror or error}") from error
        if folder.exists():
            with _scratch(folder) as old:
                folder.rename(old / "old")
                fresh.rename(folder)
        else:
            fresh.rename(folder)


def check_target(folder: Path, *, overwrite: bool) -> None:
    """Raise :class:`ArtifactError` when an artifact must not be written to ``folder``; asked before the long work."""
    if not folder.exists():
        return
    if not (folder / MANIFEST).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArtifactError(f"{folder}: exists and is no artifact: choose another folder")
    if (folder / MANIFEST).is_file() and not overwrite:
        raise ArtifactError(f"{folder}: exists already: choose another folder, or allow --overwrite")


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old or the new one, never half of it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _scratch(beside: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir=beside.parent, prefix=f".{beside.name}."))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _verify(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    for name, row in files.items():
        path = folder / name
        if Path(name).name != name:
            raise ArtifactError(f"{folder / MANIFEST}: file name {name!r} leads out of the artifact")
        if not path.is_file():
            raise ArtifactError(f"{path}: missing: the artifact is incomplete, copy it again")
        if path.stat().st_size != row["bytes"] or sha256(path) != row["sha256"]:
            raise ArtifactError(f"{path}: differs from its checksum: the artifact is damaged, copy it again")


def _checksum_of(row: dict[str, Any]) -> str:
    text = json.dumps({k: v for k, v in row.items() if k != "checksum"}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ArtifactError(f"{path}: cannot read it: {error.strerror}") from None
    except ValueError as error:
        raise ArtifactError(f"{path}: not JSON: {error}") from None
