"""OpenFst's files as arrays, read and written without OpenFst."""

from quantasr.kaldi.fst.fst import INPUT, NEXT, OUTPUT, WEIGHT, Fst, LabelReach
from quantasr.kaldi.fst.read import read_fst, read_output_symbols, require_numba
from quantasr.kaldi.fst.symbols import SymbolTable, read_words

__all__ = [
    "INPUT",
    "NEXT",
    "OUTPUT",
    "WEIGHT",
    "Fst",
    "LabelReach",
    "SymbolTable",
    "read_fst",
    "read_output_symbols",
    "read_words",
    "require_numba",
]
