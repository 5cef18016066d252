"""A run's table: there and back, from TOML, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tomli_w

from quantasr.errors import TrainingError
from quantasr.quantize.training import QatOptions
from quantasr.training.augment import AugmentOptions
from quantasr.training.config import LossOptions, TrainingConfig
from quantasr.training.data_options import DataOptions
from quantasr.training.lf_mmi.graphs import GraphChoice
from quantasr.training.lf_mmi.loss import LfMmiOptions
from quantasr.training.options import TrainOptions
from quantasr.training.spec_augment import SpecAugment

WHOLE = TrainingConfig(
    TrainOptions(steps=7, rate=1e-3, schedule="linear", freeze=("encoder.layers.0",), betas=(0.8, 0.9)),
    DataOptions(hours=1.5, augment=AugmentOptions(speeds=(0.9, 1.1), spec_augment=SpecAugment(time_masks=1))),
    LossOptions("lf_mmi", graphs=GraphChoice(lexicon="lexicon.txt", tolerance=(1, 2)), lf_mmi=LfMmiOptions(leak=0.2)),
    QatOptions("observed", 5),
    time_masking=0.05,
)


@pytest.mark.parametrize("config", [TrainingConfig(), WHOLE])
def test_there_and_back_through_toml(config, tmp_path):
    path = tmp_path / "run.toml"
    table = config.to_dict()
    table["qat"] = {name: value for name, value in table["qat"].items() if value is not None}
    path.write_text(tomli_w.dumps(table))
    assert TrainingConfig.load(path) == config


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"trian": {}}, "unknown option 'trian'"),
        ({"train": {"rat": 1}}, "train: unknown option 'rat'"),
        ({"data": {"augment": {"speed": []}}}, "unknown option 'speed'"),
        ({"loss": {"kind": "ctcc"}}, "loss 'ctcc'"),
        ({"loss": {"lf_mmi": {"leak": 2}}}, "leak"),
        ({"qat": {"scales": "guessed"}}, "scales = 'guessed'"),
        ({"train": 3}, r"train = 3: write a table"),
        ({"time_masking": 1.5}, "time_masking = 1.5"),
    ],
)
def test_what_does_not_exist_is_named(table, words):
    with pytest.raises(TrainingError, match=words) as caught:
        TrainingConfig.from_dict(table, "run.toml")
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(TrainingError, match="cannot read"):
        TrainingConfig.load(tmp_path / "missing.toml")
    (tmp_path / "broken.toml").write_text("train = [")
    with pytest.raises(TrainingError, match="not TOML"):
        TrainingConfig.load(tmp_path / "broken.toml")
    assert replace(WHOLE, time_masking=None) != WHOLE
