"""Decoding with graphs: a beam search that keeps lattices, and what is read off lattices; needs the extra ``lattice``."""
