"""Acoustic models: ``final.mdl`` and ``final.raw`` (Kaldi's nnet3/am-nnet-simple)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import ModelLoadError
from quantasr.kaldi.nnet3.network import Network, read_network, write_network
from quantasr.kaldi.nnet3.transitions import TransitionModel, read_transition_model, write_transition_model
from quantasr.kaldi.stream import Reader, short, single
from quantasr.kaldi.writer import Writer, writing

__all__ = ["AcousticModel", "Network", "read_model", "write_model"]

_OTHERS = {
    "<DIMENSION>": "a Gaussian mixture model",
    "<DiagGMM>": "a Gaussian mixture model",
    "<DiagGMMBegin>": "a Gaussian mixture model",
    "<Nnet>": "a network of nnet1 or nnet2",
    "<NumComponents>": "a network of nnet2",
    "<NUMPDFS>": "a subspace Gaussian mixture model",
}


@dataclass(frozen=True)
class AcousticModel:
    """A network, and the transition model that says what its outputs are (None in a ``.raw`` file).

    ``left_context`` and ``right_context`` are the frames that an output frame needs around it. ``priors``, float32
    [pdfs] or empty, are to be divided out of the outputs. ``binary`` says how the file was, or will be, written.
    Raises ModelLoadError when the network has another number of outputs than there are pdfs, or of priors.
    """

    transitions: TransitionModel | None
    network: Network
    left_context: int = 0
    right_context: int = 0
    priors: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    binary: bool = True

    def __post_init__(self) -> None:
        if self.transitions is None:
            return
        if "output" not in self.network.outputs:
            raise ModelLoadError("the network has no output-node named 'output'")
        outputs = self.network.dims()["output"]
        if outputs != self.transitions.num_pdfs:
            raise ModelLoadError(
                f"the network has {outputs} outputs, but the transition model has {self.transitions.num_pdfs} pdfs"
            )
        if len(self.priors) not in (0, outputs):
            raise ModelLoadError(f"there are {len(self.priors)} priors for {outputs} outputs")


def read_model(path: str | Path) -> AcousticModel:
    """The model in a ``.mdl`` or ``.raw`` file, binary or text.

    Raises KaldiFileError, with file and byte, for anything else and for models of other kinds than nnet3.
    """
    return read_model_from(Reader.open(path))


def read_model_from(reader: Reader) -> AcousticModel:
    """The model that ``reader`` holds; raises KaldiFileError."""
    start = reader.offset
    _expect(reader, "<TransitionModel>", "<Nnet3>")
    if reader.peek_token() == "<Nnet3>":
        return AcousticModel(None, read_network(reader), binary=reader.binary)
    transitions = read_transition_model(reader)
    _expect(reader, "<Nnet3>")
    network = read_network(reader)
    reader.expect_token("<LeftContext>")
    left = reader.read_int32()
    reader.expect_token("<RightContext>")
    right = reader.read_int32()
    reader.expect_token("<Priors>")
    priors = single(reader.read_vector())
    try:
        return AcousticModel(transitions, network, left, right, priors, reader.binary)
    except ModelLoadError as error:
        reader.fail(str(error), start)


def write_model(model: AcousticModel, path: str | Path) -> None:
    """Write ``model``: what was read and not changed gives the same bytes. Raises KaldiFileError."""
    with writing(path, binary=model.binary) as writer:
        write_model_to(writer, model)


def write_model_to(writer: Writer, model: AcousticModel) -> None:
    """Write ``model`` to a ``writer`` of the form that ``model.binary`` says."""
    if model.transitions is None:
        write_network(writer, model.network)
        return
    write_transition_model(writer, model.transitions)
    write_network(writer, model.network)
    for token, context in (("<LeftContext>", model.left_context), ("<RightContext>", model.right_context)):
        writer.write_token(token)
        writer.write_int32(context)
    writer.write_token("<Priors>")
    writer.write_vector(model.priors)


def _expect(reader: Reader, *tokens: str) -> None:
    found = reader.peek_token()
    if found in tokens:
        return
    if found in _OTHERS:
        reader.fail(f"this is {_OTHERS[found]} ({found}); only nnet3 models can be used")
    reader.fail(f"{' or '.join(tokens)} was expected, found '{short(found)}': no nnet3 model of Kaldi's")
