"""Windows and seams: on synthetic speech of which every word is known."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from fake_speech import FRAME_SECONDS, HOP, RATE, TOKENIZER, FakeAcoustic, random_words, speak

from quantasr.errors import AudioError, RecipeError
from quantasr.speech.ctc import CtcTranscriber
from quantasr.speech.frontend import WaveFrontend
from quantasr.speech.long_form import Windows, find_seam, join, mend


def transcriber(acoustic: FakeAcoustic | None = None, **options: float) -> CtcTranscriber:
    return CtcTranscriber(
        acoustic or FakeAcoustic(),
        WaveFrontend(RATE, normalize=False),
        TOKENIZER,
        name="fake",
        frame_seconds=FRAME_SECONDS,
        min_samples=2 * HOP,
        **options,
    )


def test_an_hour_is_transcribed_word_for_word_in_bounded_memory() -> None:
    rng = np.random.default_rng(0)
    words = random_words(rng, 6800)
    acoustic = FakeAcoustic()
    tracemalloc.start()
    try:
        result = transcriber(acoustic, batch_size=2).transcribe_stream(speak(words, rng))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.duration > 3600
    assert result.text.split(" ") == words
    assert [word.text for word in result.words] == words
    starts = [word.start for word in result.words]
    assert starts == sorted(starts)
    assert result.words[-1].end <= result.duration
    whole = result.duration * RATE * 4
    assert peak < whole / 6, f"{peak / 1e6:.1f} MB for {whole / 1e6:.0f} MB of audio"
    assert max(max(call) for call in acoustic.calls) == 30 * RATE


@pytest.mark.parametrize("pause", [1, 4, 30])
def test_no_word_is_lost_or_doubled_at_any_length(pause: int) -> None:
    """With pause 1 there is no silence to cut in: every seam falls within words."""
    rng = np.random.default_rng(pause)
    for _ in range(40):
        words = random_words(rng, int(rng.integers(1, 120)))
        overlap = float(rng.uniform(3, 5))
        options = {"chunk_seconds": float(rng.uniform(3.01 * overlap, 20)), "overlap_seconds": overlap}
        wave = np.concatenate(list(speak(words, rng, pause)))
        wave = wave[: len(wave) - int(rng.integers(0, HOP))] if rng.random() < 0.1 else wave
        blocks = np.split(wave, np.sort(rng.integers(0, len(wave), size=5)))
        streamed = transcriber(**options).transcribe_stream(blocks)
        assert streamed.text.split(" ") == words
        assert transcriber(batch_size=3, **options).transcribe([wave])[0] == streamed


def test_without_seams_the_text_would_differ() -> None:
    """The fake is bad enough at its edges: overlaps shorter than its garbage do spoil the text."""
    rng = np.random.default_rng(5)
    words = random_words(rng, 100)
    wave = np.concatenate(list(speak(words, rng)))
    assert transcriber(chunk_seconds=10, overlap_seconds=0.4).transcribe([wave])[0].text.split(" ") != words
    assert transcriber(chunk_seconds=10, overlap_seconds=3).transcribe([wave])[0].text.split(" ") == words


@pytest.mark.parametrize("seed", range(3))
def test_windows_cover_all_and_none_is_short(seed: int) -> None:
    rng = np.random.default_rng(seed)
    windows = Windows(length=300, overlap=80, hop=10)
    for size in [1, 299, 300, 301, 520, 521, 522, *rng.integers(1, 5000, size=100).tolist()]:
        wave = np.arange(1, size + 1, dtype=np.float32)
        cut = list(windows.cut(np.split(wave, np.sort(rng.integers(0, size, size=7)))))
        assert cut[0].start == 0
        assert cut[-1].start + cut[-1].wave.size == size
        for start, part in cut:
            assert start % windows.hop == 0
            assert part.size <= windows.length
            np.testing.assert_array_equal(part, wave[start : start + part.size])
        for left, right in itertools.pairwise(cut):
            assert left.start + left.wave.size - right.start == windows.overlap
        if len(cut) > 1:
            assert min(part.size for _, part in cut) >= (windows.length + windows.overlap) // 2 - windows.hop
        assert (len(cut) == 1) == (size <= windows.length)


def logprobs_of(line: str) -> np.ndarray:
    """A frame a character: ``.`` is the blank."""
    ids = [0 if c == "." else TOKENIZER.tokens.index(c) for c in line]
    logits = np.full((len(ids), len(TOKENIZER)), -9, np.float32)
    logits[np.arange(len(ids)), ids] = -0.01
    return logits


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        # One agrees with itself: in the pause.
        ("ab..c|......de.|..f.ab|.a", "ab..c|......de.|..f.ab|.a", "abc de fab a"),
        # The right one is a frame late, and never hears the first word; the left one never hears the last.
        ("ab..c|......de.|..f.gg|.h", "hhhhhh.|.....de.|..f.ab|.a", "abc de fab a"),
        # The delimiter falls at the pause's beginning in one, at its end in the other.
        ("..a.b.|..............c.d.|.", "..a.b...............|.c.d.|.", "ab cd"),
        # Nothing but silence in common.
        ("hh.......................", "......................ccc", "hc"),
        # No pause at all.
        ("a|b|c|d|e|f|g|h|a|b|c|d|e", "h|b|c|d|e|f|g|h|a|b|c|d|e|f|g", "a b c d e f g h a b c d e f g"),
        # A token longer in one than in the other must not come twice.
        ("...........aa............", "...........aaaaa.........", "a"),
        ("......a.................", "......aaaaaaaaaaaaaaaaaa", "a"),
        # One word again and again, and at their bad ends both make it up as well.
        (
            ".a|....a....|..a...|.....a.|a....|..a.aaa|.a||aa",
            "a.a|a|a|||..|.a......|...a.|a....|.a....|a..|...",
            "a a a a a a a",
        ),
    ],
)
def test_seams_by_hand(left: str, right: str, expected: str) -> None:
    shared = min(len(left), len(right))
    seam = find_seam(logprobs_of(left[:shared]), logprobs_of(right[:shared]), TOKENIZER)
    assert shared // 4 <= seam <= shared - shared // 4
    joined = left[:seam] + right[seam:]
    ids = [c for c, before in zip(joined, "." + joined, strict=False) if c != before and c != "."]
    assert "".join(" " if c == "|" else c for c in ids).strip() == expected


def test_the_longest_common_pause_is_taken() -> None:
    line = "ab|cdab|......fe|a...b|cd|eg|fd|ahb|a|b|"
    seam = find_seam(logprobs_of(line), logprobs_of(line), TOKENIZER)
    assert line.index("|......f") < seam < line.index("fe") < line.index("a...b") < len(line) // 2


@pytest.mark.parametrize(
    ("before", "left", "right", "expected"),
    [
        ("ab|...", "....cd", "..|.cd", "...." + "cd"),  # one before and one after the seam: the second goes
        ("ab....", "..|.cd", "....cd", "|..." + "cd"),  # the left one would have had it later: it is put in
        ("ab....", "..|.cd", "cd....", "cd...."),  # no room: the right one hears the next word at once
        ("ab....", "..|.cd", "|...cd", "|...cd"),
        ("ab....", "....cd", "....ef", "....ef"),  # neither had one, in a pause that may be within a word
        ("ab" + "." * 15, "." * 9 + "gh", "." * 15 + "cd", "|" + "." * 14 + "cd"),  # but not in one so long
        ("ab" + "." * 15, "." * 15 + "cd", "." * 15 + "cd", "." * 15 + "cd"),  # unless both agree
        ("ab|...", "..|.cd", "..|.cd", "..|.cd"),
        ("......", "..|.cd", "....cd", "....cd"),  # nothing to part
    ],
)
def test_seams_are_mended(before: str, left: str, right: str, expected: str) -> None:
    ids = [TOKENIZER.tokens.index(c) for c in before if c != "."]
    silence = len(before) - len(before.rstrip("."))
    mended = mend(logprobs_of(left), logprobs_of(right), ids[-1] if ids else None, silence, TOKENIZER)
    np.testing.assert_array_equal(mended, logprobs_of(expected))


def test_join_keeps_every_frame() -> None:
    rng = np.random.default_rng(3)
    whole = np.log(rng.dirichlet(np.ones(len(TOKENIZER)), size=400)).astype(np.float32)
    parts = [(start, whole[start : start + 100]) for start in range(0, 301, 60)]
    np.testing.assert_array_equal(np.concatenate(list(join(parts, TOKENIZER))), whole)
    with pytest.raises(ValueError, match="do not overlap"):
        list(join([(0, whole[:10]), (10, whole[10:])], TOKENIZER))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlap_seconds": 0.1}, "at least 8 frames"),
        ({"chunk_seconds": 14, "overlap_seconds": 5}, "at most a third"),
    ],
)
def test_unusable_windows_are_refused(options: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        transcriber(**options)


def test_a_frame_must_be_whole_samples() -> None:
    with pytest.raises(RecipeError, match="chunk_seconds=0"):
        Windows.of_seconds(30, 5, 0.02, 11025)


def test_a_damaged_block_is_named() -> None:
    blocks = [np.zeros(1000, np.float32), np.full(10, np.nan, np.float32)]
    with pytest.raises(AudioError, match="block at sample 1000"):
        transcriber().transcribe_stream(blocks)
    with pytest.raises(AudioError, match="no samples"):
        transcriber().transcribe_stream([])
