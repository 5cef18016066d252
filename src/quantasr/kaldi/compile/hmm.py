"""H, the transducer from transition-ids to phones in context, and the self-loops that are added at the very end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quantasr.kaldi.compile.arrays import FstBuilder, assemble
from quantasr.kaldi.compile.tree import ContextTree
from quantasr.kaldi.fst import INPUT, NEXT, OUTPUT, Fst
from quantasr.kaldi.nnet3.transitions import TransitionModel


def h_fst(
    windows: Sequence[Sequence[int]], tree: ContextTree, model: TransitionModel, *, transition_scale: float = 1.0
) -> Fst:
    """H without self-loops: transition-ids in, the number of a window out (Kaldi's GetHTransducer).

    ``windows`` are the phones in context, by number; an empty one is epsilon, one of a single number below 1 is a
    disambiguation symbol. The input labels of these symbols follow those of the transition-ids. Raises ModelLoadError
    where tree and model do not fit.
    """
    leaving = _log_leave(model)
    builder = FstBuilder()
    loop = builder.state()
    builder.end(loop)
    symbol = model.num_transition_ids
    for number, window in enumerate(windows):
        if not window:
            continue
        if len(window) == 1 and window[0] <= 0:
            symbol += 1
            builder.arc(loop, symbol, number, 0, loop)
            continue
        phone = window[tree.central]
        states = model.topology.states_of(phone)
        first = loop
        if any(to == 0 for state in states[1:] for to, _ in state.transitions):
            first = builder.state()  # the phone may come back to its first state, but must not begin anew there
            builder.arc(loop, 0, number, 0, first)
        # The last state only ends the phone.
        at_state = [first, *(builder.state() for _ in states[1:-1]), loop]
        for at, state in enumerate(states[:-1]):
            tid = 0
            if state.forward_pdf_class >= 0:
                pdfs = (tree.pdf(window, state.forward_pdf_class), tree.pdf(window, state.self_loop_pdf_class))
                tid = model.first_tid(phone, at, *pdfs)
            for k, (to, probability) in enumerate(state.transitions):
                if to == at:
                    continue
                label, log_prob = 0, float(np.log(probability))
                if tid:
                    label = tid + k
                    log_prob = float(model.log_probs[label] - leaving[model.state_of_tid[tid]])
                olabel = number if at_state[at] == loop else 0
                builder.arc(at_state[at], label, olabel, -transition_scale * log_prob, at_state[to])
    return builder.fst(loop)


def _log_leave(model: TransitionModel) -> NDArray[np.float64]:
    """For each state of the model, from 1 on, the logarithm of the probability of not taking its self-loop."""
    stay = np.where(model.self_loop_of_state > 0, model.log_probs[model.self_loop_of_state], -np.inf)
    # A self-loop of probability 1 would never end.
    leave: NDArray[np.float64] = np.log(np.maximum(-np.expm1(stay.astype(np.float64)), 1e-10))
    leave[0] = 0
    return leave


def add_self_loops(fst: Fst, model: TransitionModel, *, self_loop_scale: float = 1.0) -> Fst:
    """The graph with the self-loop of each transition behind it (Kaldi's AddSelfLoops, reordered, as it always is).

    A state is then reached by transitions of one HMM state only, or by none: where several meet, each gets a state of
    its own before it. What leaves a state pays for not staying in it.
    """
    sources = np.repeat(np.arange(fst.states), np.diff(fst.first))
    ilabels, olabels, ends = (fst.arcs[:, column].astype(np.int64) for column in (INPUT, OUTPUT, NEXT))
    # 0 is no HMM state: what arcs without input lead to, and the start.
    hmm = model.state_of_tid[ilabels].astype(np.int64)
    count = model.num_states + 1
    meeting = np.unique(np.append(ends * count + hmm, fst.start * count))
    mixed = np.bincount(meeting // count, minlength=fst.states) > 1
    # The new states follow the old ones; each leads without input to the state that it was made for.
    apart = meeting[mixed[meeting // count] & (meeting % count > 0)]
    moved = mixed[ends] & (hmm > 0)
    ends[moved] = fst.states + np.searchsorted(apart, ends[moved] * count + hmm[moved])
    entered = np.zeros(fst.states + len(apart), np.int64)
    entered[ends] = hmm
    none = np.zeros(len(apart), np.int64)
    sources = np.concatenate([sources, fst.states + np.arange(len(apart))])
    ilabels, olabels = np.concatenate([ilabels, none]), np.concatenate([olabels, none])
    ends = np.concatenate([ends, apart // count])

    leave = -self_loop_scale * _log_leave(model)
    costs = np.concatenate([fst.weights.astype(np.float64), none]) + leave[entered[sources]]
    final = np.concatenate([fst.final.astype(np.float64), np.full(len(apart), np.inf)]) + leave[entered]
    loops = model.self_loop_of_state[entered].astype(np.int64)
    looping = np.flatnonzero(loops)
    loops = loops[looping]
    return assemble(
        fst.start,
        np.concatenate([sources, looping]),
        np.concatenate([ilabels, loops]),
        np.concatenate([olabels, np.zeros(len(looping), np.int64)]),
        np.concatenate([costs, -self_loop_scale * model.log_probs[loops]]),
        np.concatenate([ends, looping]),
        final,
    )
