"""Kaldi networks in training: batch norm, the cross-entropy branch, semi-orthogonality, and the way back to a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from quantasr import load_model, sample
from quantasr.errors import ModelLoadError
from quantasr.kaldi.nnet3 import read_model, write_model
from quantasr.sources.kaldi import KaldiModel
from quantasr.sources.kaldi.build import build_network
from quantasr.sources.kaldi.layers import BatchNorm, TimeHeight
from quantasr.sources.kaldi.model import BRANCH, XENT
from quantasr.sources.kaldi.save import save, updated
from quantasr.sources.kaldi.training import keep_zeros, semi_orthogonal
from quantasr.speech.manifest import read_manifest

GOLDEN = Path(__file__).parents[1] / "data" / "kaldi" / "golden"
DIGITS = GOLDEN.parent / "digits"
CASES = json.loads((GOLDEN / "index.json").read_text())
WAVES = [utterance.load(8000) for utterance in read_manifest(sample.evaluation())[20:23]]


@pytest.fixture
def digits() -> KaldiModel:
    model = load_model(DIGITS)
    assert isinstance(model, KaldiModel)
    return model


def golden(name: str):
    case, model = CASES[name], read_model(GOLDEN / CASES[name]["network"])
    contexts = case["left_context"], case["right_context"]
    return model, build_network(model.network, *contexts, subsampling=case["frame_subsampling_factor"])


def test_batch_norm_in_training_is_pytorchs() -> None:
    model, network = golden("batch_norm")
    (norm,) = (part for part in network.modules() if isinstance(part, BatchNorm))
    (component,) = (c for c in model.network.components.values() if c.kind == "BatchNormComponent")
    mean, var = (torch.tensor(component.fields[name]) for name in ("StatsMean", "StatsVar"))
    other = torch.nn.BatchNorm2d(len(mean), eps=norm.epsilon, affine=False)
    other.running_mean.copy_(mean)
    other.running_var.copy_(var)
    x = torch.randn(4, len(mean), 1, 25, generator=torch.Generator().manual_seed(1)) * 3 + 1
    assert torch.allclose(norm(x), norm.rms * other.eval()(x), atol=1e-5)
    before = norm.scale.clone()
    norm.train()
    assert torch.allclose(norm(x), norm.rms * other.train()(x), atol=1e-5)
    assert not torch.equal(norm.scale, before)
    found_mean, found_var = norm.statistics()
    frames = 4 * 25  # PyTorch's running variance is that of a sample, Kaldi's that of the frames there are
    wanted = 0.9 * var + 0.1 * x.transpose(0, 1).flatten(1).var(1) * (frames - 1) / frames
    assert torch.allclose(found_mean.float(), other.running_mean, atol=1e-5)
    assert torch.allclose(found_var.float(), wanted, rtol=1e-4)


def test_batch_norm_of_blocks_shares_their_statistics() -> None:
    _, network = golden("batch_norm_blocks")
    (norm,) = (part for part in network.modules() if isinstance(part, BatchNorm))
    assert norm.blocks > 1
    x = torch.randn(2, len(norm.scale), 1, 50, generator=torch.Generator().manual_seed(1)) + 2
    y = norm.train()(x)
    blocks = y.view(2, norm.blocks, -1, 50)
    assert blocks.mean((0, 1, 3)).abs().max() < 1e-5
    assert torch.allclose(blocks.square().mean((0, 1, 3)).sqrt(), torch.tensor(norm.rms), atol=1e-2)
    assert torch.equal(norm.scale.view(norm.blocks, -1)[0], norm.scale.view(norm.blocks, -1)[1])


def test_loaded_networks_are_in_evaluation_mode() -> None:
    _, network = golden("batch_norm")
    assert not any(part.training for part in network.modules())


def test_the_branch_gives_what_the_whole_network_gives(digits: KaldiModel) -> None:
    features, lengths = digits.inputs(WAVES)
    with torch.no_grad():
        scores, counts, nothing = digits.train_outputs(features, lengths)
        assert nothing is None
        assert digits.prepare_training()
        assert digits.prepare_training()  # once more changes nothing
        again, _, xent = digits.train_outputs(features, lengths)
    model = read_model(DIGITS / "final.mdl")
    whole = build_network(model.network, *digits.network.contexts, subsampling=3, output=XENT)
    with torch.no_grad():
        wanted = whole(features)
    assert torch.equal(scores, again)
    assert torch.equal(scores, digits.graph(features, lengths)[0])
    assert counts.tolist() == digits.frame_counts(lengths).tolist()
    assert xent is not None
    assert torch.allclose(xent, wanted, atol=1e-6)
    assert torch.allclose(xent.exp().sum(2), torch.ones(xent.shape[:2]), atol=1e-5)
    own = {name.split(".")[0] for name, _ in digits.module.get_submodule(BRANCH).named_parameters()}
    assert own and not own & {name.split(".")[0] for name, _ in whole.named_parameters() if "xent" not in name}
    with torch.no_grad():
        digits.module.get_submodule(BRANCH).get_submodule("output-xent.affine").weight.zero_()
    digits.finish_training()
    assert BRANCH not in digits.module._modules
    assert digits.train_outputs(features, lengths)[2] is None
    digits.prepare_training()  # what it has learnt is still there
    assert not digits.module.get_submodule(BRANCH).get_submodule("output-xent.affine").weight.any()


def test_gradients_reach_all_layers_but_the_fixed(digits: KaldiModel) -> None:
    digits.prepare_training()
    digits.module.train()
    scores, _, xent = digits.train_outputs(*digits.inputs(WAVES))
    (scores.square().sum() + xent.square().sum()).backward()
    without = {name for name, parameter in digits.module.named_parameters() if parameter.grad is None}
    assert without == {"lda.weight", "lda.bias"}


@pytest.mark.parametrize("shape", [(5, 20), (20, 5)])
@pytest.mark.parametrize("scale", [-1.0, 0.7])
def test_the_constraint_makes_rows_orthogonal(shape: tuple[int, int], scale: float) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    if scale > 0:  # Kaldi's step converges from near the scale only
        matrix = matrix / matrix.norm() * np.sqrt(5) * scale
    for _ in range(100):
        matrix = semi_orthogonal(matrix, scale)
    rows = matrix if shape[0] < shape[1] else matrix.T
    square = rows @ rows.T
    size = square.trace() / len(square) if scale < 0 else scale**2
    assert torch.allclose(square, size * torch.eye(5, dtype=torch.float64), atol=1e-6)


def test_a_step_of_the_constraint_is_the_papers() -> None:
    matrix = torch.tensor([[1.0, 0.1], [0.0, 1.0]], dtype=torch.float64)
    p = matrix @ matrix.T
    alpha = float((p @ p).trace() / p.trace())
    wanted = matrix - 1 / (2 * alpha) * (p - alpha * torch.eye(2)) @ matrix  # Povey et al. (2018), equation 3
    assert torch.allclose(semi_orthogonal(matrix, -1.0), wanted)


def test_constrained_weights_of_a_model_are_those_of_its_components(digits: KaldiModel) -> None:
    network = digits.network
    assert set(network.orthonormal.values()) == {-1.0}
    noisy = {path: network.get_submodule(path).weight for path in network.orthonormal}
    assert len(noisy) > 3
    with torch.no_grad():
        for weight in noisy.values():
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
    before = {path: weight.detach().clone() for path, weight in noisy.items()}
    for steps in (0, 1, 2, 3):
        digits.constrain(steps)
    assert all(torch.equal(noisy[path], before[path]) for path in noisy)
    digits.constrain(4)
    for path, weight in noisy.items():
        assert _unevenness(weight) < _unevenness(before[path])


def test_the_constraint_reaches_weights_behind_quantizers(digits: KaldiModel) -> None:
    layer = digits.network.get_submodule(next(iter(digits.network.orthonormal)))
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", torch.nn.Identity())
    original = layer.parametrizations.weight.original
    with torch.no_grad():
        original += 0.02 * torch.randn(original.shape, generator=torch.Generator().manual_seed(3))
    before = original.detach().clone()
    digits.constrain(4)
    assert _unevenness(layer.parametrizations.weight.original) < _unevenness(before)


def _unevenness(weight: torch.Tensor) -> float:
    matrix = weight.detach().flatten(1)
    values = torch.linalg.svdvals(matrix)
    return float(values.std() / values.mean())


def test_what_was_not_trained_is_saved_as_it_was(digits: KaldiModel, tmp_path: Path) -> None:
    digits.prepare_training()
    digits.finish_training()
    save(digits, tmp_path / "copy")
    names = {str(path.relative_to(DIGITS)) for path in DIGITS.rglob("*") if path.is_file()}
    assert {
        str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*") if path.is_file()
    } == names
    for name in names:
        assert (DIGITS / name).read_bytes() == (tmp_path / "copy" / name).read_bytes(), name


@pytest.mark.parametrize("name", CASES)
def test_weights_of_every_component_go_back(name: str, tmp_path: Path) -> None:
    model, network = golden(name)
    same = updated(model, [network])
    write_model(same, tmp_path / "same")
    assert (tmp_path / "same").read_bytes() == (GOLDEN / CASES[name]["network"]).read_bytes()
    noise = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad and name != "repeated_affine":  # whose blocks would differ
                parameter += 0.01 * torch.randn(parameter.shape, generator=noise)
    keep_zeros(network)
    assert name != "convolution" or any(isinstance(part, TimeHeight) for part in network.modules())
    case = CASES[name]
    left, right, k = case["left_context"], case["right_context"], case["frame_subsampling_factor"]
    again = build_network(updated(model, [network]).network, left, right, subsampling=k)
    x = torch.randn(1, left + 30 + right, sum(model.network.inputs.values()), generator=noise)
    with torch.no_grad():
        assert torch.allclose(again(x), network(x), atol=1e-6)


def test_what_was_trained_comes_back(digits: KaldiModel, tmp_path: Path) -> None:
    digits.prepare_training()
    digits.module.train()
    optimizer = torch.optim.SGD([p for p in digits.module.parameters() if p.requires_grad], lr=1e-4)
    features, lengths = digits.inputs(WAVES)
    for _ in range(2):
        scores, _, xent = digits.train_outputs(features, lengths)
        optimizer.zero_grad()
        (scores.square().mean() - xent.mean()).backward()
        optimizer.step()
    digits.module.eval()
    with torch.no_grad():
        trained, _, branch = digits.train_outputs(features, lengths)
    digits.finish_training()
    save(digits, tmp_path / "new")
    again = load_model(tmp_path / "new")
    again.prepare_training()
    with torch.no_grad():
        scores, _, xent = again.train_outputs(features, lengths)
        old = load_model(DIGITS).graph(features, lengths)[0]
    assert torch.allclose(scores, trained, atol=1e-5, rtol=1e-6)
    assert torch.allclose(xent, branch, atol=1e-5, rtol=1e-6)
    assert (old - trained).abs().max() > 1e-3
    texts = [t.text for t in again.transcriber().transcribe(WAVES)]
    assert texts == [t.text for t in digits.transcriber().transcribe(WAVES)]


def test_a_model_whose_file_is_gone_says_so(digits: KaldiModel, tmp_path: Path) -> None:
    digits.provenance["model"] = str(tmp_path / "nowhere")
    with pytest.raises(ModelLoadError, match="is there no more"):
        save(digits, tmp_path / "new")
