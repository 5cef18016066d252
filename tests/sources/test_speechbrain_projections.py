"""Attention whose projections are layers, against PyTorch's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from quantasr.quantize.layers import find_layers
from quantasr.sources.speechbrain.projections import project_attention


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("masks", ["none", "bool", "float", "heads"])
def test_it_gives_what_pytorch_gives(batch_first: bool, bias: bool, need_weights: bool, masks: str) -> None:
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(16, 4, bias=bias, batch_first=batch_first).eval()
    if bias:
        nn.init.normal_(plain.in_proj_bias)
    query, memory = torch.randn(3, 5, 16), torch.randn(3, 7, 16)
    if not batch_first:
        query, memory = query.transpose(0, 1), memory.transpose(0, 1)
    padding = torch.arange(7)[None] >= torch.tensor([7, 4, 6])[:, None]
    causal = torch.triu(torch.ones(5, 7, dtype=torch.bool), 1)
    options = {
        "none": {},
        "bool": {"key_padding_mask": padding, "attn_mask": causal},
        "float": {"attn_mask": torch.randn(5, 7)},
        "heads": {"attn_mask": torch.randn(12, 5, 7)},
    }[masks]
    expected, weights = plain(query, memory, memory, need_weights=need_weights, **options)
    changed = nn.ModuleDict({"att": copy.deepcopy(plain)})
    project_attention(changed)
    found, ours = changed["att"](query, memory, memory, need_weights=need_weights, **options)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert (ours is None) == (weights is None)
    if weights is not None:
        torch.testing.assert_close(ours, weights, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(changed["att"].in_proj_weight, plain.in_proj_weight)
    assert (changed["att"].in_proj_bias is None) == (not bias)


def test_its_projections_are_layers() -> None:
    module = nn.ModuleDict({"att": nn.MultiheadAttention(8, 2)})
    project_attention(module)
    assert list(find_layers(module)) == ["att.out_proj", "att.q_proj", "att.k_proj", "att.v_proj"]
    calls = []
    for path, (_, layer) in find_layers(module).items():
        layer.register_forward_hook(lambda *_, path=path: calls.append(path))
    module["att"](*[torch.randn(4, 8)] * 3)
    assert sorted(calls) == sorted(find_layers(module))
    project_attention(module)  # once is enough
    assert len(find_layers(module)) == 4


def test_others_stay_as_they_are() -> None:
    module = nn.ModuleDict(
        {"kdim": nn.MultiheadAttention(8, 2, kdim=4), "bias": nn.MultiheadAttention(8, 2, add_bias_kv=True)}
    )
    project_attention(module)
    assert {type(part) for part in module.values()} == {nn.MultiheadAttention}


@pytest.mark.parametrize("masks", ["none", "padding", "causal", "float"])
def test_relative_attention_is_speechbrains(masks: str) -> None:
    attention = pytest.importorskip("speechbrain.nnet.attention")
    torch.manual_seed(0)
    plain = attention.RelPosMHAXL(16, 4, vbias=masks == "none").eval()
    x, places = torch.randn(3, 6, 16), attention.RelPosEncXL(16)(torch.zeros(1, 6, 16))
    options = {
        "none": {},
        "padding": {"key_padding_mask": torch.arange(6)[None] >= torch.tensor([6, 4, 5])[:, None]},
        "causal": {"attn_mask": torch.triu(torch.ones(6, 6, dtype=torch.bool), 1)},
        "float": {"attn_mask": torch.randn(12, 6, 6)},
    }[masks]
    changed = nn.ModuleDict({"att": copy.deepcopy(plain)})
    project_attention(changed)
    assert list(find_layers(changed)) == ["att.out_proj", "att.linear_pos", "att.in_proj"]
    torch.testing.assert_close(changed["att"].in_proj_weight, plain.in_proj_weight)
    for theirs, ours in zip(plain(x, x, x, places, **options), changed["att"](x, x, x, places, **options), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    y = torch.randn(3, 6, 16)
    torch.testing.assert_close(changed["att"](x, y, y, places)[0], plain(x, y, y, places)[0])
