"""quantasr: make trained speech recognisers small and fast on CPUs, and prove that the WER held."""

__version__ = "0.1.0"
