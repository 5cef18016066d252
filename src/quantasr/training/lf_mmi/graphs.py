"""The graphs of one chain model: its denominator, and the numerators of transcripts and alignments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from quantasr.errors import TrainingError
from quantasr.kaldi.chain import (
    Normalization,
    PhoneLm,
    Pronunciations,
    Segment,
    TimedGraph,
    make_denominator,
    normalization_of,
    pdf_acceptor,
    phone_graph,
    read_alignments,
)
from quantasr.kaldi.compile import ContextTree, find_file, read_lexicon, tree_in
from quantasr.kaldi.fst import INPUT, Fst, read_fst, read_words
from quantasr.kaldi.nnet3 import TransitionModel
from quantasr.sources.kaldi.model import KaldiModel
from quantasr.training.lf_mmi.graph import Hmm, denominator_of, hmm_of

SILENCE = "SIL"
_ONE = np.zeros(1, np.int32)
NEVER = Hmm(_ONE, _ONE, _ONE, np.zeros(1), np.ones(1), np.zeros(1))
"""The graph of what the denominator does not allow: it has no path."""
_KEPT = 256  # graphs are large, and only short phrases come again soon


@dataclass(frozen=True)
class GraphChoice:
    """Where the graphs come from.

    ``lexicon``: None for ``lexiconp.txt`` or ``lexicon.txt`` in the model's folder. ``denominator``: a ``den.fst``;
    None for that in the model's folder, or one made of what is said in training. ``alignments``: a folder with
    ``ali.*.gz`` and their ``final.mdl``; None for numerators from transcripts. ``silence``: the phone that may stand
    around words; None for SIL, if the model has it, and "" for none. ``order`` and ``states``: of the phone language
    model behind a denominator that is made. ``tolerance``: by how many frames a phone may begin before and end behind
    what the alignment says. Raises TrainingError for values that make no sense.
    """

    lexicon: str | Path | None = None
    denominator: str | Path | None = None
    alignments: str | Path | None = None
    silence: str | None = None
    silence_probability: float = 0.5
    order: int = 4
    states: int = 2000
    tolerance: tuple[int, int] = (5, 5)

    def __post_init__(self) -> None:
        if not 0 < self.silence_probability < 1:
            raise TrainingError(f"silence probability {self.silence_probability:g}: give more than 0 and less than 1")
        if self.order < 2 or self.states < 0:
            raise TrainingError(
                f"a phone language model of order {self.order}, {self.states} states: 4, 2000 are usual"
            )
        if len(self.tolerance) != 2 or min(self.tolerance) < 0:
            raise TrainingError(f"tolerance {self.tolerance}: give frames before and frames behind, such as (5, 5)")


@dataclass
class ChainGraphs:
    """``denominator`` for all; ``numerator`` of a text, or ``timed`` of an utterance's alignment."""

    tree: ContextTree
    transitions: TransitionModel
    subsampling: int
    denominator: Hmm
    normalization: Normalization
    pronunciations: Pronunciations | None = None
    alignments: Mapping[str, list[Segment]] | None = None
    tolerance: tuple[int, int] = (5, 5)
    _texts: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._texts = lru_cache(_KEPT)(self._numerator)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_texts"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()

    def numerator(self, text: str) -> Hmm:
        """All that saying ``text`` can be; :data:`NEVER` where the denominator does not allow it."""
        found: Hmm = self._texts(" ".join(text.split()))
        return found

    def _numerator(self, text: str) -> Hmm:
        assert self.pronunciations is not None
        phones = phone_graph(self.pronunciations.choices(text.split()))
        return self._weighted(pdf_acceptor(phones, self.tree, self.transitions, scale=0.0))

    def timed(self, id: str) -> TimedGraph:
        """What the alignment of an utterance allows at each frame."""
        assert self.alignments is not None
        return TimedGraph(
            self.alignments[id], self.tree, self.transitions, subsampling=self.subsampling, tolerance=self.tolerance
        )

    def part(self, timed: TimedGraph, begin: int, end: int) -> Hmm:
        """The numerator of the frames from ``begin`` up to, but without, ``end``."""
        return self._weighted(timed.part(begin, end))

    def _weighted(self, pdfs: Fst) -> Hmm:
        found = self.normalization.weighted(pdfs)
        return NEVER if found is None else hmm_of(found)


