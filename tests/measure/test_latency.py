"""Times and their ratios, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from fake_systems import Clock, Parrot

from quantasr.measure import latency
from quantasr.measure.latency import Timing, ratio, time_interleaved

WAVE = np.zeros(2000, np.float32)


def test_percentiles_and_rtf() -> None:
    timing = Timing("s", 10.0, (0.5, 0.1, 0.2, 0.3, 0.4))
    assert timing.p50 == pytest.approx(0.3)
    # 95 % of the way from the first to the fifth: 0.4 + 0.8 * 0.1.
    assert timing.p95 == pytest.approx(0.48)
    assert timing.rtf == pytest.approx(0.03)
    assert timing.to_dict() == {
        "system": "s",
        "audio_seconds": 10.0,
        "rounds": 5,
        "p50_seconds": 0.3,
        "p95_seconds": 0.48,
        "rtf": 0.03,
    }


def test_a_ratio_is_taken_turn_by_turn() -> None:
    """The machine slows down to a quarter on the way: the medians' ratio would be 0.8, the turns' is 0.5."""
    slow = Timing("slow", 1.0, (2.0, 2.0, 8.0, 8.0, 8.0))
    fast = Timing("fast", 1.0, (1.0, 1.0, 4.0, 6.4, 2.0))
    found = ratio(fast, slow)
    # 0.5, 0.5, 0.5, 0.8, 0.25: sorted 0.25, 0.5, 0.5, 0.5, 0.8.
    assert (found.low, found.median, found.high) == (pytest.approx(0.5), pytest.approx(0.5), pytest.approx(0.5))
    spread = ratio(Timing("x", 1.0, (1.0, 2.0, 3.0, 4.0, 5.0)), Timing("y", 1.0, (1.0,) * 5))
    assert (spread.low, spread.median, spread.high) == (2.0, 3.0, 4.0)
    assert str(spread) == "3.000 [2.000, 4.000]"
    assert spread.to_dict() == {"median": 3.0, "quartiles": [2.0, 4.0]}


def test_systems_take_turns_and_the_first_ones_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, log = Clock(), []
    monkeypatch.setattr(latency, "time", clock)
    times = iter([9.0, 9.0, 9.0, 9.0, 1.0, 4.0, 3.0, 1.0])
    systems = [Parrot(name, str, clock, lambda: next(times), log) for name in "AB"]
    first, second = time_interleaved(systems, WAVE, rounds=2, warm_up=2)
    assert log == ["A1", "B1", "B1", "A1", "A1", "B1", "B1", "A1"]
    assert first.seconds == (pytest.approx(1.0), pytest.approx(1.0))
    assert second.seconds == (pytest.approx(4.0), pytest.approx(3.0))
    assert first.audio_seconds == 2.0
    assert ratio(second, first).median == pytest.approx(3.5)


def test_three_systems_in_a_ring() -> None:
    log: list[str] = []
    time_interleaved([Parrot(name, str, log=log) for name in "ABC"], WAVE, rounds=4, warm_up=0)
    assert [entry[0] for entry in log] == list("ABCBCACABABC")
