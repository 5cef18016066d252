"""Tables of recognisers that decode step by step: their parts, and what was tuned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from quantasr.measure.audit import Audit
from quantasr.measure.bench import BenchRow
from quantasr.measure.cells import difference_cell, percent, plain_table, rate_cell, types_cell
from quantasr.measure.retune import Retuned, Trial
from quantasr.measure.split import FRONTEND, SEARCH, Share
from quantasr.speech.scoring import Score, compare_scores


def audit_parts_table(audit: Audit) -> Table:
    """Each part of a recogniser that decodes step by step: its engine, its share of the work, and in which types."""
    table = plain_table(
        f"parts, in {audit.seconds:.1f} s of speech: {types_cell(audit.share)}",
        *("part", "engine", "calls", "share of MACs", "int8", "executed in"),
        caption="calls: how often speech of this length asks for it; its work counts as often.",
    )
    for part in audit.parts:
        table.add_row(
            part.name,
            f"{part.engine} {part.compute}",
            f"{part.calls:.0f}",
            percent(part.macs / max(audit.macs, 1)),
            percent(part.int8_share),
            types_cell(part.share),
        )
    return table


def split_table(rows: Sequence[BenchRow]) -> Table:
    """Where the time of each system in parts goes, in milliseconds and as a share of its own time."""
    split = [row for row in rows if row.split]
    stages = list(dict.fromkeys(share.stage for row in split for share in row.split))
    stages = [stage for stage in stages if stage != SEARCH] + [SEARCH]
    table = plain_table(
        "where the time of one recording goes",
        *("system", *stages),
        caption="Medians of the same turns, each as a share of the system's time; × says how often a part is called. "
        "search: all that is none of the parts.",
    )
    for row in split:
        shares = {share.stage: share for share in row.split}
        whole = sum(share.seconds for share in row.split)
        table.add_row(escape(row.label), *(_stage(shares.get(stage), whole) for stage in stages))
    return table


def _stage(share: Share | None, whole: float) -> str:
    if share is None or not share.seconds:
        return "-"
    calls = f" × {share.calls}" if share.calls > 1 and share.stage != FRONTEND else ""
    return f"{share.seconds * 1e3:.1f} ms, {100 * share.seconds / whole:.0f} %{calls}"


def retune_table(found: Retuned) -> Table:
    """Every run over the tuning speech with its errors, the chosen one marked, and both on other speech."""
    result = found.before.result
    words = result.wer.counts.reference_length
    own = ", ".join(f"{name} {value}" for name, value in found.own.items())
    table = plain_table(
        f"{found.artifact}: tuned on {len(result.utterances)} utterances, {words} words; as it is: {own}",
        *("decoded with", "WER [95 %]", "S", "D", "I", "WER − as it is [95 %]"),
        caption="* chosen. Difference: paired bootstrap, in points; on the tuning speech it flatters the choice.",
    )
    for trial in sorted(found.trials, key=_order):
        mark = "* " if trial is found.best else "  "
        pair = None if trial is found.before else compare_scores(found.before.result.wer, trial.result.wer)
        table.add_row(
            mark + escape(trial.name), *_errors(trial.result.wer), "" if pair is None else difference_cell(pair)
        )
    if found.evaluation is not None:
        table.add_section()
        before, after = found.evaluation.results
        (pair,) = found.evaluation.against_first()
        table.add_row("  evaluation, as it was", *_errors(before.wer), "")
        table.add_row("* evaluation, retuned", *_errors(after.wer), difference_cell(pair))
    return table


def _order(trial: Trial) -> tuple[Any, ...]:
    """The artifact's own first, then each option's values in their order."""
    values = [value if isinstance(value, int | float) else 0.0 for value in trial.options.values()]
    return len(trial.options), tuple(trial.options), values


def _errors(score: Score) -> tuple[str, ...]:
    counts = score.counts
    return rate_cell(score), str(counts.substitutions), str(counts.deletions), str(counts.insertions)
