"""Kaldi's and Vosk's nnet3 models as a :class:`KaldiModel`: ``final.mdl`` with its features, i-vectors and graph."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quantasr.errors import ModelLoadError
from quantasr.kaldi.cmvn import OnlineCmvn, read_cmvn_stats
from quantasr.kaldi.ivector import load_extractor
from quantasr.kaldi.nnet3.model import AcousticModel, read_model
from quantasr.kaldi.nnet3.transitions import TransitionModel
from quantasr.sources.asr_model import FrameGraph
from quantasr.sources.kaldi.build import INPUT, build_network
from quantasr.sources.kaldi.folder import KaldiFolder, cmvn_options, find_model, open_folder
from quantasr.sources.kaldi.model import KaldiModel
from quantasr.sources.kaldi.network import KaldiNetwork
from quantasr.sources.kaldi.reading import IVECTOR
from quantasr.sources.kaldi.skeleton import files_of, read_skeleton
from quantasr.speech.frontend.kaldi import KaldiFrontend
from quantasr.speech.frontend.kaldi_features import FBANK, GIVEN, MFCC, KaldiFeatures
from quantasr.speech.lattice.align import read_boundaries
from quantasr.speech.lattice.decoder import LatticeOptions
from quantasr.speech.lattice.files import DecodingFiles, find_graph

__all__ = ["KaldiModel", "load", "rebuild", "recognises"]

_OPTIONS = {
    "beam": "beam",
    "max-active": "max_active",
    "min-active": "min_active",
    "lattice-beam": "lattice_beam",
    "acoustic-scale": "acoustic_scale",
    "beam-delta": "beam_delta",
    "prune-interval": "prune_interval",
}
_FIRST_VOSK = {"max_active": 7000, "beam": 13.0, "lattice_beam": 6.0, "acoustic_scale": 1.0}
"""What Vosk takes for models without a model.conf."""
_RECIPE = {"max_active": 7000, "beam": 15.0, "lattice_beam": 8.0}
"""What Kaldi's decoding scripts take."""
_VOSK_SILENCE = 1e-3
_VOSK_LM_SCALE = 0.9
_SILENCE_PHONES = "endpoint.silence-phones"
_VOSK_SUBSAMPLING = 3


def recognises(where: str) -> bool:
    """Whether ``where`` is a ``final.mdl``, or a folder with one in it or in ``am``."""
    return find_model(Path(where)) is not None


def load(where: str, *, revision: str | None = None, trust: bool = False) -> KaldiModel:
    """Load an acoustic model with its features, i-vectors and decoding graph, as far as they are there.

    Nothing in these files is executed. Raises :class:`ModelLoadError` (KaldiFileError with the byte offset) for what is
    damaged, unknown, or does not fit together.
    """
    folder = open_folder(Path(where))
    model = read_model(folder.model)
    subsampling = _subsampling(folder)
    network = build_network(
        model.network,
        model.left_context,
        model.right_context,
        subsampling=subsampling,
        priors=model.priors,
        where=str(folder.model),
    )
    frontend = _frontend(folder, model)
    decoding = _decoding(folder, model, subsampling)
    name = folder.root.resolve().name if folder.root.resolve().name != "model" else folder.root.resolve().parent.name
    provenance = {
        "source": "kaldi",
        "model": where,
        "architecture": "nnet3",
        "parameters": sum(p.numel() for p in network.parameters()),
        "pdfs": model.network.dims()["output"],
    }
    return _assemble(name, network, frontend, model, subsampling, decoding, provenance)


def rebuild(folder: Path, *, trust: bool = False) -> KaldiModel:
    """The model whose :attr:`KaldiModel.files` lie in ``folder``, with its ``frontend.npz``; its weights are zeros.

    It has no decoding graph: that is the artifact's.
    """
    model, frontend, row = read_skeleton(folder)
    network = build_network(
        model.network,
        model.left_context,
        model.right_context,
        subsampling=row["subsampling"],
        priors=model.priors,
        where=str(folder),
    )
    return _assemble(row["name"], network, frontend, model, row["subsampling"], None, row["provenance"])


def _assemble(
    name: str,
    network: KaldiNetwork,
    frontend: KaldiFrontend,
    model: AcousticModel,
    subsampling: int,
    decoding: DecodingFiles | None,
    provenance: dict[str, Any],
) -> KaldiModel:
    return KaldiModel(
        name=name,
        family="kaldi",
        module=network,
        graph=_Graph(network),
        frontend=frontend,
        padded_batches=not network.hears_the_end,
        min_samples=max(
            frontend.min_samples, frontend.features.window_size + 2 * subsampling * frontend.features.shift
        ),
        frame_seconds=subsampling * frontend.features.shift / frontend.sample_rate,
        decoding=decoding,
        rewrite=_rewrite,
        transitions=model.transitions,
        provenance=provenance,
        files=files_of(model, frontend, name=name, subsampling=subsampling, provenance=provenance),
    )


def _rewrite(module: nn.Module) -> None:
    assert isinstance(module, KaldiNetwork)
    module.distribute_scales()


