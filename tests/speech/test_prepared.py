"""Features and i-vectors computed elsewhere: Kaldi's data folders with feats.scp, i-vectors from archives."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from quantasr.errors import AudioError, ManifestError
from quantasr.kaldi.archive import archive_writer
from quantasr.kaldi.nnet3.model import read_model
from quantasr.sources.kaldi.build import build_network
from quantasr.speech.frames import check_waves
from quantasr.speech.frontend import noise
from quantasr.speech.frontend.kaldi import KaldiFrontend
from quantasr.speech.frontend.kaldi_features import KaldiFeatures
from quantasr.speech.lattice.transcriber import LatticeTranscriber
from quantasr.speech.manifest import check_disjoint, read_manifest, with_ivectors, write_manifest
from quantasr.speech.manifest.fingerprint import check_not_among, fingerprints
from quantasr.speech.prepared import PreparedWave

GOLDEN = Path(__file__).parents[1] / "data" / "kaldi" / "golden"
CASES = json.loads((GOLDEN / "index.json").read_text())
INPUTS = dict(np.load(GOLDEN / "inputs.npz"))
RATE = 8000


def put(folder, name, arrays, **options):
    with archive_writer(folder / f"{name}.ark", folder / f"{name}.scp", **options) as write:
        for key, array in arrays.items():
            write(key, array)


@pytest.fixture
def folder(tmp_path):
    """A data folder as Kaldi's scripts leave it: the features of the goldens, and their i-vector."""
    put(tmp_path, "feats", {"u1": INPUTS["feats"], "u2": INPUTS["feats"][:20]})
    put(tmp_path, "ivector_online", {"ann": INPUTS["ivector"]})
    (tmp_path / "text").write_text("u1 one\nu2 two\n")
    (tmp_path / "utt2spk").write_text("u1 ann\nu2 ann\n")
    return tmp_path


def frontend(**options):
    features = KaldiFeatures(type="mfcc", sample_rate=RATE, num_mel_bins=10, num_ceps=6, dither=0.0)
    return KaldiFrontend(features, ivector_mode="given", given_dim=5, **options)


class Network:
    """The golden network, as a recogniser has it."""

    padded_batches = False

    def __init__(self, name):
        case = CASES[name]
        self.k, self.contexts = case["frame_subsampling_factor"], (case["left_context"], case["right_context"])
        network = read_model(GOLDEN / case["network"]).network
        self.net = build_network(network, *self.contexts, subsampling=self.k, where=name).eval()

    def __call__(self, features, lengths):
        with torch.inference_mode():
            return self.net(torch.from_numpy(features)).numpy(), (lengths - sum(self.contexts) - 1) // self.k + 1


def recogniser(name):
    network = Network(name)
    left, right = network.contexts
    front = frontend(left_context=left, right_context=right)
    return LatticeTranscriber(network, front, name=name, frame_seconds=0.03, min_samples=400, decoder=None)


@pytest.mark.parametrize("name", ["recipe_tdnnf", "recipe_lstmp"])
def test_as_kaldi_from_the_same_archives(folder, name):
    whole, short = read_manifest(folder)
    assert (whole.id, whole.text, whole.speaker) == ("u1", "one", "ann") and read_manifest(folder / "feats.scp")
    model = recogniser(name)
    found = model.logprobs([short.load(RATE), whole.load(RATE)])
    kaldi = np.load(GOLDEN / "outputs.npz")[name]
    np.testing.assert_allclose(found[1], kaldi, atol=2e-5, rtol=2e-5)
    assert len(found[0]) == 7  # 20 frames


def test_compressed(folder):
    put(folder, "feats", {"u1": INPUTS["feats"], "u2": INPUTS["feats"][:20]}, compression="CM")
    wave = read_manifest(folder)[0].load(RATE)
    np.testing.assert_allclose(wave.features, INPUTS["feats"], atol=0.03)
    assert wave.features.any() and len(wave) == 31 * 80 and np.isnan(wave).all()


def test_ivectors_every_few_frames(folder, tmp_path):
    """Of 31 frames the chunks are 0 to 23 and 24 to 30; their middles, 11 and 27, are in the rows 2 and 5."""
    rows = np.arange(7, dtype=np.float32)[:, None].repeat(5, 1)
    elsewhere = tmp_path / "ivectors"
    elsewhere.mkdir()
    put(elsewhere, "ivector_online", {"u1": rows, "u2": rows})
    (elsewhere / "ivector_period").write_text("5\n")
    first, _ = with_ivectors(read_manifest(folder), [elsewhere])
    beside = frontend(left_context=2, right_context=3)(first.load(RATE))[:, 6:]
    assert beside[:, 0].tolist() == [2.0] * (2 + 24) + [5.0] * (7 + 3) and (beside == beside[:, :1]).all()
    (first,) = with_ivectors([first], [f"scp:{elsewhere}/ivector_online.scp"], period=15)
    assert set(frontend()(first.load(RATE))[:, 6].tolist()) == {0.0, 1.0}


