"""What the recipes for Whisper make of its two parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_hf
import tiny_whisper
import torch

from quantasr.engines import EngineOptions, load_engine
from quantasr.export import export_quantized, save_graph
from quantasr.numerics.quantizers import Phase
from quantasr.quantize import Prepared, calibrate, convert, prepare
from quantasr.recipes import builtin_recipe
from quantasr.sources import load_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Wide enough for blocks of 32, and for weights that are stored in 16 bits.
    sizes = {"d_model": 64, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "init_std": 0.1}
    return tiny_whisper.save("english", tmp_path_factory.mktemp("english"), **sizes)


def _converted(folder: Path, variant: str) -> Prepared:
    prepared = prepare(load_model(folder), builtin_recipe("whisper", variant))
    calibrate(prepared, tiny_hf.speech(0.9))
    convert(prepared)
    return prepared


def _modes(prepared: Prepared) -> dict[str, str]:
    return {row.path: row.qconfig.mode for row in prepared.plan}


def _graph(prepared: Prepared, part: str, path: Path) -> onnx.GraphProto:
    source = prepared.model.parts()[part]  # type: ignore[attr-defined]
    save_graph(export_quantized(prepared, source), path)
    return onnx.load(path).graph


@pytest.mark.parametrize(("variant", "decoder"), [("default", "dynamic"), ("fast", "static"), ("w4", "weight_only")])
def test_each_part_as_its_recipe_says(variant: str, decoder: str, folder: Path, tmp_path: Path) -> None:
    prepared = _converted(folder, variant)
    modes = _modes(prepared)
    assert {mode for path, mode in modes.items() if path.startswith("model.encoder.layers")} == {"static"}
    assert modes["model.encoder.conv1"] == "static"
    cross = "model.decoder.layers.1.encoder_attn"
    assert modes[f"{cross}.k_proj"] == modes[f"{cross}.v_proj"] == "static"  # they run with the encoder
    for path in (f"{cross}.q_proj", f"{cross}.out_proj", "model.decoder.layers.0.fc1", "proj_out"):
        assert modes[path] == decoder, path
    assert modes["model.decoder.embed_tokens"] == "float"
    # The products of the encoder's attention alone: the decoder's are outside of any module.
    assert prepared.products is not None
    encoder = [f"model.encoder.layers.{i}.self_attn.MatMul{turn}" for i in range(2) for turn in ("", "_1")]
    assert sorted(prepared.products.quantizers) == encoder
    for quantizers in prepared.products.quantizers.values():
        # The second stands where a layer has its weights: with 7 bits no CPU's products saturate.
        assert [quantizer.qtype.bits for quantizer in quantizers] == [8, 7]
    probabilities = prepared.products.quantizers[encoder[1]][0]
    assert not probabilities.qtype.symmetric and int(probabilities.zero_point) == 0

    graph = _graph(prepared, "decoder", tmp_path / "decoder.onnx")
    stored = {tensor.name: tensor.data_type for tensor in graph.initializer}
    (look_up,) = (n for n in graph.node if n.op_type == "Gather" and "embed_tokens.weight" in n.input[0])
    assert stored[look_up.input[0]] == onnx.TensorProto.FLOAT16  # the head is another copy, in integers
    wanted = onnx.TensorProto.INT4 if decoder == "weight_only" else onnx.TensorProto.INT8
    (head,) = (kind for name, kind in stored.items() if "proj_out" in name and name.endswith("_integers"))
    assert head == wanted


def test_the_quantized_graphs_do_what_the_simulation_does(folder: Path, tmp_path: Path) -> None:
    prepared = _converted(folder, "fast")
    model = prepared.model
    engines = {}
    for part in ("encoder", "decoder"):
        _graph(prepared, part, tmp_path / f"{part}.onnx")
        options = EngineOptions(compute="fp32", threads=1)
        engines[part] = load_engine("onnxruntime", tmp_path / f"{part}.onnx", options).run
    waves = tiny_hf.speech(0.9)
    paths = model.transcriber().paths(waves)  # type: ignore[attr-defined]
    original = model.logprobs(waves, paths)[0]
    with prepared.active(Phase.SIMULATE), torch.no_grad():
        simulated = model.logprobs(waves, paths)[0]
    found = model.transcriber(engines).logprobs(waves, paths)[0]  # type: ignore[call-arg]
    rounding = np.abs(simulated - original).mean()
    assert rounding > 1e-3
    # In steps with caches or at once, in PyTorch or on an engine: but for values that fall between two integers.
    assert np.abs(found - simulated).mean() < 0.3 * rounding
