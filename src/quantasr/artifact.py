"""The artifact: a folder that holds everything needed to transcribe, and nothing that is executed.

artifact.json     format version, frontend, recipe, provenance, parity, measured figures, checksums
graph.onnx        the QDQ graph; large weights lie beside it in graph.onnx.data
encoder.onnx ...  in its place, the parts of a recogniser that decodes step by step, a graph each
tokenizer.json    vocabulary and rules of the text; not where a model for PyTorch's own int8 searches text itself
layers.json       what was done with each layer, and why some stayed float
calibration.json  fingerprints of the calibration speech
lm.*              the n-gram of the beam search that the model brings, if it has one
frontend.npz      what the features need besides numbers: an i-vector extractor, statistics
HCLG.fst ...      the decoding graph of a lattice decoder with its words, and transitions.npy, its transition-ids
recipe.toml       the recipe, ready to be edited and used again

A model for PyTorch's own int8 has, in the place of the graph:

native.json         the layers in int8 and their formats, and what the model is built again from
model.safetensors   integers, scales, and the float rest

and beside them the files that its source builds the model from, without weights.

docs/artifact.md describes every field.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantasr.atomic import MANIFEST, write_atomically
from quantasr.errors import ArtifactError
from quantasr.speech.ctc import GREEDY
from quantasr.speech.decoding import CtcDecoder
from quantasr.speech.frontend import Frontend, frontend_from_dict, noise
from quantasr.speech.lattice.files import DecodingFiles
from quantasr.speech.steps import STEP_DECODERS, step_transcriber
from quantasr.speech.tokenizer import Tokenizer
from quantasr.version import __version__

FORMAT = 1
WHOLE = "graph"
"""The name of the only graph of a model that is not in parts."""
GRAPH = f"{WHOLE}.onnx"
NATIVE = "native.json"
TENSORS = "model.safetensors"
TOKENIZER = "tokenizer.json"
LAYERS = "layers.json"
CALIBRATION = "calibration.json"
FRONTEND_ARRAYS = "frontend.npz"
DECODERS = ("ctc", "lattice", *STEP_DECODERS)
"""How the text is found; a native artifact with ``attention`` has a model with a search and tokens of its own."""


@dataclass(frozen=True)
class Artifact:
    """What ``artifact.json`` says; ``folder`` is where it lies.

    ``parity`` and ``measured`` are the figures found when it was made; ``compute`` and ``engine`` are what the recipe
    wants, each perhaps ``auto``. Lattice decoders and native models have no ``tokenizer``; ``frame_seconds`` is 0
    where a model says nothing of frames. ``decoding`` holds the options of the beam search that the model brings, with
    the name of its n-gram's file as ``lm``; empty for greedy; for a lattice decoder its options, and its files; for one
    that decodes step by step what its transcriber is told. ``parts`` has a row for each graph of such a one: its
    ``inputs``, the ``typical`` lengths of their axes, and its ``calls`` in a second of speech. ``integers`` says what
    its products of integers need of a CPU; artifacts of older versions do not say.
    """

    folder: Path
    name: str
    family: str
    decoder: str
    padded_batches: bool
    frame_seconds: float
    min_samples: int
    frontend: Frontend
    tokenizer: Any
    recipe: dict[str, Any]
    provenance: dict[str, Any]
    parity: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    decoding: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    integers: dict[str, Any] = field(default_factory=dict)

    @property
    def portable(self) -> bool:
        """Whether its integers are known to be multiplied rightly by every CPU: no sum of two products saturates."""
        return self.integers.get("portable") is True

    @property
    def graph(self) -> Path:
        """The ONNX file, where there is one."""
        return self.folder / GRAPH

    @property
    def graphs(self) -> dict[str, Path]:
        """The ONNX files by the names of the parts; a single one is called ``graph``. Native artifacts have none."""
        if self.native:
            return {}
        return {part: self.folder / graph_name(part) for part in self.parts or (WHOLE,)}

    @property
    def native(self) -> bool:
        """Whether it runs in PyTorch and has no graph."""
        return NATIVE in self.files

    @property
    def engine(self) -> str:
        """The engine that the recipe asks for, or ``auto``; ``torch:`` and a backend's name where it is native."""
        return str(self.provenance["engine"] if self.native else self.recipe.get("engine", "auto"))

    @property
    def compute(self) -> str:
        """The compute type of the float rest that the recipe asks for, or ``auto``; of a native one, what it has."""
        return str(self.provenance["compute"] if self.native else self.recipe.get("compute", "auto"))

    def weights(self, part: str = WHOLE) -> Path | None:
        """The weights' file, where they lie beside the graph."""
        name = f"{graph_name(part)}.data"
        return self.folder / name if name in self.files else None

    @property
    def checksum(self) -> str:
        """SHA-256 of graphs and weights: the identity of what is computed."""
        graphs = [name for part in self.graphs for name in (graph_name(part), f"{graph_name(part)}.data")]
        parts = (self.files[name]["sha256"] for name in (*graphs, NATIVE, TENSORS) if name in self.files)
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.folder.iterdir() if path.is_file())

    @property
    def round_up(self) -> int:
        """Rows of features in half a second; 1 where the graph does not take padding. See :class:`EngineOptions`."""
        if not self.padded_batches:
            return 1
        return max(1, len(self.frontend(noise(self.frontend, max(self.min_samples, self.frontend.sample_rate // 2)))))

    def decoding_files(self) -> DecodingFiles | None:
        """The decoding graph of a lattice decoder; None where the model came without one."""
        return DecodingFiles.read(self.decoding, self.folder) if self.decoding else None

    def own_decoder(self) -> CtcDecoder:
        """The decoder that the model brings; raises EngineError where the libraries of its beam search are missing."""
        if not self.decoding:
            return GREEDY
        from quantasr.speech.beam import BeamDecoder

        lm = self.decoding.get("lm")
        if lm is not None and lm not in self.files:
            raise ArtifactError(f"{self.folder}: lists no language model {lm!r}: make the artifact again")
        try:
            return BeamDecoder(**{**self.decoding, "lm": None if lm is None else self.folder / lm})
        except TypeError as error:
            raise ArtifactError(f"{self.folder}: decoding: {error}; was it written by a newer version?") from error

    def layers(self) -> list[dict[str, Any]]:
        """A row for each layer of the model: path, kind, how it is quantized or why not."""
        rows: list[dict[str, Any]] = _parse_json(self.folder / LAYERS, _read_text(self.folder / LAYERS))
        return rows

    def calibration(self) -> list[dict[str, Any]]:
        """Fingerprints of the recordings that it was calibrated on."""
        rows: list[dict[str, Any]] = _parse_json(self.folder / CALIBRATION, _read_text(self.folder / CALIBRATION))
        return rows

    @classmethod
    def load(cls, folder: str | Path, *, verify: bool = True) -> Artifact:
        """Read a folder; ``verify`` compares every file with its checksum.

        Raises :class:`ArtifactError` when a file is missing, changed, or of a newer format.
        """
        folder = Path(folder)
        path = folder / MANIFEST
        if not path.is_file():
            raise ArtifactError(f"{folder}: not an artifact: it has no {MANIFEST}: name the folder that quantize wrote")
        text = _read_text(path)
        row = _parse_json(path, text)
        if not isinstance(row, dict) or type(row.get("format")) is not int:
            raise ArtifactError(f"{path}: not an artifact: it has no format number: make the artifact again")
        if row["format"] != FORMAT:
            newer = row["format"] > FORMAT
            raise ArtifactError(
                f"{folder}: format {row['format']} is {'newer' if newer else 'older'} than this quantasr reads "
                f"({FORMAT}): {'upgrade quantasr' if newer else 'make the artifact again'}"
            )
        if row.get("checksum") != _checksum_of(text):
            raise ArtifactError(f"{path}: changed since it was written: copy the artifact again")
        _check_types(path, row)
        _check_files(folder, row["files"], verify)
        try:
            return cls(
                folder=folder,
                frontend=frontend_from_dict(row["frontend"], _read_arrays(folder, row["files"])),
                tokenizer=_read_tokenizer(folder, row["decoder"]) if TOKENIZER in row["files"] else None,
                **{key: row[key] for key in _PLAIN},
                **{key: row.get(key, {}) for key in _OPTIONAL},
                files=row["files"],
            )
        except ArtifactError as error:
            raise ArtifactError(f"{folder}: {error}") from None

    def write_manifest(self) -> None:
        """Write ``artifact.json`` for the files as they lie in :attr:`folder`, atomically."""
        row: dict[str, Any] = {
            "format": FORMAT,
            "quantasr": __version__,
            **{key: getattr(self, key) for key in _PLAIN},
            "frontend": self.frontend.to_dict(),
            **{key: value for key in _OPTIONAL if (value := getattr(self, key)) or key == "decoding"},
            "files": {
                path.name: {"sha256": sha256(path), "bytes": path.stat().st_size}
                for path in sorted(self.folder.iterdir())
                # A hidden file is one that is being written.
                if path.name != MANIFEST and not path.name.startswith(".")
            },
            "checksum": _NO_CHECKSUM,
        }
        text = json.dumps(row, indent=2, ensure_ascii=False) + "\n"
        write_atomically(self.folder / MANIFEST, text.replace(_NO_CHECKSUM, _checksum_of(text)))


def _read_arrays(folder: Path, files: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """The frontend's arrays; nothing in the file is unpickled."""
    if FRONTEND_ARRAYS not in files:
        return {}
    try:
        with np.load(folder / FRONTEND_ARRAYS, allow_pickle=False) as packed:
            return dict(packed)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"{folder / FRONTEND_ARRAYS}: cannot be read: {error}: copy the artifact again") from None


_PLAIN: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "family": str,
    "decoder": str,
    "padded_batches": bool,
    "frame_seconds": (int, float),
    "min_samples": int,
    "recipe": dict,
    "provenance": dict,
    "parity": dict,
    "measured": dict,
}
"""The fields of ``artifact.json`` that are taken as they are, and their types."""

_OPTIONAL = ("decoding", "parts", "integers")
"""Tables that artifacts of older versions, or with nothing to say, lack."""

_PART: dict[str, type] = {"inputs": dict, "typical": dict, "calls": float}

_REQUIRED = (LAYERS, CALIBRATION)

_NO_CHECKSUM = "0" * 64
_CHECKSUM = re.compile(r'(?<="checksum": ")[0-9a-f]{64}(?="\n}\n\Z)')


def graph_name(part: str) -> str:
    """The ONNX file of a part."""
    return f"{part}.onnx"


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_types(path: Path, row: dict[str, Any]) -> None:
    optional: dict[str, type] = {key: dict for key in _OPTIONAL if key in row}
    for key, kind in {**_PLAIN, **optional, "frontend": dict, "files": dict}.items():
        if key not in row:
            raise ArtifactError(f"{path}: lacks {key!r}: make the artifact again")
        if not isinstance(row[key], kind) or (isinstance(row[key], bool) and kind is not bool):
            raise ArtifactError(f"{path}: {key!r} is {json.dumps(row[key])[:40]}: make the artifact again")
    if row["decoder"] not in DECODERS:
        known = ", ".join(DECODERS)
        raise ArtifactError(f"{path}: decoder {row['decoder']!r} is unknown; this quantasr has {known}: upgrade it")
    native, steps = NATIVE in row["files"], row["decoder"] in STEP_DECODERS
    parts = row.get("parts", {})
    for part, rows in parts.items():
        if not isinstance(rows, dict) or {key: type(rows.get(key)) for key in _PART} != _PART:
            raise ArtifactError(f"{path}: part {part!r} needs {', '.join(_PART)}: make the artifact again")
    if steps and not native and not parts:
        raise ArtifactError(f"{path}: decoder {row['decoder']!r} needs parts, and there are none: make it again")
    computed = [NATIVE, TENSORS] if native else [graph_name(part) for part in parts or (WHOLE,)]
    text = [TOKENIZER] if row["decoder"] == "ctc" or (steps and not native) else []
    for name in (*_REQUIRED, *computed, *text):
        if name not in row["files"]:
            raise ArtifactError(f"{path}: lists no {name}: make the artifact again")
    if native and not {"engine", "compute"} <= set(row["provenance"]):
        raise ArtifactError(f"{path}: does not say which engine it is for: make the artifact again")


def _check_files(folder: Path, files: dict[str, Any], verify: bool) -> None:
    for name, row in files.items():
        path = folder / name
        if Path(name).name != name:
            raise ArtifactError(f"{folder / MANIFEST}: file name {name!r} leads out of the artifact: do not use it")
        if not isinstance(row, dict) or set(row) != {"sha256", "bytes"}:
            raise ArtifactError(f"{folder / MANIFEST}: {name!r} needs sha256 and bytes: make the artifact again")
        if not path.is_file():
            raise ArtifactError(f"{path}: missing: the artifact is incomplete, copy it again")
        try:
            same = path.stat().st_size == row["bytes"] and (not verify or sha256(path) == row["sha256"])
        except OSError as error:
            raise ArtifactError(f"{path}: cannot read it: {error.strerror}: mend its rights") from None
        if not same:
            raise ArtifactError(f"{path}: differs from its checksum: the artifact is damaged, copy it again")


def _read_tokenizer(folder: Path, decoder: str) -> Any:
    kind = step_transcriber(decoder).tokenizer_type if decoder in STEP_DECODERS else Tokenizer
    return kind.from_dict(_parse_json(folder / TOKENIZER, _read_text(folder / TOKENIZER)))


def _checksum_of(text: str) -> str:
    """SHA-256 of the text of ``artifact.json`` with 64 zeros in the place of the checksum."""
    return hashlib.sha256(_CHECKSUM.sub(_NO_CHECKSUM, text).encode()).hexdigest()


def _read_text(path: Path) -> str:
    try:
        # As bytes, because text would take \r\n for \n.
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ArtifactError(f"{path}: cannot read it: {error.strerror}: mend its rights, or copy it again") from None
    except UnicodeDecodeError:
        raise ArtifactError(f"{path}: not UTF-8 text: the artifact is damaged, copy it again") from None


def _parse_json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ArtifactError(f"{path}: not JSON ({error}): the artifact is damaged, copy it again") from None
