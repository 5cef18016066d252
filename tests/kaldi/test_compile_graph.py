"""Graph compilation: against Kaldi's own H, self-loops, trees and ARPA reader, hand-worked costs, and brute force."""

from __future__ import annotations

import heapq
import itertools
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("kaldifst")
pytest.importorskip("numba")

from quantasr.cli import main
from quantasr.errors import KaldiFileError, ModelLoadError
from quantasr.kaldi.compile import (
    ContextTree,
    GraphOptions,
    Pronunciation,
    compile_graph,
    grammar_fst,
    make_graph,
    read_lexicon,
    read_tree,
    sentences,
    tree_of,
    word_loop,
    word_table,
    write_tree,
)
from quantasr.kaldi.compile.arpa import arpa_fst
from quantasr.kaldi.compile.arrays import FstBuilder, from_kaldifst, to_kaldifst
from quantasr.kaldi.compile.hmm import add_self_loops, h_fst
from quantasr.kaldi.compile.lexicon import disambiguated, in_phones, lexicon_fst
from quantasr.kaldi.compile.tree import PDF_CLASS, Leaf, Split, Table
from quantasr.kaldi.fst import Fst, SymbolTable, read_fst, read_words
from quantasr.kaldi.nnet3 import TransitionModel, read_model
from quantasr.kaldi.nnet3.transitions import HmmState, Topology

DATA = Path(__file__).parents[1] / "data" / "kaldi"
DIGITS = DATA / "digits"
LN2 = math.log(2)


def cost(fst: Fst, inputs: list[int], outputs: list[int]) -> float:
    """The cost of the best path with these labels, by Dijkstra's algorithm."""
    best = {(fst.start, 0, 0): 0.0}
    heap = [(0.0, (fst.start, 0, 0))]
    answer = math.inf
    while heap:
        so_far, (state, i, o) = heapq.heappop(heap)
        if so_far > best[state, i, o]:
            continue
        if i == len(inputs) and o == len(outputs):
            answer = min(answer, so_far + float(fst.final[state]))
        for at in range(fst.first[state], fst.first[state + 1]):
            ilabel, olabel, _, end = fst.arcs[at].tolist()
            if (ilabel and (i == len(inputs) or inputs[i] != ilabel)) or (
                olabel and (o == len(outputs) or outputs[o] != olabel)
            ):
                continue
            node = (end, i + bool(ilabel), o + bool(olabel))
            total = so_far + float(fst.weights[at])
            if total < best.get(node, math.inf):
                best[node] = total
                heapq.heappush(heap, (total, node))
    return answer


def walk(fst: Fst, rng: random.Random, steps: int) -> tuple[list[int], list[int]] | None:
    """The labels of a random path to a final state."""
    state, inputs, outputs = fst.start, [], []
    for step in range(5 * steps):
        arcs = fst.arcs[fst.first[state] : fst.first[state + 1]].tolist()
        if np.isfinite(fst.final[state]) and (step >= steps or not arcs):
            return inputs, outputs
        ilabel, olabel, _, state = rng.choice(arcs)
        inputs += [ilabel] * bool(ilabel)
        outputs += [olabel] * bool(olabel)
    return None


def assert_same(one: Fst, other: Fst, steps: int = 12) -> None:
    """The same costs for random paths of either."""
    rng = random.Random(0)
    compared = 0
    for fst in (one, other) * 60:
        labels = walk(fst, rng, steps)
        if labels is not None:
            compared += 1
            assert cost(one, *labels) == pytest.approx(cost(other, *labels), abs=1e-4), labels
    assert compared > 60


def fst_of(rows: dict) -> Fst:
    """An Fst of golden.json."""
    builder = FstBuilder()
    for _ in range(1 + max(max(arc[0], arc[4]) for arc in rows["arcs"])):
        builder.state()
    for arc in rows["arcs"]:
        builder.arc(*arc)
    for state, final in rows["finals"].items():
        builder.end(int(state), final)
    return builder.fst(rows["start"])


