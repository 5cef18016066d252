"""Log-likelihoods as Kaldi's archives."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from quantasr.errors import AudioError, ManifestError
from quantasr.kaldi.archive import Archive
from quantasr.speech.loglikes import ArchiveOutput, write_loglikes
from quantasr.speech.manifest import Utterance


class Model:
    """Gives the first sample of each wave, in steps of a tenth, as often as it has hundreds of samples."""

    sample_rate = 8000

    def logprobs(self, waves):
        return [np.full((len(wave) // 100, 3), round(float(wave[0]) * 10), np.float64) for wave in waves]


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("a.ark", ArchiveOutput(Path("a.ark"))),
        ("ark:a", ArchiveOutput(Path("a"))),
        ("ark,t:a,b.txt", ArchiveOutput(Path("a,b.txt"), binary=False)),
        ("ark,scp:x.ark,x.scp", ArchiveOutput(Path("x.ark"), Path("x.scp"))),
        ("scp,ark,t:x.scp,x.ark", ArchiveOutput(Path("x.ark"), Path("x.scp"), binary=False)),
    ],
)
def test_kaldis_way_of_writing_places(text, wanted):
    assert ArchiveOutput.parse(text) == wanted


@pytest.mark.parametrize("text", ["scp:a.scp", "ark,scp:a", "ark,ark:a,b", "ark,t,b:a", "ark,scp:a,b,c"])
def test_places_that_are_none(text):
    with pytest.raises(ManifestError, match="write ark:FILE"):
        ArchiveOutput.parse(text)


@pytest.fixture
def utterances(tmp_path):
    for i in (1, 2):
        soundfile.write(tmp_path / f"{i}.wav", np.full(500 * i, i / 10), 8000)
    return [Utterance(f"u{i}", tmp_path / f"{i}.wav", None) for i in (1, 2)]


@pytest.mark.parametrize("kind", ["ark,t", "ark"])
def test_written(utterances, tmp_path, kind):
    out = ArchiveOutput.parse(f"{kind},scp:{tmp_path}/x.ark,{tmp_path}/x.scp")
    broken = Utterance("broken", tmp_path / "not there.wav", None)
    found = write_loglikes(Model(), [*utterances, broken], out)
    assert (found.utterances, found.frames, found.dim) == (2, 15, 3) and list(found.failures) == ["broken"]
    for place in (f"ark:{out.ark}", f"scp:{out.scp}"):
        archive = Archive(place)
        assert list(archive) == ["u1", "u2"] and archive["u2"].dtype == np.float32
        np.testing.assert_array_equal(archive["u1"], np.full((5, 3), 1))
        np.testing.assert_array_equal(archive["u2"], np.full((10, 3), 2))


def test_nothing_is_left_behind(utterances, tmp_path):
    out = ArchiveOutput(tmp_path / "x.ark")
    with pytest.raises(AudioError, match="none of 1 recordings"):
        write_loglikes(Model(), [Utterance("a", tmp_path / "not there.wav", None)], out)
    with pytest.raises(ManifestError, match="has a space"):
        write_loglikes(Model(), [utterances[0], Utterance("a b", utterances[1].audio, None)], out)
    assert not out.ark.exists()
