"""The pieces of a SentencePiece model, which several frameworks' models are trained with."""

from __future__ import annotations

from typing import Any, NamedTuple

from quantasr.speech.tokenizer import WORD_START


class Pieces(NamedTuple):
    """``tokens`` as a :class:`~quantasr.speech.tokenizer.Tokenizer` of kind ``pieces`` wants them.

    ``names`` are those in the model's own file, ``silent`` the ids that give no text, ``bytes`` whether some pieces
    stand for a single byte.
    """

    tokens: list[str]
    names: list[str]
    silent: frozenset[int]
    bytes: bool


def read_pieces(model: Any) -> Pieces:
    """The pieces of a loaded ``SentencePieceProcessor``."""
    count = int(model.get_piece_size())
    names = [str(model.id_to_piece(i)) for i in range(count)]
    # Control pieces have no text; the unknown one has one of its own, by default a double question mark with spaces.
    unknown = f"{WORD_START}\u2047{WORD_START}"
    return Pieces(
        tokens=[unknown if model.is_unknown(i) else names[i] for i in range(count)],
        names=names,
        silent=frozenset(i for i in range(count) if model.is_control(i)),
        bytes=any(map(model.is_byte, range(count))),
    )
