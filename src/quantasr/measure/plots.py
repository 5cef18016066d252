"""Pictures of results; they need the extra ``plots`` (matplotlib), which is imported nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from quantasr.errors import ManifestError, MissingExtraError
from quantasr.measure.bit_widths import ACTIVATIONS, BitWidths, Row

FORMATS = (".png", ".svg", ".pdf")

_NAMES = {"per_tensor": "one scale per tensor", "per_channel": "one scale per channel"}
_COLOURS = {"per_tensor": "#d1495b", "per_channel": "#00798c"}
_FLOAT = "#444444"


def check_plot(path: Path) -> None:
    """Raise, before any work, when a picture could not be written: a form that is unknown, no folder, no matplotlib."""
    if path.suffix.lower() not in FORMATS:
        raise ManifestError(f"{path}: pictures are {', '.join(FORMATS)}: name one of these")
    if not path.absolute().parent.is_dir():
        raise ManifestError(f"{path}: cannot be written: there is no such folder: make it first")
    _pyplot()


def plot_bit_widths(found: BitWidths, path: Path) -> None:
    """Draw the error rate against bits, and against size; float as a line with its 95 % interval as a band."""
    check_plot(path)
    figure_of, ticker = _pyplot()
    figure = figure_of(figsize=(11, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes in (left, right):
        _float_line(axes, found)
    right.plot([found.size / 1e6], [100 * found.score(found.original).rate], "D", color=_FLOAT)
    curves = found.curves()
    for n, ((quantized, granularity), rows) in enumerate(curves.items()):
        style: dict[str, Any] = {
            "color": _COLOURS[granularity],
            "linestyle": "-" if quantized == ACTIVATIONS else "--",
            "marker": "o" if quantized == ACTIVATIONS else "s",
            "markerfacecolor": _COLOURS[granularity] if quantized == ACTIVATIONS else "white",
            "label": f"{quantized}, {_NAMES[granularity]}",
            "linewidth": 1.6,
            "capsize": 3,
        }
        rates, errors = _rates(found, rows)
        beside = 0.06 * (n - (len(curves) - 1) / 2)  # so that error bars of equal widths are seen
        left.errorbar(np.arange(len(rows)) + beside, rates, errors, **style)
        right.errorbar([row.size / 1e6 for row in rows], rates, errors, **style)
    for one in found.beside:
        rate, error = _rate(found, one.result)
        if one.size:
            right.errorbar([one.size / 1e6], [rate], error, fmt="*", markersize=12, label=one.result.system, capsize=3)
    widths = list(dict.fromkeys(row.bits for row in sorted(found.rows, key=lambda row: -row.bits)))
    left.set_xticks(range(len(widths)), [str(bits) for bits in widths])
    left.set_xlabel("bits")
    left.set_ylabel(f"{found.rate_name} (%), 95 % interval")
    right.set_xlabel("size of the parameters (MB)")
    right.set_xscale("log")
    right.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 3, 5)))
    right.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    right.xaxis.set_minor_locator(ticker.NullLocator())
    # A square root gives small rates room, and unlike a logarithm has a place for zero.
    left.set_yscale("function", functions=(lambda y: np.sqrt(np.maximum(y, 0)), np.square))
    left.set_ylim(bottom=0)
    left.yaxis.set_major_locator(ticker.FixedLocator(_ticks(left.get_ylim()[1])))
    left.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    for axes in (left, right):
        axes.grid(True, color="#dddddd", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = right.get_legend_handles_labels()
    left.legend(handles, labels, frameon=False, fontsize=9, loc="upper left")
    counts = found.score(found.original).counts.reference_length
    what = "words" if found.unit == "word" else "characters"
    figure.suptitle(f"{found.model}: {len(found.original.utterances)} utterances, {counts} {what}", fontsize=11)
    figure.savefig(path, dpi=150)


def _float_line(axes: Any, found: BitWidths) -> None:
    low, high = found.score(found.original).interval
    rate = 100 * found.score(found.original).rate
    axes.axhspan(100 * low, 100 * high, color=_FLOAT, alpha=0.12, linewidth=0)
    axes.axhline(rate, color=_FLOAT, linewidth=1.2, label=f"float: {rate:.2f} %")


def _rates(found: BitWidths, rows: list[Row]) -> tuple[list[float], Any]:
    pairs = [_rate(found, row.result) for row in rows]
    return [rate for rate, _ in pairs], np.concatenate([error for _, error in pairs], axis=1)


def _rate(found: BitWidths, result: Any) -> tuple[float, Any]:
    """A rate in per cent, and how far its interval reaches below and above it: ``[2, 1]``."""
    score = found.score(result)
    low, high = score.interval
    return 100 * score.rate, 100 * np.array([[score.rate - low], [high - score.rate]]).clip(min=0)


def _ticks(top: float) -> list[float]:
    """Round figures up to ``top``, close together near zero."""
    steps = [0.0, 0.1, 0.5, 1, 2, 5, 10, 20, 30, 40, 60, 80, 100, 150, 200, 300]
    return [step for step in steps if step <= top and (step == 0 or step >= top / 200)]


def _pyplot() -> tuple[Any, Any]:
    """Figures without a screen (Agg), and where their ticks stand."""
    try:
        from matplotlib import ticker
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("a picture needs matplotlib: pip install 'quantasr[plots]'") from None

    def figure(**options: Any) -> Any:
        made = Figure(**options)
        FigureCanvasAgg(made)
        return made

    return figure, ticker
