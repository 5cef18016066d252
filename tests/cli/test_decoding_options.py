"""How the subcommands take a decoder, and what they write where there are no times."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from quantasr.cli.options import add_decoder, decoder_options
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
