"""Beam search against every path written out, against the n-gram's own arithmetic, and in parts against the whole."""

from __future__ import annotations

import gzip
import itertools
import math
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from fake_speech import FRAME_SECONDS, HOP, RATE, FakeAcoustic, random_words, speak
from fake_speech import TOKENIZER as TONES

from quantasr.errors import EngineError, ModelLoadError, RecipeError
from quantasr.speech.beam import BeamDecoder, Cut, find_cut, read_unigrams
from quantasr.speech.ctc import CtcTranscriber
from quantasr.speech.decoding import GreedyDecoder, collapse, decode
from quantasr.speech.frontend import WaveFrontend
from quantasr.speech.tokenizer import Tokenizer

LETTERS = Tokenizer(("<pad>", "|", "<unk>", *"ABCDEHLOT"), 0, special_ids=frozenset({0, 2}), lowercase=True)
PIECES = Tokenizer(("▁a", "▁", "b", "c", "<b>"), 4, None, frozenset({4}), kind="pieces")

# log10 probabilities; "hot" follows "the", "hat" hardly does; "hat" ends a sentence, "hot" hardly does.
ARPA = """\\data\\
ngram 1=7
ngram 2=5

\\1-grams:
-2.0\t<unk>\t0
-99\t<s>\t-0.3
-1.2\t</s>\t0
-0.8\tthe\t-0.3
-1.0\thot\t-0.3
-1.0\that\t-0.3
-1.5\ta\t-0.3

\\2-grams:
-0.2\t<s> the
-0.1\tthe hot
-2.5\tthe hat
-1.5\thot </s>
-0.1\that </s>

\\end\\
"""
EXACT = {"beam_width": 100_000, "prune_logp": -math.inf, "min_token_logp": -math.inf}


@pytest.fixture
def arpa(tmp_path: Path) -> Path:
    path = tmp_path / "lm.arpa"
    path.write_text(ARPA)
    return path


def frames_of(text: str, tokenizer: Tokenizer = LETTERS) -> np.ndarray:
    """Two frames a letter and a blank after each; ``(xy)`` is heard as x, nearly as well as y."""
    rows, choice = [], ""
    for char in text.upper().replace(" ", "|"):
        if char == "(":
            choice = "?"
        elif choice == "?":
            choice = char
        elif choice and char != ")":
            rows += [{choice: 0.50, char: 0.46}] * 2 + [{"<pad>": 0.9}]
        elif char == ")":
            choice = ""
        else:
            rows += [{char: 0.9}] * 2 + [{"<pad>": 0.9}]
    table = np.full((len(rows), len(tokenizer)), 0.001)
    for row, heard in zip(table, rows, strict=True):
        for token, share in heard.items():
            row[tokenizer.tokens.index(token)] = share
    return np.log(table / table.sum(axis=1, keepdims=True)).astype(np.float32)


def best_by_hand(logprobs: np.ndarray, tokenizer: Tokenizer) -> tuple[str, float]:
    """The most probable words and their log-probability: every path, summed by the words it spells."""
    total: dict[str, float] = defaultdict(float)
    spoken = [i for i in range(len(tokenizer)) if i == tokenizer.blank_id or i not in tokenizer.special_ids]
    for path in itertools.product(spoken, repeat=len(logprobs)):
        ids = [i for i, _ in itertools.groupby(path) if i != tokenizer.blank_id]
        words = tokenizer.words(ids, range(len(ids)), range(len(ids)))
        total[tokenizer.join(w.text for w in words)] += math.exp(sum(logprobs[t, i] for t, i in enumerate(path)))
    text = max(total, key=total.__getitem__)
    return text, math.log(total[text])


