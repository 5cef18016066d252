"""A SpeechBrain model without its weights: a few files, and the same interface made of them again, offline.

``hyperparams.yaml`` lies in the folder as it was, and runs code when it is read, so rebuilding needs trust as loading
does. Beside it lie the tokenizers and ``speechbrain.json``: what checkpoints held that is no weight (statistics of a
normalisation), and the configurations of the models of Hugging Face's that are inside.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from quantasr.errors import ModelLoadError
from quantasr.sources.speechbrain.interface import (
    HYPERPARAMS,
    load_errors,
    make_interface,
    overrides,
    quiet,
    require_speechbrain,
)

SKELETON = "speechbrain.json"

_PATH = "<pretrained_path>"


def files_of(interface: Any, hyperparams: bytes, provenance: dict[str, Any]) -> dict[str, bytes]:
    """What :func:`rebuild_interface` needs, name -> content; ``hyperparams`` is what the interface was made of."""
    pretrainer = interface.hparams.pretrainer
    tokenizers = {
        name: (f"{name}.{ending}", Path(pretrainer.paths[name]).read_bytes())
        for name, loadable in pretrainer.loadables.items()
        if (ending := _ending(loadable)) and name in pretrainer.paths
    }
    row = {
        "provenance": provenance,
        "tokenizers": {name: file for name, (file, _) in tokenizers.items()},
        "statistics": {
            path: {"count": part.count, "mean": part.glob_mean.tolist(), "std": part.glob_std.tolist()}
            for path, part in _normalizations(interface.mods)
        },
        "huggingface": _configurations(interface),
    }
    text = json.dumps(row, indent=1) + "\n"
    return {HYPERPARAMS: hyperparams, SKELETON: text.encode(), **dict(tokenizers.values())}


def rebuild_interface(folder: Path, *, trust: bool) -> tuple[Any, dict[str, Any]]:
    """The interface whose :func:`files_of` lie in ``folder``, with random weights, and its provenance.

    No checkpoint is looked for and nothing is fetched. Raises :class:`ModelLoadError`, without ``trust`` before
    anything is read.
    """
    where = str(folder)
    if not trust:
        raise ModelLoadError(
            f"{where}: is made of a SpeechBrain model: reading its {HYPERPARAMS} runs whatever code it names: "
            "if you trust who made it, allow that with --trust"
        )
    require_speechbrain(where)
    from hyperpyyaml import load_hyperpyyaml

    row = json.loads((folder / SKELETON).read_text("utf-8"))
    with load_errors(where), quiet(), _offline(row["huggingface"], str(folder.absolute())):
        hparams = load_hyperpyyaml((folder / HYPERPARAMS).read_text("utf-8"), overrides(folder))
        hparams["savedir"] = None
        _load_tokenizers(folder, hparams, row["tokenizers"])
        # Another file that lies elsewhere: decoding with it is asked for anew.
        hparams.get("test_beam_search", {}).pop("kenlm_model_path", None)
        interface = make_interface(modules=hparams["modules"], hparams=hparams, run_opts={"device": "cpu"})
        for path, part in _normalizations(interface.mods):
            found = row["statistics"][path]
            part.count, part.glob_mean = int(found["count"]), torch.tensor(found["mean"])
            part.glob_std = torch.tensor(found["std"])
    interface.eval()
    return interface, row["provenance"]


def _ending(loadable: Any) -> str:
    """The ending of the file that a tokenizer is loaded from; empty for what is none, as a module."""
    import sentencepiece
    from speechbrain.dataio.encoder import CategoricalEncoder

    if isinstance(loadable, sentencepiece.SentencePieceProcessor):
        return "model"
    return "txt" if isinstance(loadable, CategoricalEncoder) else ""


def _load_tokenizers(folder: Path, hparams: dict[str, Any], files: dict[str, str]) -> None:
    """Have the pretrainer load what is not a module, from ``folder``."""
    from speechbrain.utils.parameter_transfer import Pretrainer

    pretrainer = hparams["pretrainer"]
    loadables = {name: pretrainer.loadables[name] for name in files}
    paths = {name: str((folder / file).absolute()) for name, file in files.items()}
    some = Pretrainer(loadables=loadables, paths=paths, custom_hooks=pretrainer.custom_hooks)
    some.collect_files()
    some.load_collected()


def _normalizations(modules: nn.Module) -> list[tuple[str, Any]]:
    """Paths of what keeps statistics that are in no ``state_dict``."""
    from speechbrain.processing.features import InputNormalization

    return [(path, part) for path, part in modules.named_modules() if isinstance(part, InputNormalization)]


def _configurations(interface: Any) -> dict[str, Any]:
    """What Hugging Face's models inside are built from, by the place that they were loaded from."""
    from speechbrain.integrations.huggingface.huggingface import HFTransformersInterface

    found = {}
    for part in interface.mods.modules():
        if isinstance(part, HFTransformersInterface):
            features = getattr(part, "feature_extractor", None)
            place = _portable(part.config.name_or_path, str(getattr(interface.hparams, "pretrained_path", "")))
            config = {key: value for key, value in part.model.config.to_dict().items() if key != "_name_or_path"}
            found[place] = {"config": config, "features": None if features is None else features.to_dict()}
    return found


def _portable(place: str, pretrained_path: str) -> str:
    """A place that does not name the folder that the model lies in."""
    inside = pretrained_path and place.startswith(pretrained_path)
    return _PATH + place[len(pretrained_path) :] if inside else place


@contextmanager
def _offline(configurations: dict[str, Any], pretrained_path: str) -> Iterator[None]:
    """Let SpeechBrain's wrappers of Hugging Face's models build them from ``configurations``, without weights."""
    import transformers
    from speechbrain.integrations.huggingface import huggingface

    def find(source: Any) -> dict[str, Any]:
        place = _portable(str(source), pretrained_path)
        if place not in configurations:
            raise ModelLoadError(f"{SKELETON} describes no model {place}: make the artifact again")
        row: dict[str, Any] = configurations[place]
        return row

    class Config:
        @staticmethod
        def from_pretrained(source: Any, **_: Any) -> tuple[Any, dict[str, Any]]:
            row = dict(find(source)["config"])
            return transformers.AutoConfig.for_model(row.pop("model_type"), **row), {}

    class FeatureExtractor:
        @staticmethod
        def from_pretrained(source: Any, **_: Any) -> Any:
            row = dict(find(source)["features"])
            return getattr(transformers, row.pop("feature_extractor_type"))(**row)

    class Tokenizer:
        @staticmethod
        def from_pretrained(source: Any, **_: Any) -> Any:
            raise ModelLoadError(f"the tokenizer of {source} is not in the folder: such models cannot be built again")

    def build(self: Any, *_: Any, **__: Any) -> None:
        self.model = self.auto_class.from_config(self.config, dtype=torch.float32)

    patches = [
        *((huggingface, "AutoConfig", Config), (huggingface, "AutoFeatureExtractor", FeatureExtractor)),
        *((huggingface, "AutoTokenizer", Tokenizer), (huggingface.HFTransformersInterface, "_from_pretrained", build)),
    ]
    before = [(place, name, getattr(place, name)) for place, name, _ in patches]
    try:
        for place, name, value in patches:
            setattr(place, name, value)
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)
