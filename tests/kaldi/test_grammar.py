"""Grammars given at run time: the same texts as Vosk's, and what is said where a grammar does not fit."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import quantasr
from quantasr.cli import main
from quantasr.errors import KaldiFileError, ModelLoadError, RecipeError
from quantasr.kaldi.compile import read_phrases
from quantasr.sample import evaluation, model
from quantasr.speech.audio import load_audio
from quantasr.speech.lattice.files import DecodingFiles, find_graph

DATA = Path(__file__).parents[1] / "data" / "kaldi"
VOSK = json.loads((DATA / "lookahead" / "vosk.json").read_text())
RECORDINGS = evaluation().parent
ONE = str(RECORDINGS / "evaluation" / "043-jackson.ogg")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Vosk model: that of the digits."""
    root = tmp_path_factory.mktemp("vosk")
    for name in ("am", "conf"):
        (root / name).mkdir()
    shutil.copy(DATA / "digits" / "final.mdl", root / "am")
    shutil.copy(DATA / "digits" / "conf" / "mfcc.conf", root / "conf")
    shutil.copy(DATA / "lookahead" / "model.conf", root / "conf")
    shutil.copytree(
        DATA / "lookahead", root / "graph", ignore=shutil.ignore_patterns("*.py", "*.json", "*.md", "*.conf")
    )
    return root


@pytest.fixture(scope="module")
def original(folder):
    return quantasr.load_model(str(folder))


@pytest.fixture(scope="module")
def logprobs(original):
    """What the network says of each recording, whatever the grammar."""
    paths = list(VOSK[0]["texts"])
    waves = [load_audio(RECORDINGS / path, original.sample_rate) for path in paths]
    return dict(zip(paths, original.transcriber().logprobs(waves), strict=True))


@pytest.mark.parametrize("given", VOSK, ids=lambda given: str(len(given["grammar"] or ())))
def test_best_paths_are_vosks(given, original, logprobs):
    recogniser = original.transcriber(grammar=given["grammar"])
    for path, matrix in logprobs.items():
        lattice = recogniser.decoder(matrix)
        # Vosk scales the costs of its graph before it takes the text.
        assert lattice.text(lattice.best_path(lm_scale=0.9).words) == given["texts"][path][1], path


@pytest.mark.parametrize("given", VOSK, ids=lambda given: str(len(given["grammar"] or ())))
def test_texts_are_vosks(given, original):
    recogniser = original.transcriber(grammar=given["grammar"])
    for path, (text, _) in given["texts"].items():
        assert recogniser.transcribe_file(RECORDINGS / path).text == text, path


def test_a_grammar_says_only_its_words_and_names_what_it_lacks(original):
    recogniser = original.transcriber(grammar=["one two nowhere", "seven", "never two"])
    assert recogniser.unknown_words == ("nowhere", "never")
    heard = recogniser.transcribe_file(ONE).text.split()
    assert heard and set(heard) <= {"one", "two", "seven"}
    assert original.transcriber().unknown_words == ()


def test_files_of_an_artifact_take_a_grammar_too(folder, original, logprobs, tmp_path):
    files = original.decoding
    files.copy_to(tmp_path)
    again = replace(DecodingFiles.read(json.loads(json.dumps(files.to_dict())), tmp_path), grammar=("two", "one"))
    lattice = again.decoder(next(iter(logprobs.values())))
    assert set(lattice.text(lattice.best_path().words).split()) <= {"one", "two"}
    assert "grammar" not in again.to_dict()


def test_a_compiled_graph_keeps_its_grammar():
    files = DecodingFiles(find_graph(DATA / "digits" / "graph"), np.zeros(60, np.int32), grammar=("one",))
    with pytest.raises(KaldiFileError, match=r"HCLG.fst: has its grammar compiled in.*compile-graph"):
        _ = files.decoder


@pytest.mark.parametrize(
    "grammar, problem",
    [
        (["nowhere", "never"], "no word that the model knows"),
        ([], "no word that the model knows"),
        (("",), "no word that the model knows"),
    ],
)
def test_grammars_without_words(original, grammar, problem):
    with pytest.raises(ModelLoadError, match=problem):
        _ = original.transcriber(grammar=grammar).decoder


def test_a_grammar_is_a_list_and_for_a_graph_on_disk(original):
    with pytest.raises(RecipeError, match=r"list of phrases, such as \['one two'\]"):
        original.transcriber(grammar="one two")
    live = original.transcriber().decoder
    with pytest.raises(RecipeError, match="not with a live decoder"):
        original.transcriber(decoder=live, grammar=["one"])


def test_phrases_of_a_file(tmp_path):
    text, packed = tmp_path / "a.txt", tmp_path / "a.json"
    text.write_text("\ufeffone two\n\n  three [unk] \n", encoding="utf-8")
    packed.write_text('["one two", "three [unk]", ""]')
    assert read_phrases(text) == read_phrases(packed) == ("one two", "three [unk]")
    for name, content in (("b.json", b"{}"), ("c.json", b"[1]"), ("d.json", b"[" * 100_000), ("e.txt", b"\xff\xfe")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(KaldiFileError, match=name) as problem:
            read_phrases(tmp_path / name)
        assert "\n" not in str(problem.value)


def test_transcribe_and_evaluate(folder, tmp_path, capsys):
    phrases = tmp_path / "phrases.txt"
    phrases.write_text("five two\none two nowhere\n")
    assert main(["transcribe", str(folder), ONE, "--grammar", str(phrases)]) == 0
    said = capsys.readouterr()
    assert set(said.out.split()) <= {"five", "one", "two"} and said.out.strip()
    assert "does not know 'nowhere': left out" in said.err
    command = ["evaluate", str(folder), "--manifest", str(evaluation()), "--limit", "2", "--grammar", str(phrases)]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["wer"]["rate"] > 0.5  # neither is six or four


@pytest.mark.parametrize(
    "arguments, problem",
    [
        ([str(model())], "has no decoding graph: --grammar is for Kaldi and Vosk models"),
        ([str(DATA / "digits")], "has its grammar compiled in"),
        ([str(DATA / "digits"), "--beam-width", "4"], "--grammar is for Kaldi and Vosk models, --lm"),
    ],
)
def test_refused_in_one_line(arguments, problem, tmp_path, capsys):
    phrases = tmp_path / "phrases.txt"
    phrases.write_text("one\n")
    where, *more = arguments
    assert main(["transcribe", where, ONE, "--grammar", str(phrases), *more]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and problem in said[0]
