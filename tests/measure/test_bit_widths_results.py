"""The table, the JSON and the picture of bit widths, of results that are known."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from fake_systems import Parrot
from rich.console import Console

from quantasr import sample
from quantasr.errors import ManifestError
from quantasr.measure.bit_widths import ACTIVATIONS, WEIGHTS, Beside, BitWidths, Row
from quantasr.measure.evaluate import EvalResult, evaluate
from quantasr.measure.plots import check_plot, plot_bit_widths
from quantasr.measure.report import bit_widths_table
from quantasr.speech.scoring import Unit


def heard(name: str, text: str) -> EvalResult:
    """The first two utterances are "six" and "four"."""
    return evaluate(Parrot(name, lambda i: text, sample_rate=8000), sample.evaluation(), limit=2)


def widths(unit: Unit = "word") -> BitWidths:
    rows = [
        Row(bits, what, granularity, size, heard(f"{what} {bits}", text))
        for bits, size, text in ((4, 500_000, "no"), (16, 2_000_000, "six"))
        for what in (WEIGHTS, ACTIVATIONS)
        for granularity in ("per_tensor", "per_channel")
    ]
    beside = (Beside(heard("engine [x]", "six"), 1_500_000), Beside(heard("other", "six")))
    return BitWidths("mine [bold]", heard("float", "six"), 4_000_000, tuple(rows), beside, unit, layers=3, candidates=4)


def test_table() -> None:
    out = StringIO()
    Console(file=out, width=250).print(bit_widths_table(widths()))
    lines = [" ".join(line.replace("│", " ").split()) for line in out.getvalue().splitlines()]
    assert lines[0] == "mine [bold]: 2 utterances, 2 words, 0.0 min; 3 of 4 layers quantized"
    assert any(line.startswith("32 float 50.00 % [0.00, 100.00] 1 0 0") for line in lines)
    (row,) = [line for line in lines if line.startswith("4 weights per_tensor")]
    assert row == "4 weights per_tensor 100.00 % [100.00, 100.00] 2 0 0 85.71 % +50.00 [+0.00, +100.00] 0.5 MB 0.125 -"
    assert any("engine [x]" in line and "1.5 MB 0.375" in line for line in lines)
    order = [line.split(" ")[0] for line in lines if " weights per_tensor" in line]
    assert order == ["16", "4"]


def test_characters() -> None:
    found = widths("character")
    assert found.rate_name == "CER" and found.score(found.original).counts.reference_length == len("six") + len("four")
    out = StringIO()
    Console(file=out, width=250).print(bit_widths_table(found))
    assert "7 characters" in out.getvalue() and "CER − float" in out.getvalue()


def test_json_has_times_only_where_they_were_measured() -> None:
    row = json.loads(json.dumps(widths().to_dict()))
    assert row["float"]["size"] == 4_000_000 and "rtf" in row["float"] and "rtf" in row["beside"][0]
    one = row["widths"][0]
    assert "rtf" not in json.dumps(one) and one["bits"] == 4 and one["against_float"]["difference"] == 0.5
    assert one["wer"]["substitutions"] == 2


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_picture(ending: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"widths.{ending}"
    plot_bit_widths(widths(), path)
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG" if ending == "png" else b"<?xml") and len(content) > 5000


def test_a_picture_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"pictures are \.png"):
        check_plot(tmp_path / "widths.gif")
    with pytest.raises(ManifestError, match="no such folder"):
        check_plot(tmp_path / "none" / "widths.png")
