"""Networks of every component, descriptor and recipe layer, against what real Kaldi computes with them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from quantasr.errors import ModelLoadError
from quantasr.kaldi.nnet3.model import read_model
from quantasr.sample import evaluation
from quantasr.sources.kaldi import load
from quantasr.sources.kaldi.build import build_network
from quantasr.speech.manifest import read_manifest

GOLDEN = Path(__file__).parents[1] / "data" / "kaldi" / "golden"
DIGITS = GOLDEN.parent / "digits"
CASES = json.loads((GOLDEN / "index.json").read_text())
INPUTS = dict(np.load(GOLDEN / "inputs.npz"))
OUTPUTS = dict(np.load(GOLDEN / "outputs.npz"))


def padded(case, frames=None):
    """The features with their contexts, the i-vector beside each frame."""
    left, right = case["left_context"], case["right_context"]
    feats = INPUTS["feats"][:frames]
    x = np.concatenate([np.repeat(feats[:1], left, 0), feats, np.repeat(feats[-1:], right, 0)])
    if case["ivector"]:
        x = np.concatenate([x, np.repeat(INPUTS["ivector"][None], len(x), 0)], axis=1)
    return torch.from_numpy(x.astype(np.float32))[None]


def network(name):
    case = CASES[name]
    model = read_model(GOLDEN / case["network"])
    return build_network(
        model.network,
        case["left_context"],
        case["right_context"],
        subsampling=case["frame_subsampling_factor"],
        where=name,
    ).eval()


@pytest.mark.parametrize("name", CASES)
def test_as_kaldi(name):
    with torch.inference_mode():
        found = network(name)(padded(CASES[name]))[0].numpy()
    assert found.shape == OUTPUTS[name].shape
    np.testing.assert_allclose(found, OUTPUTS[name], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_as_kaldi_with_scales_distributed(name):
    net = network(name)
    net.distribute_scales()
    with torch.inference_mode():
        found = net(padded(CASES[name]))[0].numpy()
    np.testing.assert_allclose(found, OUTPUTS[name], atol=2e-5, rtol=2e-5)


def test_scales_of_sums_are_distributed():
    net = network("recipe_tdnnf")

    def additions():
        with torch.no_grad():
            traced = make_fx(net)(padded(CASES["recipe_tdnnf"]))
        return sum(node.target is torch.ops.aten.add.Tensor for node in traced.graph.nodes)

    before = additions()
    net.distribute_scales()
    assert additions() > before


@pytest.mark.parametrize("name", ["recipe_tdnnf", "recipe_cnn_tdnn"])
def test_batches_of_different_lengths_are_as_alone(name):
    case, net = CASES[name], network(name)
    long, short = padded(case), padded(case, 20)
    batch = torch.zeros(2, *long.shape[1:])
    batch[0], batch[1, : short.shape[1]] = long[0], short[0]
    with torch.inference_mode():
        found, alone = net(batch), net(short)[0]
    np.testing.assert_allclose(found[1, : len(alone)], alone, atol=1e-5)


@pytest.mark.parametrize("name", ["recipe_tdnn", "recipe_tdnnf", "recipe_cnn_tdnn"])
def test_chunks_are_as_the_whole(name):
    """Chunks of three output frames, each with the context of its own, as streaming would run it."""
    case, net = CASES[name], network(name)
    x = padded(case)
    step = case["frame_subsampling_factor"]
    around = case["left_context"] + case["right_context"]
    with torch.inference_mode():
        whole = net(x)[0]
        chunks = [net(x[:, at : at + around + 2 * step + 1])[0] for at in range(0, x.shape[1] - around, 3 * step)]
    np.testing.assert_allclose(torch.cat(chunks), whole, atol=1e-5)


def test_chunks_of_digits_are_as_the_whole():
    """Of a trained model, on recordings: the bar is 1e-3, and what there is, 4e-6, is rounding."""
    model = load(str(DIGITS))
    net, step = model.module.eval(), model.module.subsampling
    around = sum(net.contexts)
    worst = 0.0
    with torch.inference_mode():
        for utterance in read_manifest(evaluation(), limit=5):
            x = torch.from_numpy(model.frontend(utterance.load(model.sample_rate)))[None]
            whole = net(x)[0]
            for outputs in (1, 8):
                starts = range(0, x.shape[1] - around, outputs * step)
                chunks = [net(x[:, at : at + around + (outputs - 1) * step + 1])[0] for at in starts]
                worst = max(worst, float((torch.cat(chunks) - whole).abs().max()))
    assert worst < 1e-4


def test_contexts_that_are_too_short_are_named():
    model = read_model(GOLDEN / "recipe_tdnn.raw")
    with pytest.raises(ModelLoadError, match=r"frames before and .* more than the contexts that the model names"):
        build_network(model.network, 0, 0, where="final.mdl")


def test_unknown_output_is_named():
    model = read_model(GOLDEN / "recipe_tdnn.raw")
    with pytest.raises(ModelLoadError, match="no output-node 'nothing'; it has 'output'"):
        build_network(model.network, 9, 9, output="nothing", where="final.mdl")