@pytest.fixture(scope="module")
def golden() -> dict:
    """What Kaldi's code makes; ``graphs/make.py`` says how."""
    return json.loads((DATA / "graphs" / "golden.json").read_text())


@pytest.fixture(scope="module")
def mixed(golden) -> tuple[TransitionModel, ContextTree]:
    """Two phones of chain models, one of three states with a skip, one whose states lead back; and their tree."""
    chain = (HmmState(0, 1, ((0, 0.4), (1, 0.6))), HmmState())
    three = (
        HmmState(0, 0, ((0, 0.75), (1, 0.25))),
        HmmState(1, 1, ((1, 0.6), (2, 0.3), (3, 0.1))),
        HmmState(2, 2, ((2, 0.75), (3, 0.25))),
        HmmState(),
    )
    silence = (
        HmmState(0, 0, ((0, 0.25), (1, 0.5), (2, 0.25))),
        HmmState(1, 1, ((1, 0.4), (2, 0.4), (3, 0.2))),
        HmmState(2, 2, ((1, 0.3), (2, 0.4), (3, 0.3))),
        HmmState(3, 3, ((3, 0.7), (4, 0.3))),
        HmmState(),
    )
    topology = Topology(np.arange(1, 5, dtype=np.int32), np.array([-1, 0, 0, 1, 2], np.int32), (chain, three, silence))
    tuples = [
        [phone, state, pdfs[hmm.forward_pdf_class], pdfs[hmm.self_loop_pdf_class]]
        for phone, pdfs in enumerate(golden["pdfs"], 1)
        for state, hmm in enumerate(topology.states_of(phone)[:-1])
    ]
    model = TransitionModel(topology, np.array(tuples, np.int32), np.array(golden["log_probs"], np.float32))
    return model, tree_of(model)


# H, self-loops, trees


def test_h_is_kaldis(golden, mixed):
    model, tree = mixed
    made = h_fst(golden["windows"], tree, model, transition_scale=0.7)
    assert_same(made, fst_of(golden["h"]))
    assert golden["symbols"] == [model.num_transition_ids + 1, model.num_transition_ids + 2]


def test_self_loops_are_kaldis(golden, mixed):
    rows = [line.split() for line in golden["graph"].splitlines()]
    arcs = [(int(a), int(i), int(o), float(w), int(b)) for a, b, i, o, w in (row for row in rows if len(row) == 5)]
    bare = fst_of({"start": 0, "arcs": arcs, "finals": {row[0]: float(row[1]) for row in rows if len(row) == 2}})
    made = add_self_loops(bare, mixed[0], self_loop_scale=0.3)
    wanted = fst_of(golden["looped"])
    assert (made.states, len(made.arcs)) == (wanted.states, len(wanted.arcs))
    assert_same(made, wanted)


@pytest.mark.parametrize("form", ["binary", "text"])
def test_tree_is_kaldis_and_written_with_the_same_bytes(golden, mixed, form, tmp_path):
    data = bytes.fromhex(golden["trees"][form])
    (tmp_path / "tree").write_bytes(data)
    tree = read_tree(tmp_path / "tree")
    assert [[tree.pdf([p], k) for k in range(len(pdfs))] for p, pdfs in enumerate(golden["pdfs"], 1)] == golden["pdfs"]
    write_tree(tree, tmp_path / "again", binary=form == "binary")
    assert (tmp_path / "again").read_bytes() == data
    assert tree == mixed[1]