def test_ivectors_beside_sound(tmp_path):
    sound = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", sound, RATE, subtype="FLOAT")
    (tmp_path / "wav.scp").write_text("ann a.wav\n")
    put(tmp_path, "ivector_online", {"ann": INPUTS["ivector"]})
    wave = read_manifest(tmp_path)[0].load(RATE)
    np.testing.assert_array_equal(wave, sound)
    found = frontend()(wave)
    np.testing.assert_array_equal(found[:, :6], frontend().features(sound))
    np.testing.assert_array_equal(found[:, 6:], np.broadcast_to(INPUTS["ivector"], (len(found), 5)))
    with pytest.raises(AudioError, match="which only Kaldi models read"):
        check_waves([wave])


def test_noise_has_ivectors():
    """What traces, warms up and times a model must be something that it takes."""
    assert frontend()(noise(frontend(), 4000)).shape[1] == 11
    without = replace(frontend(), features=KaldiFeatures(type="given", num_ceps=7, sample_rate=RATE))
    assert without(noise(without, 4000)).shape == (50, 12)
    assert type(noise(frontend(), 4000)[:100]) is PreparedWave and noise(frontend(), 4000).ivectors.shape == (5,)


def test_a_model_without_mfcc_conf(folder):
    """It reads features, and says of sound what is missing; artifacts keep that."""
    features = KaldiFeatures(type="given", num_ceps=6)
    front = replace(frontend(), features=features)
    front = KaldiFrontend.from_dict({k: v for k, v in front.to_dict().items() if k != "kind"}, front.arrays())
    wave = read_manifest(folder)[0].load(RATE)
    np.testing.assert_array_equal(front(wave)[:, :6], INPUTS["feats"])
    with pytest.raises(AudioError, match=r"no mfcc\.conf or fbank\.conf, so it reads no sound"):
        front(np.zeros(8000, np.float32))


def test_what_does_not_fit_is_said(folder):
    wave = read_manifest(folder)[0].load(RATE)
    front = frontend()
    with pytest.raises(AudioError, match=r"i-vectors of shape \[1, 4\]: the model reads 5 values"):
        front(PreparedWave.of(99, wave.features, wave.ivectors[:4]))
    with pytest.raises(AudioError, match=r"features of shape \[31, 4\]: the model reads 6 a frame"):
        front(PreparedWave.of(99, wave.features[:, :4], wave.ivectors))
    with pytest.raises(AudioError, match="none are given: name an archive of them"):
        front(PreparedWave.of(99, wave.features))
    with pytest.raises(AudioError, match="only Kaldi models read"):
        check_waves([wave])


def test_ivectors_that_are_not_there(folder):
    utterances = read_manifest(folder)
    put(folder, "others", {"bob": INPUTS["ivector"]})
    with pytest.raises(ManifestError, match=r"others\.scp: no i-vectors of 'u1' nor 'ann': extract them"):
        list(with_ivectors(utterances, [folder / "others.scp"]))
    assert len(list(with_ivectors(utterances, [folder / "others.scp", folder]))) == 2
    (folder / "ivector_period").write_text("ten")
    with pytest.raises(ManifestError, match="ivector_period: is not a number of frames"):
        read_manifest(folder)


def test_features_have_no_sound(folder):
    (utterance, _) = read_manifest(folder)
    with pytest.raises(AudioError, match=r"feats\.scp: holds features and no sound.*\(listed in .*feats\.scp:1\)"):
        list(utterance.stream(RATE, 1.0))
    with pytest.raises(ManifestError, match="as features, which a NeMo manifest cannot hold"):
        write_manifest([utterance], folder / "out.jsonl")
    (folder / "feats.ark").write_bytes((folder / "feats.ark").read_bytes()[:200])
    with pytest.raises(AudioError, match=r"feats\.ark: byte .*\(listed in"):
        utterance.load(RATE)


def test_the_same_features_are_known_again(folder):
    first, second = read_manifest(folder)
    check_disjoint([first], [second])
    check_not_among(fingerprints([first]), [second], "calibration speech")
    with pytest.raises(ManifestError):
        check_disjoint([first], [first])
    with pytest.raises(ManifestError, match="among the calibration speech"):
        check_not_among(fingerprints([first]), [second, first], "calibration speech")


def test_the_beginning_keeps_its_share():
    wave = PreparedWave.of(310, INPUTS["feats"], INPUTS["ivector"], 7)
    begin = wave[:101]
    assert len(begin) == 101 and len(begin.features) == 11 and begin.ivector_period == 7
    np.testing.assert_array_equal(begin.features, INPUTS["feats"][:11])
    assert wave[5:].features is None and np.isnan(wave[5:]).all()  # nothing that is heard
