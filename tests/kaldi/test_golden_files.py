"""Networks that Kaldi wrote are written back with the same bytes."""

import json
from pathlib import Path

import pytest

from quantasr.kaldi.nnet3.model import read_model, write_model

GOLDEN = Path(__file__).parents[1] / "data" / "kaldi" / "golden"
INDEX = json.loads((GOLDEN / "index.json").read_text())


def test_every_network_is_listed():
    assert sorted(case["network"] for case in INDEX.values()) == sorted(path.name for path in GOLDEN.glob("*.raw"))
    assert len(INDEX) >= 60


@pytest.mark.parametrize("name", INDEX)
def test_same_bytes(name, tmp_path):
    path = GOLDEN / INDEX[name]["network"]
    model = read_model(path)
    write_model(model, tmp_path / "again.raw")
    assert (tmp_path / "again.raw").read_bytes() == path.read_bytes()
