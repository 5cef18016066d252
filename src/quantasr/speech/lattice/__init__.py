"""Decoding with graphs: a beam search that keeps lattices, and what is read off them; needs the extra ``lattice``."""
