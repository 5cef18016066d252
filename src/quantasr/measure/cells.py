"""What all tables are made of."""

from __future__ import annotations

from collections.abc import Mapping

from rich.markup import escape
from rich.table import Table

from quantasr.speech.scoring import PairedComparison, Score


def plain_table(title: str, *columns: str, caption: str | None = None) -> Table:
    """A table of plain text: rich takes what stands in brackets for its markup, so that is escaped."""
    table = Table(
        title=escape(title), caption=escape(caption or "") or None, title_justify="left", caption_justify="left"
    )
    for i, column in enumerate(columns):
        table.add_column(escape(column), justify="left" if i == 0 else "right")
    return table


def percent(value: float) -> str:
    """A fraction as a percentage with two decimals."""
    return f"{100 * value:.2f} %"


def megabytes(size: int) -> str:
    """Bytes as megabytes (10^6)."""
    return f"{size / 1e6:.1f} MB" if size < 100e6 else f"{size / 1e6:.0f} MB"


def rate_cell(score: Score) -> str:
    """An error rate with its interval."""
    low, high = score.interval
    return f"{100 * score.rate:.2f} % [{100 * low:.2f}, {100 * high:.2f}]"


def difference_cell(pair: PairedComparison) -> str:
    """A paired difference in points, with its interval."""
    low, high = pair.interval
    return f"{100 * pair.difference:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


def types_cell(share: Mapping[str, float]) -> str:
    """Shares of the work in each type."""
    return ", ".join(f"{percent(value)} {name}" for name, value in share.items())
