"""The NeMo training script: its parts on tones instead of speech, resuming, files that NeMo reads back, bad input."""

import argparse
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("nemo.collections.asr")
EXAMPLES = Path(__file__).parents[2] / "examples"
MODELS = ("quartznet", "conformer")


@pytest.fixture(scope="module")
def training():
    """``train_nemo_digits``, which finds ``digit_strings`` beside it as it does when run as a script."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield importlib.import_module("train_nemo_digits")
        del sys.modules["train_nemo_digits"], sys.modules["digit_training"], sys.modules["digit_strings"]


@pytest.fixture(scope="module", params=MODELS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def build(training, tmp_path_factory):
    """The same untrained model of a name each time."""

    def made(name):
        torch.manual_seed(0)
        return training.build_model(name, tmp_path_factory.mktemp(name))

    return made


@pytest.fixture(scope="module")
def corpus(training):
    """One speaker whose digits are tones."""
    time = np.arange(2400, dtype=np.float32) / 8000
    return [
        training.Recording(word, "ann", take, (np.sin(2 * np.pi * (300 + 250 * digit) * time).astype(np.float32),))
        for take in range(20)
        for digit, word in enumerate(training.DIGITS[:3])
    ]


def options(steps: int) -> argparse.Namespace:
    return argparse.Namespace(steps=steps, batch=2, rate=1e-3, seed=0, bf16=False)


def test_models_are_small_and_of_the_class_promised(training, build, name):
    model = build(name)
    assert type(model).__name__ == {"quartznet": "EncDecCTCModel", "conformer": "EncDecCTCModelBPE"}[name]
    assert sum(p.numel() for p in model.parameters()) < 700_000
    texts = [" ".join(training.DIGITS), "zero zero", "eight"]
    for text in texts:
        ids = training.token_ids(model, text)
        spoken = model.decoding.decode_ids_to_str(ids)
        assert spoken == text
        # A word is several tokens, so that decoding has something to join.
        assert len(ids) > len(text.split())


def test_loss_is_that_of_pytorch_whatever_the_padding(training, build, name):
    model = build(name).eval()
    rng = np.random.default_rng(0)
    words = ("one", "three seven")
    examples = [
        training.Example(rng.standard_normal(samples, dtype=np.float32), text, "ann")
        for samples, text in zip((8000, 12000), words, strict=True)
    ]
    with torch.no_grad():
        together = training.ctc_loss(model, examples)
        alone = []
        for example in examples:
            signal, lengths = training.padded([example.wave])
            log_probs, frames, _ = model(input_signal=signal, input_signal_length=lengths)
            ids = torch.tensor(training.token_ids(model, example.text))
            sizes = frames[:1], torch.tensor([len(ids)])
            blank = log_probs.shape[-1] - 1
            alone.append(torch.nn.functional.ctc_loss(log_probs.transpose(0, 1), ids[None], *sizes, blank, "sum"))
    torch.testing.assert_close(together, torch.stack(alone).mean(), rtol=1e-3, atol=0)


def test_training_resumes_where_it_stopped(training, build, corpus, name, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["digit_training"], "CHECK", 8)
    monkeypatch.setattr(
        sys.modules["digit_training"],
        "fixed_set",
        lambda *_: [training.Example(np.zeros(8000, np.float32), "one", "ann")],
    )
    whole, stopped, resumed = build(name), build(name), build(name)
    training.train(whole, corpus, tmp_path / "whole.pt", options(16))

    batches = sys.modules["digit_training"].training_batches

    def interrupted(*arguments):
        for step, batch in enumerate(batches(*arguments)):
            if step == 11:
                raise KeyboardInterrupt
            yield batch

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sys.modules["digit_training"], "training_batches", interrupted)
        training.train(stopped, corpus, tmp_path / "part.pt", options(16))
    assert torch.load(tmp_path / "part.pt", weights_only=True)["step"] == 8
    training.train(resumed, corpus, tmp_path / "part.pt", options(16))
    for (path, one), other in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other), path


def test_saved_weights_are_the_rounded_ones_in_float32(training, build, name, tmp_path):
    model = build(name)
    wanted = {path: tensor.clone() for path, tensor in model.state_dict().items()}
    training.save_half(model, tmp_path / "model.nemo")
    assert (tmp_path / "model.nemo").stat().st_size < 1_600_000
    back = training.EncDecCTCModel.restore_from(str(tmp_path / "model.nemo"), map_location="cpu")
    trained = {path for path, _ in back.named_parameters()}
    for path, tensor in back.state_dict().items():
        assert tensor.dtype == wanted[path].dtype
        assert torch.equal(tensor, wanted[path].half().float() if path in trained else wanted[path]), path
    assert training.recognise(back, [np.zeros(8000, np.float32)] * 3, batch=2)[0] is not None


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["quartznet", "out", "--data", "nowhere"],
            "nowhere: no all.jsonl there; give the folder that holds it as --data",
        ),
        (["jasper", "out", "--data", "."], "invalid choice: 'jasper'"),
        (["conformer", "out", "--data", ".", "--rate", "-1"], "--rate -1.0: must be more than 0"),
        (["conformer", "out", "--data", ".", "--batch", "0"], "--batch 0: must be more than 0"),
    ],
)
def test_bad_input_is_one_line(training, arguments, complaint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train_nemo_digits.py", *arguments])
    with pytest.raises(SystemExit) as caught:
        training.main()
    said = capsys.readouterr().err if caught.value.code == 2 else str(caught.value.code)
    assert complaint in said.splitlines()[-1]
    assert not any(tmp_path.iterdir())
