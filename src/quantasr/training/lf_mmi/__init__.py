"""Lattice-free MMI for Kaldi's chain models."""

from quantasr.training.lf_mmi.graphs import ChainGraphs, GraphChoice, graphs_of
from quantasr.training.lf_mmi.loss import LfMmiLoss, LfMmiOptions
from quantasr.training.lf_mmi.objective import lf_mmi

__all__ = ["ChainGraphs", "GraphChoice", "LfMmiLoss", "LfMmiOptions", "graphs_of", "lf_mmi"]