class _Graph(FrameGraph):
    """What is exported: features and lengths to log-likelihoods and their number."""

    def __init__(self, network: KaldiNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Any:
        logprobs = self.network(features)
        return logprobs if lengths is None else (logprobs, self.frame_counts(lengths))

    def frame_counts(self, lengths: Tensor) -> Tensor:
        """Every ``subsampling``-th frame that has its whole context."""
        left, right = self.network.contexts
        return torch.div(lengths - left - right - 1, self.network.subsampling, rounding_mode="floor") + 1


def _subsampling(folder: KaldiFolder) -> int:
    first = folder.vosk and not folder.options
    return _VOSK_SUBSAMPLING if first and folder.subsampling == 1 else folder.subsampling


def _frontend(folder: KaldiFolder, model: AcousticModel) -> KaldiFrontend:
    inputs = model.network.inputs
    if folder.features is None:
        features = KaldiFeatures(type=GIVEN, num_ceps=inputs[INPUT])
    else:
        features = KaldiFeatures.from_conf(folder.features, FBANK if "fbank" in folder.features.name else MFCC)
    if features.dim != inputs[INPUT]:
        raise ModelLoadError(
            f"{folder.features}: gives {features.dim} features a frame, and {folder.model} reads {inputs[INPUT]}: "
            f"they do not belong together"
        )
    frontend = KaldiFrontend(features, model.left_context, model.right_context, **_normalization(folder))
    wanted = inputs.get(IVECTOR, 0)
    if not wanted:
        return frontend
    if folder.extractor is None:
        return replace(frontend, ivector_mode="given", given_dim=wanted)
    extractor = load_extractor(folder.extractor)
    if extractor.ivector_dim != wanted:
        raise ModelLoadError(
            f"{folder.extractor}: gives i-vectors of {extractor.ivector_dim} values, and {folder.model} reads "
            f"{wanted}: they do not belong together"
        )
    if extractor.feature_dim != features.dim:
        raise ModelLoadError(
            f"{folder.extractor}: was made for {extractor.feature_dim} features a frame, and {folder.features} gives "
            f"{features.dim}: they do not belong together"
        )
    quiet = _VOSK_SILENCE if folder.vosk and _SILENCE_PHONES in folder.options else 1.0
    return replace(frontend, ivector_mode="looped", extractor=extractor, silence_weight=quiet)


def _normalization(folder: KaldiFolder) -> dict[str, Any]:
    """CMVN of the features: Vosk's and online decoding's global statistics, or each utterance's as cmvn_opts says."""
    if folder.cmvn is not None and (folder.vosk or "global-cmvn-stats" in folder.options):
        return {"cmvn": "online", "cmvn_stats": read_cmvn_stats(folder.cmvn), "online_cmvn": OnlineCmvn()}
    options = cmvn_options(folder.root)
    means, variances = (options.get(name, default) == "true" for name, default in _CMVN_DEFAULTS.items())
    return {"cmvn": "utterance", "norm_vars": variances} if options and means else {}


_CMVN_DEFAULTS = {"norm-means": "true", "norm-vars": "false"}


def _decoding(folder: KaldiFolder, model: AcousticModel, subsampling: int) -> DecodingFiles | None:
    if folder.graph is None or model.transitions is None:
        return None
    pdfs = model.network.dims()["output"]
    if model.transitions.num_pdfs > pdfs:
        raise ModelLoadError(
            f"{folder.model}: its transition model has {model.transitions.num_pdfs} pdfs, its network gives {pdfs}"
        )
    chain = subsampling > 1 and not len(model.priors)
    if folder.vosk:
        start = LatticeOptions.from_dict({**({} if folder.options else _FIRST_VOSK), "lm_scale": _VOSK_LM_SCALE})
    else:
        start = LatticeOptions.from_dict({**_RECIPE, "acoustic_scale": 1.0 if chain else 0.1})
    own = {_OPTIONS[name]: option for name, option in folder.options.items() if name in _OPTIONS}
    found = {name: option.value(getattr(start, name)) for name, option in own.items()}
    try:
        options = LatticeOptions.from_dict({**start.to_dict(), **found})
    except ValueError as error:
        raise ModelLoadError(f"{next(iter(own.values())).path}: {error}") from error
    return DecodingFiles(
        find_graph(folder.graph.parent),
        model.transitions.pdf_of_tid,
        options,
        silent=_silent(folder, model.transitions),
        boundaries=None if folder.word_boundary is None else read_boundaries(folder.word_boundary, model.transitions),
    )


def _silent(folder: KaldiFolder, transitions: TransitionModel) -> NDArray[np.bool_] | None:
    """The transition-ids of the phones that Vosk takes for silence."""
    option = folder.options.get(_SILENCE_PHONES) if folder.vosk else None
    if option is None:
        return None
    phones = [part for part in re.split("[:,]", option.text) if part]
    if not all(part.isdecimal() and len(part) < 10 for part in phones):
        raise option.fail(f"{option.text[:60]!r} are not numbers of phones")
    silent: NDArray[np.bool_] = np.isin(transitions.phone_of_tid, [int(part) for part in phones])
    return silent
