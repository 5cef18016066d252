"""Keeping training apart from the speech that it is judged by, also where there are very many utterances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quantasr.errors import AudioError
from quantasr.speech.manifest import Utterance, check_disjoint


class Apart:
    """Training utterances are shown to it one by one; :meth:`check` then compares those that may be shared.

    Only what has the size of a file in the other lists, or the name of an utterance there, can be: the others are
    forgotten at once, so that memory and time do not grow with the training manifest.

    ``others``: lists by what errors call them ("validation", "test").
    """

    def __init__(self, others: Mapping[str, Sequence[Utterance]]) -> None:
        self._others = others
        everything = [utterance for listed in others.values() for utterance in listed]
        self._sizes = {_size(u) for u in everything if u.command is None and u.features is None}
        self._names = {(u.id, u.audio.stem) for u in everything}
        self._commands = {u.command for u in everything if u.command is not None}
        self._features = any(u.features is not None for u in everything)
        self._suspects: list[Utterance] = []
        self._last: tuple[str, int] = ("", 0)

    def show(self, utterance: Utterance) -> None:
        """Remember a training utterance if it may be shared. Raises AudioError."""
        if not self._others:
            return
        if utterance.command is not None:
            suspect = utterance.command in self._commands
        elif utterance.features is not None:
            suspect = self._features
        else:
            suspect = self._sized(utterance) in self._sizes
        if suspect or (utterance.id, utterance.audio.stem) in self._names:
            self._suspects.append(utterance)

    def check(self, what: str = "training") -> None:
        """Raise ManifestError if speech is shared with any of the lists, and if two of these share some."""
        names = list(self._others)
        for i, name in enumerate(names):
            check_disjoint(self._suspects, self._others[name], what, name)
            for other in names[:i]:
                check_disjoint(self._others[name], self._others[other], name, other)

    def _sized(self, utterance: Utterance) -> int:
        # Segments of one recording come one after the other.
        audio = str(utterance.audio)
        if self._last[0] != audio:
            self._last = (audio, _size(utterance))
        return self._last[1]


def _size(utterance: Utterance) -> int:
    try:
        return utterance.audio.stat().st_size
    except OSError as error:
        raise AudioError(f"{utterance.audio}: cannot be opened ({error.strerror}): check the path") from error