def test_tree_with_questions(tmp_path):
    (tmp_path / "tree").write_text(
        "ContextDependency 2 1 ToPdf SE 0 [ 0 2 ]\n{ TE -1 2 ( CE 5 CE 6 ) SE 1 [ 3 ]\n{ CE 7 CE 8 } } "
        "EndContextDependency "
    )
    tree = read_tree(tmp_path / "tree")
    assert (tree.width, tree.central) == (2, 1)
    assert [tree.pdf((0, 3), 0), tree.pdf((2, 3), 1), tree.pdf((1, 3), 0), tree.pdf((1, 4), 1)] == [5, 6, 7, 8]
    write_tree(tree, tmp_path / "binary")
    assert read_tree(tmp_path / "binary") == tree
    with pytest.raises(ModelLoadError, match="no pdf for phones"):
        tree.pdf((0, 3), 2)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("ContextDependency 2 2 ToPdf CE 0", "2 phones around number 2"),
        ("ContextDependency 1 0 ToPdf TE 0 4000000000 ( CE 0 )", "table of 4000000000 branches"),
        ("ContextDependency 1 0 ToPdf XX ", "NULL or CE or TE or SE was expected"),
        ("ContextDependency 1 0 ToPdf " + "TE 0 1 ( " * 400, "nested"),
        ("ContextDependency 1 0 ToPdf NULL EndContextDependency ", "empty"),
        ("ContextDependency 1 0 ToPdf SE 0 [ 1 ]\n{ CE 0 NULL } ", "no branch"),
    ],
)
def test_broken_tree_is_one_line(text, problem, tmp_path):
    (tmp_path / "tree").write_text(text)
    with pytest.raises(KaldiFileError, match=problem) as caught:
        read_tree(tmp_path / "tree")
    assert "\n" not in str(caught.value) and "byte" in str(caught.value)


# Lexicons


def test_disambiguation_symbols_where_they_are_needed():
    words = [("to", "T UW"), ("two", "T UW"), ("tooth", "T UW TH"), ("eight", "EY T"), ("a", "EY")]
    lexicon = [Pronunciation(word, tuple(phones.split())) for word, phones in words]
    assert [number for _, number in disambiguated(lexicon)] == [1, 2, 0, 0, 1]


def test_phones_get_their_position_where_the_model_has_it():
    phones = SymbolTable.of([("<eps>", 0), ("SIL", 1), ("AY_S", 2), ("AY_B", 3), ("T_E", 4), ("T", 5)])
    lexicon = [Pronunciation("i", ("AY",)), Pronunciation("ite", ("AY", "T")), Pronunciation("x", ("AY_B", "T_E"))]
    assert [entry.phones for entry in in_phones(lexicon, phones)] == [("AY_S",), ("AY_B", "T"), ("AY_B", "T_E")]
    with pytest.raises(ModelLoadError, match="'tie': phone 'AY' is none of the model's"):
        in_phones([Pronunciation("tie", ("T", "AY"))], phones)


