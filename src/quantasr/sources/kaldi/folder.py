"""Kaldi's and Vosk's folders: which files make a recogniser, wherever a recipe put them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from quantasr.errors import ModelLoadError
from quantasr.kaldi.options import Option, read_options

MODEL = "final.mdl"
_FEATURES = ("mfcc.conf", "mfcc_hires.conf", "fbank.conf", "mfcc_online.conf")
_ABOVE = 3  # conf/ lies at the top of a recipe, exp/chain/tdnn1a three levels below


@dataclass(frozen=True)
class KaldiFolder:
    """The files of a model; those that are None are not there.

    ``options`` are the lines of ``model.conf`` or ``online.conf``. ``vosk`` tells whose decoder's habits are meant.
    """

    root: Path
    model: Path
    features: Path | None
    cmvn: Path | None
    extractor: Path | None
    graph: Path | None
    grammar: Path | None
    words: Path | None
    disambig: Path | None
    word_boundary: Path | None
    options: dict[str, Option]
    subsampling: int
    vosk: bool


def find_model(where: Path) -> Path | None:
    """The ``final.mdl`` that a folder, or a path to a model itself, means; None where there is none."""
    if where.is_file():
        return where if where.suffix in (".mdl", ".raw") else None
    return next((path for path in (where / "am" / MODEL, where / MODEL) if path.is_file()), None)


def open_folder(where: Path) -> KaldiFolder:
    """Find the files around a model. Raises ModelLoadError for what contradicts itself."""
    model = find_model(where)
    if model is None:
        raise ModelLoadError(f"{where}: has no {MODEL} and no am/{MODEL}")
    root = where if where.is_dir() else model.parent
    vosk = _first(root / "ivector" / "final.ie", root / "conf" / "model.conf", root / "am" / MODEL) is not None
    conf = _first(root / "conf" / "model.conf", root / "model.conf", root / "conf" / "online.conf")
    options = read_options(conf) if conf else {}
    graph = _graph_folder(root)
    words = _first(graph / "words.txt", root / "words.txt") if graph else None
    return KaldiFolder(
        root=root,
        model=model,
        features=_features(root, options),
        cmvn=_first(root / "global_cmvn.stats", root / "conf" / "global_cmvn.stats"),
        extractor=_extractor(root, options),
        graph=_first(graph / "HCLG.fst", graph / "HCLr.fst") if graph else None,
        grammar=_first(graph / "Gr.fst") if graph else None,
        words=words,
        disambig=_first(graph / "disambig_tid.int", root / "disambig_tid.int") if graph else None,
        word_boundary=_first(graph / "phones" / "word_boundary.int", root / "word_boundary.int") if graph else None,
        options=options,
        subsampling=_subsampling(root, options),
        vosk=vosk,
    )


def cmvn_options(root: Path) -> dict[str, str]:
    """``cmvn_opts`` of an experiment: ``--norm-means=false --norm-vars=false`` and the like, name -> value."""
    path = root / "cmvn_opts"
    if not path.is_file():
        return {}
    found = {}
    for word in shlex.split(path.read_text("utf-8", "replace")):
        match = re.fullmatch(r"--([a-z-]+)(?:=(.*))?", word)
        if match is None:
            raise ModelLoadError(f"{path}: {word!r} is no option; it should be like --norm-vars=false")
        found[match[1]] = match[2] or "true"
    return found


def _first(*paths: Path) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _graph_folder(root: Path) -> Path | None:
    """The folder of the decoding graph: ``graph``, another ``graph*`` if there is but one, or the model's own."""
    candidates = [root / "graph", root, *sorted(root.glob("graph*"))]
    found = [f for f in candidates if (f / "HCLG.fst").is_file() or (f / "HCLr.fst").is_file()]
    return found[0] if found else None


def _features(root: Path, options: dict[str, Option]) -> Path | None:
    for name in ("mfcc-config", "fbank-config", "plp-config"):
        if name in options:
            if name == "plp-config":
                raise ModelLoadError(
                    f"{options[name].path}: PLP features are not computed here; MFCC and filterbank are"
                )
            return options[name].file(root)
    above = [root, *list(root.resolve().parents)[:_ABOVE]]
    return _first(*(folder / sub / name for folder in above for sub in ("", "conf") for name in _FEATURES))


def _extractor(root: Path, options: dict[str, Option]) -> Path | None:
    if "ivector-extraction-config" in options:
        return options["ivector-extraction-config"].file(root)
    for folder in (root / "ivector", root / "ivector_extractor", root / "extractor"):
        if (folder / "final.ie").is_file():
            return folder
    for above in list(root.resolve().parents)[: _ABOVE - 1]:  # exp/chain/tdnn1a and exp/nnet3/extractor
        for path in sorted(above.glob("nnet3*/extractor/final.ie")):
            return path.parent
    return None


def _subsampling(root: Path, options: dict[str, Option]) -> int:
    path = root / "frame_subsampling_factor"
    if "frame-subsampling-factor" in options:
        value = int(options["frame-subsampling-factor"].value(1))
        where = str(options["frame-subsampling-factor"].path)
    elif path.is_file():
        text = path.read_text("utf-8", "replace").strip()
        if not text.isdigit():
            raise ModelLoadError(f"{path}: {text[:20]!r} is no number of frames")
        value, where = int(text), str(path)
    else:
        return 1
    if not 1 <= value <= 100:
        raise ModelLoadError(f"{where}: a frame subsampling factor of {value} makes no sense; 3 is usual")
    return value