def graphs_of(
    model: KaldiModel,
    texts: Iterable[str],
    choice: GraphChoice | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> ChainGraphs:
    """The graphs for training ``model`` on ``texts``, which a denominator is made of where there is none.

    Raises TrainingError, ModelLoadError and KaldiFileError in one line for what is missing or does not fit.
    """
    choice = choice or GraphChoice()
    path = model.model_path
    folder = path.parent.parent if path.parent.name == "am" else path.parent
    if model.transitions is None:
        raise TrainingError(f"{path}: has no transition model: LF-MMI needs a .mdl file, not a .raw one")
    tree = tree_in(folder if (folder / "tree").is_file() else path.parent, model.transitions)
    parts = (tree, model.transitions, model.network.subsampling)
    if choice.alignments is not None and sum(choice.tolerance) + 1 < model.network.subsampling:
        raise TrainingError(
            f"tolerance {choice.tolerance}: phones would fall between the frames of the output; (5, 5) is usual"
        )
    aligned = None if choice.alignments is None else read_alignments(choice.alignments)
    if aligned is not None:
        say(f"alignments: {len(aligned)} utterances in {choice.alignments}")
    pronunciations = _pronunciations(folder, choice) if aligned is None else None
    given = choice.denominator or next((p for p in (folder / "den.fst", path.parent / "den.fst") if p.is_file()), None)
    if given is not None:
        den = read_fst(given)
        beside = Path(given).with_name("normalization.fst")
        normalization = read_fst(beside) if beside.is_file() else normalization_of(den)
        say(f"denominator: {given}, {den.states} states, {len(den.arcs)} arcs")
    else:
        lm = PhoneLm(choice.order, choice.states)
        if aligned is not None:
            for segments in aligned.values():
                lm.add([segment.phone for segment in segments])
        else:
            assert pronunciations is not None
            _count(lm, texts, pronunciations)
        den = make_denominator(lm.fst(), tree, model.transitions)
        normalization = normalization_of(den)
        say(f"denominator: made of what is said in training, {den.states} states, {len(den.arcs)} arcs")
    if den.arcs[:, INPUT].min() < 1 or den.arcs[:, INPUT].max() > model.transitions.num_pdfs:
        raise TrainingError(f"{given}: its pdfs are not those of {path}: they do not belong together")
    return ChainGraphs(
        *parts, denominator_of(den), Normalization(normalization), pronunciations, aligned, choice.tolerance
    )


def _count(lm: PhoneLm, texts: Iterable[str], pronunciations: Pronunciations) -> None:
    """Count the phones of those texts that have only words of the lexicon."""
    counted = 0
    for text in texts:
        words = text.split()
        if words and not pronunciations.unknown(words):
            lm.add_choices(pronunciations.choices(words))
            counted += 1
    if not counted:
        raise TrainingError("no transcript has only words of the lexicon: is it the lexicon of this model?")


def _pronunciations(folder: Path, choice: GraphChoice) -> Pronunciations:
    phones = read_words(find_file(folder, "phones.txt", "graph/phones.txt"))
    names = [f"{where}{name}" for where in ("", "dict/", "am/") for name in ("lexiconp.txt", "lexicon.txt")]
    path = choice.lexicon or next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise TrainingError(f"{folder}: has no lexicon.txt: name the lexicon that the model was trained with")
    silence = choice.silence if choice.silence is not None else SILENCE if SILENCE in phones.ids else ""
    return Pronunciations(
        read_lexicon(path), phones, silence=silence or None, silence_probability=choice.silence_probability
    )
