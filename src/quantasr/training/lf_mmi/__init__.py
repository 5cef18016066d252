"""Lattice-free MMI for Kaldi's chain models."""
