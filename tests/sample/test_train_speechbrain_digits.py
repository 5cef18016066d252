"""The SpeechBrain training script: its parts on tones instead of speech; and the four recognisers that it made."""

import argparse
import importlib
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("speechbrain")
EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDERS = Path(__file__).parents[1] / "data" / "speechbrain"
MODELS = ("wav2vec2_ctc", "crdnn_ctc", "crdnn_attention", "transformer_attention")
CTC = MODELS[:2]


@pytest.fixture(scope="module")
def training():
    """``train_speechbrain_digits``, which finds ``digit_strings`` beside it as it does when run as a script."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield importlib.import_module("train_speechbrain_digits")
        del sys.modules["train_speechbrain_digits"], sys.modules["digit_training"], sys.modules["digit_strings"]


@pytest.fixture(scope="module")
def corpus(training):
    """One speaker whose digits are tones."""
    time = np.arange(1600, dtype=np.float32) / 8000
    return [
        training.Recording(word, "ann", take, (np.sin(2 * np.pi * (300 + 250 * digit) * time).astype(np.float32),))
        for take in range(20)
        for digit, word in enumerate(training.DIGITS[:3])
    ]


@pytest.fixture
def quick(training, corpus, monkeypatch):
    """Validation on a single tone."""
    monkeypatch.setattr(
        sys.modules["digit_training"], "fixed_set", lambda *_: [training.Example(corpus[0].waves[0], "zero", "ann")]
    )


def options(steps: int) -> argparse.Namespace:
    return argparse.Namespace(steps=steps, batch=2, rate=1e-3, seed=0, bf16=False)


@pytest.mark.parametrize("name", MODELS)
def test_two_steps_make_a_folder_that_speechbrain_loads(training, corpus, quick, name, tmp_path, monkeypatch, capsys):
    out = tmp_path / "made" / name
    arguments = ["train_speechbrain_digits.py", name, str(out), "--data", "nowhere", "--steps", "2", "--batch", "2"]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(training, "read_corpus", lambda _: corpus)
    errors = {"sub": 1, "del": 0, "ins": 0, "words": 8}
    monkeypatch.setattr(training, "evaluate", lambda _: {"evaluation": errors})
    taken = {}
    monkeypatch.setattr(
        training, "save_half", lambda hparams, out, save=training.save_half: (taken.update(hparams), save(hparams, out))
    )
    training.main()

    assert "evaluation: WER 12.50 %" in capsys.readouterr().out
    assert "| evaluation | 12.50 % | 1 | 0 | 0 | 8 |" in (out / "README.md").read_text()
    # What a reader gets elsewhere is what was trained, rounded to 16 bits where it was trained.
    shutil.copytree(out, tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "made")
    back = training.load(tmp_path / "elsewhere")
    wanted, got = (training.trained(h).state_dict() for h in (taken, vars(back.hparams)))
    for path, tensor in wanted.items():
        half = tensor if "running" in path or not tensor.is_floating_point() else tensor.half().float()
        assert torch.equal(got[path], half), path
    if "normalizer" in taken:
        assert torch.equal(back.hparams.normalizer.glob_mean, taken["normalizer"].glob_mean)
        assert torch.equal(back.hparams.normalizer.glob_std, taken["normalizer"].glob_std)
    assert len(training.recognise(back, [corpus[0].waves[0]])) == 1


@pytest.mark.parametrize("name", CTC)
def test_loss_is_pytorchs_on_what_speechbrain_gives(training, corpus, name, tmp_path):
    hparams = training.build(name, tmp_path / name)
    if "normalizer" in hparams:
        training.learn_statistics(hparams, corpus, 0)
    asr = training.interface(hparams).eval()
    training.trained(hparams).eval()
    example = training.Example(np.random.default_rng(0).standard_normal(12000, dtype=np.float32), "three six", "ann")
    with torch.no_grad():
        log_probs = asr.encode_batch(torch.from_numpy(example.wave)[None], torch.ones(1))
        loss = training.loss_of(hparams, [example])
    ids = torch.tensor(training.token_ids(hparams, example.text))
    sizes = torch.tensor([log_probs.shape[1]]), torch.tensor([len(ids)])
    wanted = torch.nn.functional.ctc_loss(log_probs.transpose(0, 1), ids[None], *sizes, hparams["blank_index"])
    torch.testing.assert_close(loss, wanted)


def test_training_resumes_where_it_stopped(training, corpus, quick, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["digit_training"], "CHECK", 8)

    def untrained():
        torch.manual_seed(0)
        return training.build("transformer_attention", tmp_path / "model")

    whole, stopped, resumed = untrained(), untrained(), untrained()
    training.train(whole, corpus, tmp_path / "whole.pt", options(16))
    batches = sys.modules["digit_training"].training_batches

    def interrupted(part, batch, seed, *span):
        for step, examples in enumerate(batches(part, batch, seed, *span)):
            if seed == 0 and step == 11:
                raise KeyboardInterrupt
            yield examples

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sys.modules["digit_training"], "training_batches", interrupted)
        training.train(stopped, corpus, tmp_path / "part.pt", options(16))
    assert torch.load(tmp_path / "part.pt", weights_only=True)["step"] == 8
    training.train(resumed, corpus, tmp_path / "part.pt", options(16))
    for (path, one), other in zip(whole["asr"].named_parameters(), resumed["asr"].parameters(), strict=True):
        assert torch.equal(one, other), path


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["crdnn_ctc", "out", "--data", "nowhere"],
            "nowhere: no all.jsonl there; give the folder that holds it as --data",
        ),
        (["conformer", "out", "--data", "."], "invalid choice: 'conformer'"),
        (["crdnn_ctc", "out", "--data", ".", "--rate", "-1"], "--rate -1.0: must be more than 0"),
        (["crdnn_ctc", "out", "--data", ".", "--steps", "0"], "--steps 0: must be more than 0"),
    ],
)
def test_bad_input_is_one_line(training, arguments, complaint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train_speechbrain_digits.py", *arguments])
    with pytest.raises(SystemExit) as caught:
        training.main()
    said = capsys.readouterr().err if caught.value.code == 2 else str(caught.value.code)
    assert complaint in said.splitlines()[-1]
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", MODELS)
def test_committed_folder_recognises_the_samples_speech(training, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = training.read_set(training.SAMPLE / "evaluation.jsonl")[3::8]
    texts = training.recognise(training.load(FOLDERS / name), [e.wave for e in examples])
    counts = training.word_errors([e.text for e in examples], texts)
    assert counts["words"] > 100
    assert training.wer(counts) < 3, texts
    assert not any(tmp_path.iterdir())  # SpeechBrain left nothing where it was called


@pytest.mark.parametrize("name", MODELS)
def test_committed_folder_is_small_and_says_nothing_of_where_it_was_made(name):
    files = [path for path in (FOLDERS / name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_600_000
    assert (FOLDERS / name / "hyperparams.yaml").read_text() == (
        EXAMPLES / "speechbrain_digits" / f"{name}.yaml"
    ).read_text()
    for path in files:
        content = path.read_bytes()
        for place in (b"/work", b"/tmp", b"/home", b"/root", b"/Users", b"file:"):
            assert place not in content, (path, place)
    assert "CC BY-SA 4.0" in (FOLDERS / name / "LICENSE").read_text()
