"""Texts to labels: the inverse of decoding, for every trained model, and what a vocabulary lacks."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import sentencepiece
import tiny_hf
import tiny_nemo
import transformers

from quantasr.errors import ModelLoadError
from quantasr.sources import load_model
from quantasr.sources.pieces import read_pieces
from quantasr.speech.tokenizer import Tokenizer
from quantasr.training.labels import LabelEncoder, frames_needed

DATA = Path(__file__).parents[1] / "data"
DIGITS = Path(__file__).parents[2] / "src/quantasr/sample/digits"
TRAINED = {
    "huggingface": DIGITS,
    "nemo-quartznet": DATA / "nemo/quartznet.nemo",
    "nemo-conformer": DATA / "nemo/conformer.nemo",
    "speechbrain-wav2vec2": DATA / "speechbrain/wav2vec2_ctc",
    "speechbrain-crdnn": DATA / "speechbrain/crdnn_ctc",
}
TEXTS = [json.loads(line)["text"] for line in (DIGITS / "evaluation.jsonl").read_text("utf-8").splitlines()]


def characters(tokens: str, **options: object) -> Tokenizer:
    return Tokenizer(("<pad>", "|", *tokens), blank_id=0, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("place", TRAINED.values(), ids=list(TRAINED))
def test_decoding_gives_the_text_back(place: Path) -> None:
    model = load_model(str(place), trust=True)
    encoder = LabelEncoder.of(model)
    assert len(TEXTS) == 220
    assert [model.tokenizer.decode(encoder.encode(text)) for text in TEXTS] == TEXTS
    assert not any(encoder.unknown(text) for text in TEXTS)
    assert encoder.unknown("one Ü two") == Counter({"Ü": 1})


def test_hugging_face_makes_the_same_labels(tiny_hf_folder) -> None:
    folder = tiny_hf_folder("wav2vec2-large")
    own = transformers.Wav2Vec2CTCTokenizer.from_pretrained(folder)
    encoder = LabelEncoder.of(load_model(str(folder)))
    for text in ("abc def", "a", "bad cafe dada", "k k k"):
        assert encoder.encode(text) == own(text).input_ids


def test_upper_case_vocabularies_take_upper_case() -> None:
    encoder = LabelEncoder(characters("ABC'"))
    assert encoder.encode("ab'C a") == encoder.encode("AB'C A") == [2, 3, 5, 4, 1, 2]
    assert LabelEncoder(characters("abC")).encode("abC") == [2, 3, 4]
    assert LabelEncoder(characters("abC")).unknown("ABC") == Counter("AB")
    # transformers' do_lower_case: the vocabulary is in upper case, the texts that come out in lower case.
    assert LabelEncoder(characters("ABCd", lowercase=True)).encode("abc") == [2, 3, 4]


def test_unknown_characters_are_named_as_they_are_written() -> None:
    encoder = LabelEncoder(characters("ABC"))
    assert encoder.unknown("ab é-c - a") == Counter({"-": 2, "é": 1})
    assert encoder.encode("ab é-c") == [2, 3, 1, 4]
    # One character that becomes two in upper case is named as it became.
    assert encoder.unknown("aß") == Counter({"S": 2})


def test_a_vocabulary_without_delimiter_lacks_the_space() -> None:
    encoder = LabelEncoder(Tokenizer(("<pad>", "a", "b"), blank_id=0))
    assert encoder.unknown("a b  a") == Counter({" ": 2})
    assert encoder.encode("ab") == [1, 2]


def test_the_delimiter_is_no_letter() -> None:
    assert LabelEncoder(characters("ab")).unknown("a|b") == Counter("|")


def test_tokens_that_stand_for_no_text_are_never_labels() -> None:
    tokenizer = Tokenizer(("<pad>", "|", "<unk>", "<3>", "u", "n", "k"), blank_id=0, unk_token="<unk>")
    assert LabelEncoder(tokenizer).unknown("<unk>") == Counter("<>")


def test_the_longest_piece_counts_and_as_few_as_possible_where_it_leads_nowhere() -> None:
    pieces = Tokenizer(("\u2581", "\u2581ab", "abc", "bcd", "c", "a", "<b>"), 6, None, kind="pieces")
    encoder = LabelEncoder(pieces)
    assert encoder.encode("abc c") == [1, 4, 0, 4]
    # Greedy: ▁ab, c, and no d; so ▁, a, bcd.
    assert encoder.encode("abcd") == [0, 5, 3]
    assert encoder.unknown("abcd abq") == Counter("q")
    assert encoder.encode("abq") == [1]


def test_bytes_spell_what_has_no_piece() -> None:
    spelt = [f"<0x{byte:02X}>" for byte in "é".encode()]
    pieces = Tokenizer(("<b>", "\u2581", "a", *spelt), 0, None, kind="pieces", byte_fallback=True)
    encoder = LabelEncoder(pieces)
    assert encoder.encode("aé") == [1, 2, 3, 4]
    assert pieces.decode(encoder.encode("aé")) == "aé"
    assert not encoder.unknown("aé")
    assert encoder.unknown("aè") == Counter("è")


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_segmentation_is_that_of_sentencepiece(tmp_path: Path, kind: str) -> None:
    folder = tiny_nemo.sentencepiece_folder(tmp_path, model_type=kind)
    content = (folder / "tokenizer.model").read_bytes()
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    pieces = read_pieces(processor)
    tokenizer = Tokenizer((*pieces.tokens, "<b>"), len(pieces.tokens), None, kind="pieces")
    texts = tiny_nemo._SENTENCES
    encoder = LabelEncoder(tokenizer, content)
    plain = LabelEncoder(tokenizer)
    for text in texts:
        cased = encoder.normalize(text)
        assert encoder.encode(text) == processor.encode(cased)
        assert tokenizer.decode(encoder.encode(text)) == tokenizer.decode(plain.encode(text)) == cased
    assert encoder.unknown("Ω " + texts[0]) == plain.unknown("Ω " + texts[0]) == Counter("Ω")


def test_pieces_of_the_trained_nemo_model_need_no_sentencepiece_model() -> None:
    """On its corpus the longest piece is what its own model takes too."""
    place = str(TRAINED["nemo-conformer"])
    files = tiny_nemo.contents(Path(place))
    (content,) = [content for name, content in files.items() if name.endswith("tokenizer.model")]
    tokenizer = load_model(place).tokenizer
    own, plain = LabelEncoder(tokenizer, content), LabelEncoder(tokenizer)
    assert [own.encode(text) for text in TEXTS] == [plain.encode(text) for text in TEXTS]


def test_a_damaged_sentencepiece_model_is_said_to_be_so() -> None:
    pieces = Tokenizer(("\u2581", "a", "<b>"), 2, None, kind="pieces")
    with pytest.raises(ModelLoadError, match="no SentencePiece model"):
        LabelEncoder(pieces, b"not a model")


def test_frames_needed() -> None:
    assert frames_needed([]) == 0
    assert frames_needed([1, 2, 3]) == 3
    assert frames_needed([1, 1, 2, 2, 2]) == 8


def test_the_tiny_vocabulary_round_trips() -> None:
    tokenizer = Tokenizer(tuple(tiny_hf.VOCABULARY), 0, special_ids=frozenset({0, 1, 2, 3}))
    assert tokenizer.decode(LabelEncoder(tokenizer).encode("  bad   cafe ")) == "bad cafe"
