"""nnet3 models of Kaldi: ``read_model``, ``write_model`` and what they are made of."""

from quantasr.kaldi.nnet3.components import Component
from quantasr.kaldi.nnet3.model import AcousticModel, Network, read_model, write_model
from quantasr.kaldi.nnet3.transitions import TransitionModel

__all__ = ["AcousticModel", "Component", "Network", "TransitionModel", "read_model", "write_model"]
