"""Whisper's search beside transformers' ``generate``, on models of random weights that hear one second at once."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_hf
import tiny_whisper
import torch

from quantasr.errors import AudioError, RecipeError
from quantasr.sources import load_model
from quantasr.sources.huggingface.whisper.model import WhisperModel
from quantasr.speech.whisper import WhisperTranscriber
from quantasr.speech.whisper.levels import LevelStream, loudest_of
from quantasr.speech.whisper.rules import Rules
from quantasr.speech.whisper.segments import Segment

SPEECH = tiny_hf.speech(0.8, 1.0, 0.55)
NO_GATES: dict[str, Any] = {
    "temperatures": [0.0],
    "compression_ratio_threshold": None,
    "no_speech_threshold": None,
    "silence_threshold": None,
    "steady_threshold": None,
}


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper.save("multilingual", tmp_path_factory.mktemp("multilingual"))


@pytest.fixture(scope="module")
def model(where: Path) -> WhisperModel:
    loaded = load_model(where)
    assert isinstance(loaded, WhisperModel)
    return loaded


@pytest.fixture(scope="module")
def original(where: Path) -> Any:
    return tiny_whisper.original(where)


def _marks(model: WhisperModel) -> list[int]:
    """Special tokens but the end and the times, which trained models never write."""
    facts = model.decoding
    return [*facts["suppress_tokens"], *range(facts["end"] + 1, facts["no_timestamps"] + 1)]


def _silent(model: WhisperModel) -> list[int]:
    return [*_marks(model), *range(model.decoding["no_timestamps"], model.decoding["vocabulary"])]


def _features(model: WhisperModel, wave: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(model.frontend(wave)).T[None]


def _written(model: WhisperModel, found: torch.Tensor) -> list[int]:
    end, middle = model.decoding["end"], model.decoding["no_timestamps"]
    return [token for token in found.tolist() if not end <= token <= middle]


@pytest.mark.parametrize(
    ("options", "theirs"),
    [
        ({}, {}),
        ({"beam_width": 3}, {"num_beams": 3}),
        ({"beam_width": 4, "length_penalty": 2.5}, {"num_beams": 4, "length_penalty": 2.5}),
        ({"max_tokens": 5}, {"max_new_tokens": 5}),
    ],
)
def test_the_same_tokens_as_generate(
    model: WhisperModel, original: Any, options: dict[str, Any], theirs: dict[str, Any]
) -> None:
    silent = _silent(model)
    search = model.transcriber(language="de", suppress_tokens=silent, **NO_GATES, **options)
    for wave, path in zip(SPEECH, search.paths(SPEECH), strict=True):
        want = original.generate(
            _features(model, wave), language="de", task="transcribe", suppress_tokens=silent, **theirs
        )
        ours = path[search.facts.prompt_length(path) :].tolist()
        assert len(ours) > 3 and ours == _written(model, want[0])
        assert search.transcribe([wave])[0].text == model.tokenizer.decode(ours).strip()


@pytest.mark.parametrize("before", [False, True])
def test_long_recordings_go_window_by_window_as_in_generate(model: WhisperModel, original: Any, before: bool) -> None:
    marks = _marks(model)
    wave = np.concatenate([tiny_hf.speech(1.3)[0], 0.2 * tiny_hf.speech(1.7)[0]])
    search = model.transcriber(language="en", suppress_tokens=marks, condition_on_previous_text=before, **NO_GATES)
    want = original.generate(
        _features(model, wave),
        language="en",
        task="transcribe",
        suppress_tokens=marks,
        return_timestamps=True,
        return_segments=True,
        condition_on_prev_tokens=before,
    )
    heard: list[Segment] = []
    cut_segments(search, wave, heard)
    tokens = [list(segment.tokens) for segment in heard]
    assert len(tokens) > 2 and tokens == [row["tokens"].tolist() for row in want["segments"][0]]
    streamed = search.transcribe_stream(np.array_split(wave, 7))
    whole = search.transcribe([wave])[0]
    assert whole.duration == streamed.duration == wave.size / 16000
    assert whole.text == model.tokenizer.decode(chain.from_iterable(tokens)).strip()


def cut_segments(search: WhisperTranscriber, wave: np.ndarray, heard: list[Segment]) -> None:
    """Keep the segments that ``search`` finds in ``wave``."""
    finish = search._finish
    search._finish = lambda found, samples: (heard.extend(found.segments), finish(found, samples))[1]  # type: ignore
    search.transcribe([wave])
    del search._finish


def test_the_language_is_heard_as_transformers_hears_it(model: WhisperModel, original: Any) -> None:
    search = model.transcriber()
    names = {i: code for code, i in model.decoding["languages"].items()}
    for wave, path in zip(SPEECH, search.paths(SPEECH), strict=True):
        want = int(original.detect_language(_features(model, wave))[0])
        assert path[1] == want and search.transcribe([wave])[0].language in (names[want], None)
    asked = model.transcriber(language="japanese", task="translate").paths(SPEECH[:1])[0]
    assert asked[1:3].tolist() == [model.decoding["languages"]["ja"], model.decoding["translate"]]


def test_cached_and_uncached_decoding_agree(model: WhisperModel) -> None:
    search = model.transcriber(language="en", suppress_tokens=_marks(model), timestamps=True, **NO_GATES)
    paths = search.paths(SPEECH)
    rules = Rules(search.facts, search.options, timestamps=True)
    stepped = search.logprobs(SPEECH, paths)
    for path, rows, steps in zip(paths, model.logprobs(SPEECH, paths), stepped, strict=True):
        written = path[search.facts.prompt_length(path) :].tolist()
        np.testing.assert_allclose(rows, steps, atol=1e-4)
        for i, token in enumerate(written):
            scores = rows[i].copy()
            rules.apply(scores, written[:i])
            assert int(scores.argmax()) == token


def test_levels_of_a_stream_are_those_of_the_whole(model: WhisperModel) -> None:
    wave = tiny_hf.speech(3.7)[0]
    whole = model.frontend.levels(wave)
    for pieces in (1, 5, 400):
        stream = LevelStream(model.frontend, np.array_split(wave, pieces))
        found = [stream.window(start, 37).copy() for start in range(0, len(whole) + 37, 37)]
        np.testing.assert_allclose(np.concatenate(found), whole, atol=1e-5)
        assert stream.samples == wave.size
    assert loudest_of(model.frontend, wave, 5000) == pytest.approx(float(whole.max()), abs=1e-5)


@pytest.mark.parametrize("timestamps", [False, True])
@pytest.mark.parametrize("samples", [0, 1, 100, 800, 1600])
def test_short_clips_never_fail(model: WhisperModel, samples: int, timestamps: bool) -> None:
    found = model.transcriber(timestamps=timestamps).transcribe([np.full(samples, 0.1, np.float32)])[0]
    assert found.duration == samples / 16000
    if not samples:
        assert found.text == "" and found.words == ()


def test_silence_is_not_heard(model: WhisperModel) -> None:
    calls = []
    parts = dict(model.parts())
    parts["encoder"] = lambda feed: calls.append(feed)  # type: ignore[assignment]
    search = model.transcriber(parts)
    assert search.transcribe([np.zeros(9000, np.float32), np.zeros(90000, np.float32)])[1].text == ""
    assert search.transcribe_stream([np.zeros(16000, np.float32)] * 5).duration == 5.0
    assert not calls


def test_only_what_there_is_is_encoded(model: WhisperModel) -> None:
    heard = []
    encoder = model.parts()["encoder"]
    parts = dict(model.parts())
    parts["encoder"] = lambda feed: heard.append(feed["features"].shape[1]) or encoder(feed)  # type: ignore
    waves = [SPEECH[2], tiny_hf.speech(1.31)[0]]
    model.transcriber(parts, encode="audio", encode_margin=0.1, **NO_GATES).transcribe(waves[:1])
    assert heard == [66]  # 0.55 s and 0.1 s in rows of 10 ms, made even
    model.transcriber(parts, **NO_GATES).transcribe(waves[:1])
    assert heard[1:] == [100]


def test_words_have_times(model: WhisperModel) -> None:
    letters = [i for i, token in enumerate(model.tokenizer.tokens) if token.strip("Ġ").isalpha() and token.isascii()]
    spaced = [i for i, token in enumerate(model.tokenizer.tokens) if token in ("Ġa", "Ġthe")]
    others = set(range(model.decoding["vocabulary"])) - {*letters[::9], *spaced}
    options = NO_GATES | {"temperatures": [3.0], "suppress_tokens": sorted(others)}
    search = model.transcriber(language="en", word_timestamps=True, **options)
    found, again = search.transcribe([SPEECH[1], SPEECH[1]])
    assert found == again, "what is drawn depends on the recording and the seed alone"
    assert model.transcriber(language="en", seed=1, **options).transcribe([SPEECH[1]])[0].text != found.text
    assert [word.text for word in found.words] == found.text.split() and len(found.words) > 1
    times = [time for word in found.words for time in (word.start, word.end)]
    assert times == sorted(times) and times[-1] <= found.duration
    assert all(0 < word.confidence <= 1 for word in found.words if word.confidence is not None)


def test_what_is_refused(model: WhisperModel) -> None:
    for options, said in (({"language": "klingon"}, "klingon"), ({"beam_width": 10**9}, "GiB are free")):
        with pytest.raises(RecipeError, match=said) as caught:
            model.transcriber(**options)
        assert "\n" not in str(caught.value)
    with pytest.raises(AudioError, match="wave 1"):
        model.transcriber().transcribe([SPEECH[0], np.full(800, np.nan, np.float32)])
    with pytest.raises(AudioError, match="one channel"):
        model.transcriber().transcribe([np.zeros((2, 800), np.float32)])
