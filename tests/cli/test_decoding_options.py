"""How the subcommands take a decoder, and what they write where there are no times."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from quantasr.cli.options import add_decoder, add_engine, decoder_options
from quantasr.cli.transcribe import _write
from quantasr.errors import RecipeError
from quantasr.speech.decoding import GreedyDecoder
from quantasr.speech.transcript import Transcript, Word


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_decoder(parser)
    return parser.parse_args(arguments)


def test_the_models_own_decoder_unless_asked_for_another() -> None:
    assert decoder_options(options()) == {}
    assert decoder_options(options("--greedy")) == {"decoder": GreedyDecoder()}
    assert decoder_options(options("--beam-width", "4"))["decoder"].beam_width == 4
    with pytest.raises(RecipeError, match="--greedy is no beam search"):
        decoder_options(options("--greedy", "--beam-width", "4"))


def test_searches_that_go_step_by_step_have_options_of_their_own() -> None:
    def steps(*arguments: str, decoder: str = "transducer") -> dict[str, object]:
        return decoder_options(options(*arguments), decoder, steps=True)

    assert steps() == {}
    asked = ["--option", "blank_penalty=0.5", "--option", "head=ctc", "--option", "temperatures=[0, 0.2]"]
    assert steps(*asked) == {"blank_penalty": 0.5, "head": "ctc", "temperatures": [0, 0.2]}
    assert steps("--beam-width", "4", "--language", "fi", "--task", "translate", decoder="whisper") == {
        "beam_width": 4,
        "language": "fi",
        "task": "translate",
    }
    assert steps("--greedy") == {"beam_width": 1}
    assert steps("--greedy", decoder="attention") == {"beam_width": 0}
    with pytest.raises(RecipeError, match="--lm is for CTC, Kaldi and Vosk models"):
        steps("--lm", "a.arpa")
    with pytest.raises(RecipeError, match="--greedy is no beam search"):
        steps("--greedy", "--beam-width", "4")
    for name in ("--language", "--task", "--option"):
        with pytest.raises(RecipeError, match=f"{name} is for models that decode step by step"):
            decoder_options(options(name, "a=1"))


def test_words_are_asked_of_whisper_alone() -> None:
    arguments = options()
    arguments.words, arguments.confidences = True, False
    assert decoder_options(arguments, "whisper", steps=True) == {"word_timestamps": True}
    assert decoder_options(arguments, "transducer", steps=True) == {}


def test_engines_by_part(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_engine(parser)
    asked = {"openvino": "openvino", "encoder=openvino,decoder=auto": {"encoder": "openvino", "decoder": "auto"}}
    for text, found in asked.items():
        assert parser.parse_args(["--engine", text]).engine == found
    for text in ("tensorrt", "encoder=tensorrt", "encoder=openvino,decoder"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--engine", text])
        assert "choose from auto, onnxruntime, openvino" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "printed"),
    [((Word("one", 0.1, 0.4), Word("two", 0.5, 0.9)), "a.wav\t0.10\t0.40\tone\na.wav\t0.50\t0.90\ttwo\n"),
     ((), "a.wav\t0.00\t1.50\tone two\n")],
)  # fmt: skip
def test_a_recording_without_times_is_one_line(
    words: tuple[Word, ...], printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = argparse.Namespace(json=False, words=True, confidences=False, audio=[Path("a.wav")])
    _write(arguments, Path("a.wav"), Transcript("one two", 1.5, words), 0.0)
    out, err = capsys.readouterr()
    assert out == printed
    assert ("gives words no times" in err) == (not words)
