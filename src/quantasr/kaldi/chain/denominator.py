"""Denominator graphs: all that can be said, as an acceptor of pdfs without epsilons (Kaldi's chain-make-den-fst).

Labels are pdfs counted from 1, as in Kaldi's ``den.fst`` and ``normalization.fst``.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantasr.errors import ModelLoadError
from quantasr.kaldi.compile.arrays import assemble, from_kaldifst, import_kaldifst, to_kaldifst
from quantasr.kaldi.compile.hmm import add_self_loops, h_fst
from quantasr.kaldi.compile.tree import ContextTree
from quantasr.kaldi.fst import INPUT, NEXT, OUTPUT, Fst
from quantasr.kaldi.nnet3.transitions import TransitionModel


def make_denominator(phone_lm: Fst, tree: ContextTree, transitions: TransitionModel) -> Fst:
    """The denominator of a phone language model. Raises ModelLoadError where the parts do not fit together."""
    k = import_kaldifst()
    graph = to_kaldifst(pdf_acceptor(phone_lm, tree, transitions))
    for _ in range(2):  # states with the same future, and with the same past, are one
        k.minimize_encoded(graph)
        graph = k.reverse(graph)
    k.rmepsilon(graph)
    return from_kaldifst(graph)


def pdf_acceptor(
    phones: Fst, tree: ContextTree, transitions: TransitionModel, *, scale: float = 1.0, tids: bool = False
) -> Fst:
    """Phones -> pdfs (counted from 1), or with ``tids`` transition-ids: an acceptor without epsilons.

    ``scale`` is that of transition probabilities; numerators have none (0), because their weights come from the
    denominator. Raises ModelLoadError where phones, tree and model do not fit.
    """
    k = import_kaldifst()
    context, windows = k.compose_context([], tree.width, tree.central, to_kaldifst(phones))
    h = to_kaldifst(h_fst(windows, tree, transitions, transition_scale=scale))
    k.arcsort(h, sort_type="olabel")
    k.arcsort(context, sort_type="ilabel")
    composed = k.StdVectorFst(k.compose(h, context))
    if composed.num_states == 0:
        raise ModelLoadError("no sequence of phones can be said with this tree and model: do they belong together?")
    graph = add_self_loops(from_kaldifst(composed), transitions, self_loop_scale=scale)
    arcs = graph.arcs.copy()
    if not tids:
        arcs[:, INPUT] = np.where(arcs[:, INPUT] > 0, transitions.pdf_of_tid[arcs[:, INPUT]] + 1, 0)
    arcs[:, OUTPUT] = arcs[:, INPUT]
    made = to_kaldifst(replace(graph, arcs=arcs))
    k.rmepsilon(made)
    return from_kaldifst(made)


def initial_probs(den: Fst, iterations: int = 100) -> NDArray[np.float64]:
    """How likely each state is, on average over the first ``iterations`` frames (Kaldi's DenominatorGraph).

    Raises ModelLoadError for a graph with a state that leads nowhere.
    """
    source = np.repeat(np.arange(den.states), np.diff(den.first))
    prob, target = np.exp(-den.weights.astype(np.float64)), den.arcs[:, NEXT]
    total = np.exp(-den.final.astype(np.float64)) + np.bincount(source, prob, den.states)
    if (total <= 0).any():
        raise ModelLoadError(f"state {int(np.argmin(total))} of the denominator leads nowhere: was its file cut?")
    share = prob / total[source]
    now: NDArray[Any] = np.zeros(den.states)
    average: NDArray[Any] = np.zeros(den.states)
    now[den.start] = 1
    for _ in range(iterations):
        average += now / iterations
        now = np.bincount(target, share * now[source], den.states)
        now = now / now.sum()
    return average


def normalization_of(den: Fst) -> Fst:
    """``den`` begun in any state, as likely as :func:`initial_probs` says, and ended in any (normalization.fst).

    A numerator composed with it has the denominator's weights, so it is never likelier than the denominator. Kaldi
    keeps the best way only where several first states lead to the same state with the same pdf; here they are summed,
    as the denominator does.
    """
    share = initial_probs(den)
    source = np.repeat(np.arange(den.states), np.diff(den.first))
    weights, labels, targets = den.weights.astype(np.float64), den.arcs[:, INPUT], den.arcs[:, NEXT]
    pairs, way = np.unique(np.stack([labels, targets], 1), axis=0, return_inverse=True)
    first = np.bincount(way.ravel(), share[source] * np.exp(-weights), len(pairs))
    begins = first > 0
    sources = np.concatenate([source, np.full(int(begins.sum()), den.states)])
    labels = np.concatenate([labels, pairs[begins, 0]])
    ends = np.concatenate([targets, pairs[begins, 1]])
    costs = np.concatenate([weights, -np.log(first[begins])])
    return assemble(den.states, sources, labels, labels, costs, ends, np.append(np.zeros(den.states), np.inf))


class Normalization:
    """A normalization acceptor that numerators are composed with."""

    def __init__(self, fst: Fst) -> None:
        self.fst = fst

    @cached_property
    def _sorted(self) -> Any:
        fst = to_kaldifst(self.fst)
        import_kaldifst().arcsort(fst, sort_type="ilabel")
        return fst

    def __getstate__(self) -> dict[str, Any]:
        return {"fst": self.fst}  # workers make kaldifst's form again

    def weighted(self, pdfs: Fst) -> Fst | None:
        """The acceptor ``pdfs``, each of its paths once, with the denominator's weights; None if it allows none.

        Of the paths that the denominator has for the same pdfs Kaldi keeps the best, and here all are kept.
        """
        k = import_kaldifst()
        graph = k.determinize(to_kaldifst(pdfs))
        k.minimize(graph)
        k.arcsort(graph, sort_type="olabel")
        composed = k.StdVectorFst(k.compose(graph, self._sorted))
        return from_kaldifst(composed) if composed.num_states else None
