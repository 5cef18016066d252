"""What a table of sensitivity advises, from figures made up for it."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from quantasr.measure.latency import Ratio
from quantasr.measure.sensitivity import Harm, Part, Sensitivity
from quantasr.speech.scoring import compare

REFERENCES = [f"one two three {i}" for i in range(20)]
WORSE = compare(REFERENCES, REFERENCES, ["one two three" for _ in REFERENCES])
AS_GOOD = compare(REFERENCES, REFERENCES, [REFERENCES[0].replace("one", "on"), *REFERENCES[1:]])
NOISE, FASTER, SLOWER = Ratio(0.99, 0.95, 1.02), Ratio(0.9, 0.88, 0.93), Ratio(1.1, 1.05, 1.2)


def part(kl: float = 1e-4, wer: Any = None, time: Ratio | None = NOISE, why: str = "") -> Part:
    return Part("encoder", ("encoder.a", "encoder.b"), 100, 0.5, Harm(50, kl, 0.99, wer), time, why)


@pytest.mark.parametrize(
    ("measured", "advice"),
    [
        (part(), "quantize: no change within noise"),
        (part(time=FASTER), "quantize: saves 10.0 % of time"),
        (part(time=None), "quantize"),
        (part(time=SLOWER), "leave float: takes 10.0 % more time"),
        (part(kl=0.02), "leave float: KL 0.02 > 0.001, no change within noise"),
        (part(kl=0.02, time=FASTER), "leave float: KL 0.02 > 0.001, saves 10.0 % of time"),
        (part(wer=WORSE, time=FASTER), "leave float: costs 25.00 points of WER, saves 10.0 % of time"),
        (part(wer=AS_GOOD), "quantize: no change within noise"),
        (part(kl=0.0), "leave float: only WER can show what it does, no change within noise"),
        (part(kl=0.0, wer=AS_GOOD), "quantize: no change within noise"),
        (
            part(time=None, why="only --engine torch has int8 for it"),
            "leave float: only --engine torch has int8 for it",
        ),
    ],
)
def test_the_rule(measured: Part, advice: str) -> None:
    assert measured.advice == advice
    assert measured.leave_float == advice.startswith("leave float")


def test_table_and_json_say_the_same() -> None:
    from rich.console import Console

    from quantasr.measure.report import sensitivity_table

    found = Sensitivity(
        "m", "module", (part(kl=0.02, wer=WORSE),), (part(wer=AS_GOOD),), 20, "openvino", "bf16", 3.0,
        left_out={"lstm": "why not", "gru": "why not"},
    )  # fmt: skip
    row = json.loads(json.dumps(found.to_dict()))
    assert row["groups"][0]["leave_float"] is True and row["groups"][0]["kl"] == 0.02
    assert row["groups"][0]["time"] == {"median": 0.99, "quartiles": [0.95, 1.02]}
    assert row["groups"][0]["wer"]["difference"] == 0.25 and row["left_out"] == {"lstm": "why not", "gru": "why not"}
    console = Console(width=220, record=True, file=io.StringIO())
    console.print(sensitivity_table(found))
    text = " ".join(console.export_text().split())
    for words in ("+25.00 [+25.00, +25.00]", "0 / 20 / 0", "0.990 [0.950, 1.020]", "2 layers, why not", "openvino"):
        assert words in text
