"""Decoding graphs from lexicon, grammar, tree and transition model, with kaldifst and without Kaldi."""

from quantasr.kaldi.compile.grammar import (
    grammar_fst,
    read_phrases,
    sentences,
    unknown_words,
    word_loop,
    word_table,
)
from quantasr.kaldi.compile.graph import Graph, GraphOptions, compile_graph, write_graph
from quantasr.kaldi.compile.lexicon import Pronunciation, read_lexicon
from quantasr.kaldi.compile.make import Made, find_file, make_graph, tree_in
from quantasr.kaldi.compile.tree import ContextTree, read_tree, tree_of, write_tree

__all__ = [
    "ContextTree",
    "Graph",
    "GraphOptions",
    "Made",
    "Pronunciation",
    "compile_graph",
    "find_file",
    "grammar_fst",
    "make_graph",
    "read_lexicon",
    "read_phrases",
    "read_tree",
    "sentences",
    "tree_in",
    "tree_of",
    "unknown_words",
    "word_loop",
    "word_table",
    "write_graph",
    "write_tree",
]