@pytest.mark.parametrize(
    "tokenizer",
    [
        Tokenizer(("<pad>", "|", "a", "b"), 0, special_ids=frozenset({0})),
        Tokenizer(("_", "a", "|", "b", "-"), 4, special_ids=frozenset({4})),
        Tokenizer(("甲", "乙", "<pad>"), 2, None, frozenset({2})),
        PIECES,
    ],
)
def test_without_a_language_model_it_finds_the_most_probable_words(tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(0)
    greedy_differs = 0
    for _ in range(25):
        frames = 5 if len(tokenizer) < 5 else 4
        logprobs = np.log(rng.dirichlet(np.ones(len(tokenizer)), size=frames)).astype(np.float32)
        text, logprob = best_by_hand(logprobs, tokenizer)
        found = decode(BeamDecoder(**EXACT), tokenizer, logprobs)
        assert found.text == text
        assert found.score == pytest.approx(logprob / frames, abs=1e-4)
        greedy_differs += decode(GreedyDecoder(), tokenizer, logprobs).text != text
    assert greedy_differs > 2


def test_clear_speech_gives_the_words_and_times_of_the_greedy_decoder() -> None:
    logprobs = frames_of("the hot cat")
    greedy, beam = decode(GreedyDecoder(), LETTERS, logprobs), decode(BeamDecoder(), LETTERS, logprobs)
    assert beam.text == greedy.text == "the hot cat"
    assert beam.words == greedy.words
    assert beam.frames == len(logprobs)


def test_the_language_model_overrules_a_slightly_better_wrong_word(arpa: Path) -> None:
    logprobs = frames_of("the h(ao)t")
    assert decode(GreedyDecoder(), LETTERS, logprobs).text == "the hat"
    assert decode(BeamDecoder(), LETTERS, logprobs).text == "the hat"
    found = decode(BeamDecoder(lm=arpa), LETTERS, logprobs)
    assert found.text == "the hot"
    assert [(w.text, w.start, w.end) for w in found.words] == [("the", 0, 8), ("hot", 12, 20)]
    # alpha weighs it: with none, the acoustics decide.
    assert decode(BeamDecoder(lm=arpa, alpha=0.0), LETTERS, logprobs).text == "the hat"


def test_the_score_is_the_n_grams_own(arpa: Path) -> None:
    """By hand, in log10: P(hot|the) P(</s>|hot) against P(hat|the) P(</s>|hat), and the acoustics."""
    logprobs = frames_of("the h(ao)t")
    gain = ((-0.1 + -1.5) - (-2.5 + -0.1)) * math.log(10)
    apart = 2 * math.log(0.50 / 0.46)  # two frames, each 0.50 : 0.46
    turn = apart / gain
    # The other spellings that the search sums up move the point a little.
    assert decode(BeamDecoder(lm=arpa, alpha=0.95 * turn), LETTERS, logprobs).text == "the hat"
    assert decode(BeamDecoder(lm=arpa, alpha=1.05 * turn), LETTERS, logprobs).text == "the hot"


def test_unknown_words_pay(arpa: Path) -> None:
    logprobs = frames_of("a (bh)ot")
    assert decode(BeamDecoder(lm=arpa), LETTERS, logprobs).text == "a hot"
    assert decode(BeamDecoder(lm=arpa, unk_penalty=0.0, alpha=0.0), LETTERS, logprobs).text == "a bot"
    # The n-gram has "hot", but it is not among the words; "bot" is, so that its beginnings cost nothing.
    assert decode(BeamDecoder(lm=arpa, unigrams=("a", "bot")), LETTERS, logprobs).text == "a bot"


def test_beta_favours_more_words(arpa: Path) -> None:
    logprobs = frames_of("a(e )a")
    found = [BeamDecoder(lm=arpa, alpha=0.0, unk_penalty=0.0, beta=beta) for beta in (0.0, 1.5)]
    assert [len(decode(decoder, LETTERS, logprobs).words) for decoder in found] == [1, 2]


def test_hotwords_are_favoured() -> None:
    logprobs = frames_of("a (bh)ot cat")
    assert decode(BeamDecoder(), LETTERS, logprobs).text == "a bot cat"
    assert decode(BeamDecoder(hotwords=("hot",), hotword_weight=3.0), LETTERS, logprobs).text == "a hot cat"


def test_special_tokens_are_never_written() -> None:
    logprobs = frames_of("a cat")
    logprobs[6:8, LETTERS.tokens.index("<unk>")] = -0.01
    assert "<unk>" in decode(GreedyDecoder(), LETTERS, logprobs).text
    assert "<unk>" not in decode(BeamDecoder(), LETTERS, logprobs).text


def test_nothing_decodes_to_nothing(arpa: Path) -> None:
    empty = np.zeros((0, len(LETTERS)), np.float32)
    silence = np.full((20, len(LETTERS)), -50, np.float32)
    silence[:, 0] = 0
    for decoder in (BeamDecoder(), BeamDecoder(lm=arpa)):
        assert decode(decoder, LETTERS, empty).text == ""
        found = decode(decoder, LETTERS, silence)
        assert (found.text, found.words, found.frames) == ("", (), 20)
        assert found.score == pytest.approx(0, abs=1e-4)


def test_parts_make_the_whole(arpa: Path) -> None:
    """The n-gram's context goes on across cuts: each 'h(ao)t' is first in a part, after 'the' in the one before."""
    text = "the h(ao)t cat a cat " * 12
    logprobs = frames_of(text.strip())
    whole = decode(BeamDecoder(lm=arpa), LETTERS, logprobs)
    assert whole.text == ("the hot cat a cat " * 12).strip()
    for segment in (16, 30, 100, 10_000):
        stream = BeamDecoder(lm=arpa, segment_frames=segment).stream(LETTERS)
        for part in np.array_split(logprobs, 37):
            stream.accept(part)
        found = stream.finish()
        assert found.text == whole.text
        assert found.words == whole.words
        assert found.frames == whole.frames


def test_only_the_end_of_the_recording_ends_a_sentence(arpa: Path) -> None:
    assert decode(BeamDecoder(lm=arpa), LETTERS, frames_of("a h(oa)t")).text == "a hat"
    logprobs = frames_of("a h(oa)t the hot a")
    assert decode(BeamDecoder(lm=arpa), LETTERS, logprobs).text == "a hot the hot a"
    stream = BeamDecoder(lm=arpa, segment_frames=18).stream(LETTERS)
    stream.accept(logprobs[:18])
    stream.accept(logprobs[18:])
    assert stream.finish().text == "a hot the hot a"


def ids_of(line: str, tokenizer: Tokenizer) -> np.ndarray:
    """A frame a character; ``.`` is the blank, other characters stand for the token that ends with them."""
    last = {token[-1]: i for i, token in enumerate(tokenizer.tokens)} | {".": tokenizer.blank_id}
    logprobs = np.full((len(line), len(tokenizer)), -9, np.float32)
    logprobs[np.arange(len(line)), [last[c] for c in line]] = -0.01
    return logprobs


@pytest.mark.parametrize(
    ("line", "must", "expected"),
    [
        ("A.B.|......C.D", False, Cut(7, False)),
        ("A|B.|.C...........D", False, Cut(5, False)),  # the long pause is within a word
        ("A|BBBBBBBBBBBB", False, None),  # the only pause is too early
        ("A.B......C.D", False, None),
        ("A.B......C.D", True, Cut(6, True)),
        ("AAAAAAAAAA", True, Cut(10, True)),
        ("..........", False, None),
        ("..........", True, Cut(5, True)),
        ("A|........", False, Cut(6, False)),
    ],
)
def test_cuts_by_hand(line: str, must: bool, expected: Cut | None) -> None:
    assert find_cut(ids_of(line, LETTERS), LETTERS, must=must) == expected


def test_pieces_are_cut_before_a_word(arpa: Path) -> None:
    assert find_cut(ids_of("a.b....a.b..c", PIECES), PIECES, must=False) == Cut(5, False)
    assert find_cut(ids_of("a.b......c", PIECES), PIECES, must=False) is None


def test_silence_for_longer_than_a_part_parts_no_word_and_joins_none() -> None:
    stream = "A.B.|" + "." * 90 + "C.D" + "." * 90 + "E.|" + "." * 90 + "A" + "." * 90 + "|A"
    logprobs = ids_of(stream, LETTERS)
    expected = decode(GreedyDecoder(), LETTERS, logprobs)
    assert expected.text == "ab cde a a"
    for segment in (20, 33, 64):
        stream = BeamDecoder(segment_frames=segment).stream(LETTERS)
        for part in np.array_split(logprobs, 50):
            stream.accept(part)
        found = stream.finish()
        assert found.text == expected.text
        assert found.words == expected.words


def test_the_binary_and_the_gzipped_form_are_read(arpa: Path, tmp_path: Path) -> None:
    packed = tmp_path / "lm.arpa.gz"
    packed.write_bytes(gzip.compress(arpa.read_bytes()))
    assert read_unigrams(arpa) == read_unigrams(packed) == ["the", "hot", "hat", "a"]
    binary = tmp_path / "lm.binary"
    binary.write_bytes(b"mmap lm http://kheafield.com/code format version 5\n")
    assert read_unigrams(binary) is None


def test_without_known_words_spelling_costs_nothing(arpa: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A KenLM binary does not list its words; then only a finished unknown word pays."""
    monkeypatch.setattr("quantasr.speech.beam.read_unigrams", lambda path: None)
    assert decode(BeamDecoder(lm=arpa), LETTERS, frames_of("the h(ao)t")).text == "the hot"
    logprobs = frames_of("a (bh)ot")
    assert decode(BeamDecoder(lm=arpa, alpha=0.01), LETTERS, logprobs).text == "a hot"
    assert decode(BeamDecoder(lm=arpa, alpha=0.01, unk_penalty=0.0), LETTERS, logprobs).text == "a bot"


def test_an_unusable_language_model_is_refused(arpa: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="no such file"):
        BeamDecoder(lm=tmp_path / "none.arpa")
    broken = tmp_path / "broken.arpa"
    broken.write_text("not an n-gram\n")
    with pytest.raises(ModelLoadError, match=r"broken\.arpa: not an ARPA or KenLM binary file") as raised:
        BeamDecoder(lm=broken).stream(LETTERS)
    assert "\n" not in str(raised.value)
    upper = Tokenizer(LETTERS.tokens, 0, special_ids=LETTERS.special_ids)
    with pytest.raises(ModelLoadError, match="none of its 4 words"):
        BeamDecoder(lm=arpa).stream(upper)


def test_unusable_options_are_refused() -> None:
    for option in ("beam_width", "segment_frames"):
        with pytest.raises(RecipeError, match=f"{option} is 0"):
            BeamDecoder(**{option: 0})
    with pytest.raises(RecipeError, match="unigrams need a language model"):
        BeamDecoder(unigrams=("a",))


@pytest.mark.parametrize("missing", ["pyctcdecode", "kenlm"])
def test_a_missing_library_names_the_extra(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(EngineError, match=rf"needs {missing}: pip install 'quantasr\[lm\]'"):
        BeamDecoder()


def test_loading_prints_nothing(arpa: Path) -> None:
    code = (
        "import numpy as np\n"
        "from quantasr.speech.beam import BeamDecoder\n"
        "from quantasr.speech.tokenizer import Tokenizer\n"
        f"BeamDecoder(lm={str(arpa)!r}).stream(Tokenizer(('-', '|', *'thea'), 0))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == run.stderr == ""


def test_a_long_recording_is_transcribed_word_for_word() -> None:
    rng = np.random.default_rng(2)
    words = random_words(rng, 250)
    transcriber = CtcTranscriber(
        FakeAcoustic(),
        WaveFrontend(RATE, normalize=False),
        TONES,
        name="fake",
        frame_seconds=FRAME_SECONDS,
        min_samples=HOP,
        decoder=BeamDecoder(beam_width=8, segment_frames=500),
    )
    result = transcriber.transcribe_stream(speak(words, rng))
    assert result.duration > 100
    assert result.text.split(" ") == words
    assert [word.text for word in result.words] == words
    assert collapse(np.array([word.start for word in result.words])).shape[0] == len(words)
