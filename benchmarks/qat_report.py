"""Tables of benchmarks/qat_digits.py: every figure with its 95 % interval, and beside its bar."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from compare import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

RESAMPLES = 2000
Errors = NDArray[np.float64]  # [utterances], the mean over seeds
W4 = "w4a8"


class Results:
    """What there is of one source: errors of each utterance, the mean over the seeds."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            runs[row["task"]].append(row)
        self.words = np.array(rows[0]["words"], np.float64)
        self.errors: dict[str, Errors] = {
            task: np.mean([row["errors"] for row in found], axis=0) for task, found in runs.items()
        }
        self.runs = dict(runs)

    def rate(self, task: str) -> float:
        """WER in percent."""
        return 100 * float(self.errors[task].sum() / self.words.sum())

    def by_seed(self, task: str) -> str:
        """WER of each seed, in percent."""
        return ", ".join(f"{100 * sum(row['errors']) / self.words.sum():.2f}" for row in self.runs[task])

    def interval(self, figure: Callable[[dict[str, float]], float]) -> tuple[float, float, float]:
        """A figure of the WERs of all tasks (percent), and its 95 % interval from resampling utterances."""
        random = np.random.default_rng(0)
        stacked = np.stack(list(self.errors.values()))
        names = list(self.errors)

        def value(indices: NDArray[np.int64]) -> float:
            rates = 100 * stacked[:, indices].sum(1) / self.words[indices].sum()
            return figure(dict(zip(names, rates.tolist(), strict=True)))

        size = len(self.words)
        drawn = [value(random.integers(size, size=size)) for _ in range(RESAMPLES)]
        low, high = np.percentile(drawn, [2.5, 97.5])
        return value(np.arange(size)), float(low), float(high)

    def parity(self) -> float:
        """Largest difference of WER (points) between a simulation and its artifact, over all runs and engines."""
        total = self.words.sum()
        gaps = [
            abs(sum(row["errors"]) - errors) / total * 100
            for found in self.runs.values()
            for row in found
            for errors in row.get("engines", {}).values()
        ]
        return max(gaps, default=0.0)


def recovered(rates: dict[str, float]) -> float:
    """Of what PTQ loses, the share (percent) that QAT gains back."""
    lost = rates[f"{W4}, PTQ"] - rates["float"]
    return 100 * (rates[f"{W4}, PTQ"] - rates[W4]) / lost if lost else 100.0


FIGURES: tuple[tuple[str, str, Callable[[dict[str, float]], float], float, bool], ...] = (
    ("w8a8 - float, points", "w8a8", lambda r: r["w8a8"] - r["float"], 0.1, True),
    ("w4a8: recovered, %", W4, recovered, 80.0, False),
    ("w2a8 - float, points", "w2a8", lambda r: r["w2a8"] - r["float"], 2.0, True),
    ("distilled - CTC or LF-MMI, points", f"{W4}, distilled", lambda r: r[f"{W4}, distilled"] - r[W4], 0.5, True),
)


def report(rows: Sequence[dict[str, Any]]) -> None:
    """Print WER of every task, then every figure beside its bar."""
    by_source: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_source[row["source"]].append(row)
    found = {source: Results(part) for source, part in by_source.items()}
    if not found:
        raise SystemExit("there are no results yet")
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    table = Table(title="WER in % (mean over seeds)")
    for column in ("", *found):
        table.add_column(column, justify="left" if not column else "right")
    for task in tasks:
        cells = [f"{r.rate(task):.2f}" if task in r.errors else "" for r in found.values()]
        table.add_row(task, *cells)
    Console(width=140).print(table)

    table = Table(title="Figures [95 % interval] and bars")
    for column in ("source", "figure", "value", "interval", "each seed's WER", "bar", ""):
        table.add_column(column)
    for source, results in found.items():
        for name, task, figure, bar, at_most in FIGURES:
            if task not in results.errors:
                continue
            value, low, high = results.interval(figure)
            met = Figure(name, value, bar, at_most).met
            row = (
                f"{value:.2f}",
                f"[{low:.2f}, {high:.2f}]",
                results.by_seed(task),
                f"{'≤' if at_most else '≥'} {bar}",
            )
            table.add_row(source, name, *row, "met" if met else "MISSED")
        gap = results.parity()
        row = (f"{gap:.2f}", "", "", "≤ 0.1")
        table.add_row(source, "simulation and artifact, points", *row, "met" if gap <= 0.1 else "MISSED")
    Console(width=160).print(table)
