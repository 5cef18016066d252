"""What every artifact holds beside what computes: the recipe, the layers, the speech that it was calibrated on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantasr.artifact import CALIBRATION, FRONTEND_ARRAYS, LAYERS, NATIVE, TOKENIZER, Artifact
from quantasr.quantize import Prepared
from quantasr.sources import AsrModel, CtcModel, FrameModel, LatticeModel
from quantasr.sources.parts_model import PartsModel
from quantasr.speech.beam import BeamDecoder
from quantasr.speech.frontend import KaldiFrontend
from quantasr.speech.manifest import Utterance
from quantasr.speech.manifest.fingerprint import fingerprints
from quantasr.speech.transcript import Waveform
from quantasr.version import __version__


class Waves:
    """The utterances' samples, loaded one at a time, so that memory does not grow with their number."""

    def __init__(self, utterances: Sequence[Utterance], sample_rate: int) -> None:
        self._utterances, self._rate = utterances, sample_rate
        self.seconds: list[float] = []

    def __len__(self) -> int:
        return len(self._utterances)

    def __iter__(self) -> Iterator[Waveform]:
        for utterance in self._utterances:
            wave = utterance.load(self._rate)
            self.seconds.append(len(wave) / self._rate)
            yield wave


def write_parts(
    folder: Path, prepared: Prepared, rows: Sequence[dict[str, Any]], utterances: Sequence[Utterance]
) -> None:
    """Write everything but the computation into ``folder``; ``rows`` say what became of each layer."""
    model = prepared.model
    if isinstance(model, CtcModel):
        write_json(folder / TOKENIZER, model.tokenizer.to_dict())
        lm = model.own_decoder.lm if isinstance(model.own_decoder, BeamDecoder) else None
        if lm is not None:
            shutil.copyfile(lm, folder / _lm_name(lm))
    if (parted := _parted(model, folder)) is not None:
        write_json(folder / TOKENIZER, parted.tokenizer.to_dict())
    if isinstance(model, LatticeModel) and model.decoding is not None:
        model.decoding.copy_to(folder)
    if isinstance(model.frontend, KaldiFrontend) and (arrays := model.frontend.arrays()):
        np.savez(folder / FRONTEND_ARRAYS, **arrays)
    write_json(folder / LAYERS, list(rows))
    write_json(folder / CALIBRATION, fingerprints(utterances))
    (folder / "recipe.toml").write_text(prepared.recipe.dumps(), "utf-8")


def describe(prepared: Prepared, folder: Path, parity: dict[str, Any], count: int, seconds: float) -> Artifact:
    """The artifact's description, for what lies in ``folder`` by then."""
    model, recipe = prepared.model, prepared.recipe
    parted = _parted(model, folder)
    provenance = {
        **model.provenance,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "quantasr": __version__,
        "torch": torch.__version__,
        "calibration": {"utterances": count, "seconds": round(seconds, 1)},
        "folded_batch_norms": len(prepared.folded),
    }
    return Artifact(
        folder=folder,
        name=f"{model.name}-{recipe.name}",
        family=model.family,
        decoder=model.decoder,
        padded_batches=model.padded_batches,
        frame_seconds=model.frame_seconds if isinstance(model, FrameModel | PartsModel) else 0.0,
        min_samples=model.min_samples,
        frontend=model.frontend,
        tokenizer=model.tokenizer if isinstance(model, CtcModel) else parted and parted.tokenizer,
        recipe=recipe.to_dict(),
        provenance=provenance,
        parity=parity,
        decoding=parted.decoding if parted else _decoding(model),
        parts={name: part.to_dict() for name, part in parted.parts().items()} if parted else {},
    )


def _parted(model: AsrModel, folder: Path) -> PartsModel | None:
    """A model whose parts are graphs; None for one that runs whole, in its framework."""
    return model if isinstance(model, PartsModel) and not (folder / NATIVE).exists() else None


def _decoding(model: AsrModel) -> dict[str, Any]:
    """The options of a search, and its files by the names that they have in the folder; nothing for greedy."""
    if isinstance(model, LatticeModel) and model.decoding is not None:
        return model.decoding.to_dict()
    if not isinstance(model, CtcModel) or not isinstance(model.own_decoder, BeamDecoder):
        return {}
    decoder = model.own_decoder
    return {**decoder.to_dict(), "lm": None if decoder.lm is None else _lm_name(decoder.lm)}


def _lm_name(lm: str | Path) -> str:
    return f"lm{''.join(Path(lm).suffixes[-2:])}"  # .arpa, .arpa.gz, .bin


def write_json(path: Path, row: Any) -> None:
    """Write a file that people can read too."""
    path.write_text(json.dumps(row, indent=1, ensure_ascii=False) + "\n", "utf-8")