def test_lexicon_costs():
    phones = SymbolTable.of([("<eps>", 0), ("SIL", 1), ("A", 2), ("B", 3)])
    lexicon = [Pronunciation("x", ("A",), 0.5), Pronunciation("x", ("A", "B"), 0.25)]
    words = word_table(["x"])
    made = lexicon_fst(lexicon, phones, words, silence_probability=0.2)
    x, symbol, silence_symbol = words.ids["x"], made.phones.ids["#1"], made.phones.ids["#2"]
    plain, pause = -math.log(0.8), -math.log(0.2)
    assert cost(made.fst, [2, symbol], [x]) == pytest.approx(LN2 + 2 * plain)
    assert cost(made.fst, [1, silence_symbol, 2, 3], [x]) == pytest.approx(2 * LN2 + pause + plain)
    assert cost(made.fst, [2], [x]) == math.inf
    assert made.disambiguation == (made.phones.ids["#0"], symbol, silence_symbol) == (4, 5, 6)


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("lexicon.txt", "one W AH N\n\ntwo\n", "line 3: 'two' has no phones"),
        ("lexiconp.txt", "one 1.0 W AH N\ntwo T UW\n", "line 2: 'T' is no probability"),
        ("lexiconp.txt", "one 1.5 W AH N\n", "line 1: '1.5' is no probability"),
        ("lexicon.txt", "\n", "no pronunciation in it"),
    ],
)
def test_broken_lexicon_is_one_line(name, text, problem, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(KaldiFileError, match=problem):
        read_lexicon(tmp_path / name)


# Grammars

ARPA = """
\\data\\
ngram 1=6
ngram 2=5
ngram 3=2

\\1-grams:
-99 <s> -0.30103
-0.8 </s>
-0.7 one -0.2
-0.6 two -0.25
-0.9 three
-1.2 <unk>

\\2-grams:
-0.3 <s> one -0.1
-0.5 one two -0.15
-0.4 two two
-0.35 two </s>
-0.9 three one

\\3-grams:
-0.2 <s> one two
-0.1 one two </s>

\\end\\
"""
# What kaldilm 1.15.5 (Kaldi's arpa2fst) makes of it with the words one 1, three 2, two 3 and #0 4.
ARPA2FST = """1 5 1 1 0.690776
1 0 4 0 0.693147
0 2 1 1 1.61181
0 4 2 2 2.07233
0 3 3 3 1.38155
0 1.84207
2 6 3 3 1.15129
2 0 4 0 0.460517
3 7 3 3 0.921034
3 0 4 0 0.575646
3 0.805905
4 8 1 1 2.07233
4 0 4 0 0
5 6 3 3 0.460517
5 2 4 0 0.230259
6 3 4 0 0.345388
6 0.230259
7 3 4 0 0
8 2 4 0 0
"""


def backing_off_anywhere(fst: Fst, backoff: int) -> Fst:
    """The same with epsilon for the symbol of backing off."""
    arcs = fst.arcs.copy()
    arcs[arcs[:, 0] == backoff, 0] = 0
    return Fst(fst.start, fst.first, arcs, fst.final)


def test_arpa_is_as_kaldi_reads_it(tmp_path):
    (tmp_path / "a.arpa").write_text(ARPA)
    table = word_table(["one", "two", "three"])
    made, left_out = arpa_fst(tmp_path / "a.arpa", table)
    rows = [line.split() for line in ARPA2FST.splitlines()]
    arcs = [(int(a), int(i), int(o), float(w), int(b)) for a, b, i, o, w in (row for row in rows if len(row) == 5)]
    wanted = fst_of({"start": 1, "arcs": arcs, "finals": {row[0]: float(row[1]) for row in rows if len(row) == 2}})
    made, wanted = (backing_off_anywhere(fst, table.ids["#0"]) for fst in (made, wanted))
    assert left_out == 1
    for count in range(5):
        for ids in itertools.product((1, 2, 3), repeat=count):
            assert cost(made, list(ids), list(ids)) == pytest.approx(cost(wanted, list(ids), list(ids)), abs=1e-4), ids
    # By hand: <s> one 0.3, <s> one two 0.2, one two </s> 0.1
    assert cost(made, [1, 3], [1, 3]) == pytest.approx(0.6 * math.log(10), abs=1e-5)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("\\end\\", "", "ends without"),
        ("ngram 2=5", "ngram 2=6", "line 22: 6 2-grams were announced, there are 5"),
        ("-0.7 one -0.2", "x one -0.2", "line 10: 'x one -0.2' has no number"),
        ("-0.7 one -0.2", "-0.7 one -0.2 4", "line 10: a 1-gram is a number, 1 words"),
        ("-0.7 one -0.2", "0.7 one -0.2", "line 10: 0.7 is no logarithm"),
        ("\\data\\\nngram 1=6\nngram 2=5\nngram 3=2\n", "", "begins with"),
    ],
)
def test_broken_arpa_is_one_line(old, new, problem, tmp_path):
    (tmp_path / "a.arpa").write_text(ARPA.replace(old, new))
    with pytest.raises(KaldiFileError, match=problem) as caught:
        arpa_fst(tmp_path / "a.arpa", word_table(["one", "two", "three"]))
    assert "\n" not in str(caught.value)


