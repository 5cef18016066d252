"""A transducer made of tables: what it says depends on the frame and on the last token, and is known by heart."""

from __future__ import annotations

from typing import Any

import numpy as np

from quantasr.speech.transducer.network import Network
from quantasr.speech.transducer.options import TransducerFacts


class FakeTransducer:
    """Scores are a row of the "encoding" plus a row of ``after`` for the last token; ``calls`` counts its parts'.

    ``after`` is ``[tokens + 1, outputs]``, the last row for the beginning. The decoder's state is how many tokens it
    was given, of no use but to be kept right: it turns the row round by that many places if ``turn``.
    """

    def __init__(self, after: np.ndarray, durations: tuple[int, ...] = (), turn: bool = False) -> None:
        self.after, self.turn = after.astype(np.float32), turn
        self.blank = len(after) - 1
        self.calls = {"decoder": 0, "joiner": 0}
        self.facts = TransducerFacts(durations, {"state_n": {"shape": [1], "type": "int64", "fill": 0}})

    def network(self) -> Network:
        parts: Any = {"decoder": self.decode, "joiner": self.join}
        frontend: Any = None
        return Network(parts, self.facts, frontend, self.blank, "fake")

    def decode(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.calls["decoder"] += 1
        tokens, counts = feed["tokens"], feed["state_n"]
        assert tokens.shape == counts.shape == (len(tokens), 1)
        return {"prediction": self.rows(tokens[:, 0], counts[:, 0]), "next_state_n": counts + 1}

    def rows(self, tokens: np.ndarray, counts: np.ndarray) -> np.ndarray:
        rows = self.after[tokens]
        if self.turn:
            rows = np.stack([np.roll(row, count) for row, count in zip(rows, counts, strict=True)])
        return rows

    def join(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.calls["joiner"] += 1
        return {"logits": feed["encoded"] + feed["prediction"][:, None]}

    def scores(self, frame: np.ndarray, said: list[int]) -> np.ndarray:
        """Of all outputs on a frame after some tokens."""
        last = said[-1] if said else self.blank
        return frame + self.rows(np.array([last]), np.array([len(said)]))[0]


def log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted = np.asarray(scores, np.float64)
    shifted = shifted - shifted.max()
    return shifted - np.log(np.exp(shifted).sum())
