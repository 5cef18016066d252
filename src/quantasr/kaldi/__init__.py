"""Kaldi's and OpenFst's files and objects, without Kaldi and without PyTorch."""