def test_runtime_grammar_is_vosks_bigram():
    table = word_table(["a", "b", "[unk]"])
    a, b, unknown = (table.ids[word] for word in ("a", "b", "[unk]"))
    made = grammar_fst(["a b", "a a nowhere", "[unk]"], table)
    # All words together: a 3 times, b once, [unk] once, the end 3 times; after a: b, a, end; half of it all is kept.
    assert cost(made, [b], [b]) == pytest.approx(-math.log(0.5 * 1 / 8) - math.log(0.5 * 1 / 1))
    assert cost(made, [a, b], [a, b]) == pytest.approx(-math.log(0.5 * 3 / 8 * 0.5 / 3 * 0.5))
    # b is never followed by a: back to the state of all words
    assert cost(made, [b, a], [b, a]) == pytest.approx(-math.log(0.5 / 8 * 0.5 * 0.5 * 3 / 8 * 0.5 / 3))
    assert cost(made, [unknown, unknown], [unknown, unknown]) < math.inf
    with pytest.raises(ModelLoadError, match="no word that the model knows"):
        grammar_fst(["nowhere"], table)


# Whole graphs


@pytest.fixture(scope="module")
def digits():
    """The trained model's parts."""
    model = read_model(DIGITS / "final.mdl").transitions
    return model, read_tree(DIGITS / "tree"), read_words(DIGITS / "phones.txt"), read_lexicon(DIGITS / "lexicon.txt")


def path_of(words, lexicon, phones, model, tree, rng, silence="SIL"):
    """Transition-ids of words said with random silences and lengths of phones, and what their HMMs cost."""
    sequence = [silence] if rng.random() < 0.5 else []
    pauses = len(sequence)
    for word in words:
        chosen = rng.choice([e for e in lexicon if e.word == word])
        sequence += chosen.phones
        if rng.random() < 0.5:
            sequence.append(silence)
            pauses += 1
    ids = [0] * (tree.width - 1) + [phones.ids[phone] for phone in sequence]
    tids, total = [], 0.0
    for at in range(tree.width - 1, len(ids)):
        window, phone = ids[at - tree.width + 1 : at + 1], ids[at]
        state = model.topology.states_of(phone)[0]
        pdfs = (tree.pdf(window, state.forward_pdf_class), tree.pdf(window, state.self_loop_pdf_class))
        loop = model.first_tid(phone, 0, *pdfs)
        frames = rng.randrange(1, 4)
        tids += [loop + 1] + [loop] * (frames - 1)
        total -= (frames - 1) * float(model.log_probs[loop]) + float(model.log_probs[loop + 1])
    return tids, total, pauses


def test_digit_graph_costs_what_it_must(digits):
    model, tree, phones, lexicon = digits
    table = read_words(DIGITS / "graph" / "words.txt")
    graph = read_fst(DIGITS / "graph" / "HCLG.fst")
    rng = random.Random(1)
    entries = in_phones(lexicon, phones)
    for _ in range(60):
        words = [rng.choice(lexicon).word for _ in range(rng.randrange(5))]
        tids, _, _ = path_of(words, entries, phones, model, tree, rng)
        ids = [table.ids[word] for word in words]
        # Each frame ln 2, each place for silence ln 2, each word and the end ln 11.
        wanted = len(tids) * LN2 + (len(words) + 1) * (LN2 + math.log(11))
        assert cost(graph, tids, ids) == pytest.approx(wanted, abs=2e-3), words
        if words:
            assert cost(graph, tids, ids[:-1]) == math.inf
            assert cost(graph, tids, [1 + ids[0] % 10, *ids[1:]]) == math.inf


