"""Tables of recognisers that decode step by step: their parts, and what was tuned."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from quantasr.measure.audit import Audit
from quantasr.measure.bench import BenchRow
from quantasr.measure.cells import percent, plain_table, types_cell
from quantasr.measure.split import SEARCH, Share


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
    if share is None:
        return "-"
    calls = f" × {share.calls}" if share.calls > 1 else ""
    return f"{share.seconds * 1e3:.1f} ms, {100 * share.seconds / whole:.0f} %{calls}"