def test_sentences_are_all_that_is_accepted(digits):
    model, tree, phones, lexicon = digits
    table = word_table(entry.word for entry in lexicon)
    lines = ["one two", "one", "three three nine", "one two"]
    graph = compile_graph(model, tree, phones, lexicon, sentences(lines, table), table).fst
    found, todo = set(), [(graph.start, ())]
    while todo:
        state, said = todo.pop()
        if np.isfinite(graph.final[state]):
            found.add(" ".join(table.words[i] for i in said))
        for _, olabel, _, end in graph.arcs[graph.first[state] : graph.first[state + 1]].tolist():
            if end != state:
                todo.append((end, (*said, olabel) if olabel else said))
    assert found == set(lines)
    rng = random.Random(0)
    entries = in_phones(lexicon, phones)
    for words, likely in ((["one", "two"], 0.5), (["one"], 0.25), (["three", "three", "nine"], 0.25)):
        tids, total, _ = path_of(words, entries, phones, model, tree, rng)
        wanted = total - math.log(likely) + (len(words) + 1) * LN2
        assert cost(graph, tids, [table.ids[w] for w in words]) == pytest.approx(wanted, abs=1e-3)


@pytest.fixture(scope="module")
def biphone():
    """A left-biphone chain model with a random tree, and a lexicon with homophones and words within words."""
    rng = random.Random(3)
    names = ["<eps>", "SIL", "A", "B", "C"]
    phones = SymbolTable.of((name, i) for i, name in enumerate(names))
    pdf = itertools.count()

    def branch(phone: int, depth: int) -> Split | Table:
        if depth == 0 or (depth < 2 and rng.random() < 0.3):
            return Table(PDF_CLASS, (Leaf(next(pdf)), Leaf(next(pdf))))
        asked = frozenset(rng.sample(range(5), 2))
        return Split(0, asked, branch(phone, depth - 1), branch(phone, depth - 1))

    tree = ContextTree(2, 1, Table(1, (None, *(branch(phone, 2) for phone in range(1, 5)))))
    state = HmmState(0, 1, ((0, 0.4), (1, 0.6)))
    topology = Topology(np.arange(1, 5, dtype=np.int32), np.array([-1, 0, 0, 0, 0], np.int32), ((state, HmmState()),))
    seen = {(p, 0, tree.pdf((left, p), 0), tree.pdf((left, p), 1)) for p in range(1, 5) for left in range(5)}
    shares = [share for _ in seen for share in np.log((0.4, 0.6))]
    model = TransitionModel(topology, np.array(sorted(seen), np.int32), np.array([0, *shares], np.float32))
    texts = ["x A B", "y A B", "x C", "z A", "w A B C", "v B A"]
    lexicon = [Pronunciation(line.split()[0], tuple(line.split()[1:])) for line in texts]
    return model, tree, phones, lexicon


def test_left_biphones_against_brute_force(biphone):
    model, tree, phones, lexicon = biphone
    table = word_table(entry.word for entry in lexicon)
    g = word_loop([entry.word for entry in lexicon], table)
    graph = compile_graph(model, tree, phones, lexicon, g, table, GraphOptions(silence_probability=0.3)).fst
    rng = random.Random(0)
    for _ in range(60):
        words = [rng.choice(lexicon).word for _ in range(rng.randrange(1, 5))]
        tids, total, pauses = path_of(words, lexicon, phones, model, tree, rng)
        total -= pauses * math.log(0.3) + (len(words) + 1 - pauses) * math.log(0.7)
        total += (len(words) + 1) * math.log(6)
        assert cost(graph, tids, [table.ids[w] for w in words]) == pytest.approx(total, abs=5e-3), words
    tids, _, _ = path_of(["z", "v"], lexicon, phones, model, tree, random.Random(1))
    assert cost(graph, tids[1:], [table.ids["z"], table.ids["v"]]) == math.inf


def test_bigrams_with_backing_off_in_a_whole_graph(biphone, tmp_path):
    model, tree, phones, lexicon = biphone
    (tmp_path / "a.arpa").write_text(
        ARPA.replace("one", "x").replace("two", "y").replace("three", "z").replace("<unk>", "q")
    )
    table = word_table(entry.word for entry in lexicon)
    g, _ = arpa_fst(tmp_path / "a.arpa", table)
    graph = compile_graph(model, tree, phones, lexicon, g, table).fst
    alone = backing_off_anywhere(g, table.ids["#0"])
    rng = random.Random(0)
    for _ in range(30):
        words = [rng.choice("xyz") for _ in range(rng.randrange(1, 4))]
        ids = [table.ids[w] for w in words]
        tids, total, _ = path_of(words, lexicon, phones, model, tree, rng)
        wanted = total + cost(alone, ids, ids) + (len(words) + 1) * LN2
        assert cost(graph, tids, ids) == pytest.approx(wanted, abs=5e-3), words


def test_kaldifst_and_back(digits):
    graph = read_fst(DIGITS / "graph" / "HCLG.fst")
    back = from_kaldifst(to_kaldifst(graph))
    assert np.array_equal(back.arcs, graph.arcs) and np.array_equal(back.final, graph.final)
    assert np.array_equal(back.first, graph.first) and back.start == graph.start


# The command


def test_command_makes_the_trained_models_graph(tmp_path, capsys):
    command = ["compile-graph", str(DIGITS), "--lexicon", str(DIGITS / "lexicon.txt"), "--words"]
    assert main([*command, "--out", str(tmp_path / "graph"), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {"states": 32, "arcs": 77, "words": 10, "ngrams_left_out": 0}
    assert "H o CLG" in said.err
    names = ("words.txt", "phones.txt", "phones/word_boundary.int")
    for name in names:
        assert (tmp_path / "graph" / name).read_text() == (DIGITS / "graph" / name).read_text()
    assert_same(read_fst(tmp_path / "graph" / "HCLG.fst"), read_fst(DIGITS / "graph" / "HCLG.fst"), steps=30)
    assert sorted(p.name for p in (tmp_path / "graph").iterdir()) == ["HCLG.fst", "phones", "phones.txt", "words.txt"]


@pytest.mark.parametrize(
    ("lexicon", "grammar", "problem"),
    [
        ("one W AH N\n", "two\n", "'two' has no pronunciation: add it to the lexicon"),
        ("one W XX N\n", "one\n", "'one': phone 'XX' is none of the model's"),
        ("one W AH N\n", "\n", "the list of words is empty"),
        ("", "one\n", "no pronunciation in it"),
    ],
)
def test_wrong_input_is_one_line(lexicon, grammar, problem, tmp_path, capsys):
    (tmp_path / "lexicon.txt").write_text(lexicon)
    (tmp_path / "words").write_text(grammar)
    files = ["--lexicon", str(tmp_path / "lexicon.txt"), "--words", str(tmp_path / "words")]
    assert main(["compile-graph", str(DIGITS), *files, "--out", str(tmp_path / "graph")]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("quantasr: ") and problem in line
    assert not (tmp_path / "graph").exists()


def test_folders_that_are_no_model(tmp_path):
    lexicon = DIGITS / "lexicon.txt"
    with pytest.raises(ModelLoadError, match="no such folder"):
        make_graph(tmp_path / "none", lexicon, tmp_path / "graph", kind="words")
    with pytest.raises(ModelLoadError, match=r"has no final\.mdl nor am/final\.mdl"):
        make_graph(tmp_path, lexicon, tmp_path / "graph", kind="words")
    with pytest.raises(ModelLoadError, match="silence 'SPN' is none of the model's phones"):
        make_graph(DIGITS, lexicon, tmp_path / "graph", kind="words", options=GraphOptions(silence="SPN"))
    with pytest.raises(ModelLoadError, match="silence probability 1"):
        GraphOptions(silence_probability=1)


def test_a_tree_of_another_model_is_refused(digits, biphone):
    model, _, phones, lexicon = digits
    table = word_table(entry.word for entry in lexicon)
    with pytest.raises(ModelLoadError, match="tree"):
        compile_graph(model, biphone[1], phones, lexicon, word_loop(["one"], table), table)
