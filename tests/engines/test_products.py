"""Multiply-accumulates, counted by hand, and which kernel gets them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hand_graphs import node, save, weight

from quantasr.engines import ExecutedOp
from quantasr.engines.macs import Product, products, share_out
from quantasr.engines.onnxruntime import _original
from quantasr.errors import EngineError


def counted(path: Path, shape: tuple[int, ...]) -> dict[str, int]:
    return {name: product.macs for name, product in products(path, {"features": shape}).items()}


def test_convolutions(tmp_path: Path) -> None:
    nodes = [
        node("Conv", "features w1 b1", "/a/Conv", kernel_shape=[3]),
        node("Relu", "/a/Conv", "/a/Relu"),
        node("Conv", "/a/Relu w2", "/b/Conv", kernel_shape=[5], group=2, pads=[2, 2]),
        node("Conv", "/b/Conv w3", "logprobs", kernel_shape=[4], strides=[2], group=8),
    ]
    constants = {"w1": weight(4, 3, 3), "b1": weight(4), "w2": weight(8, 2, 5), "w3": weight(8, 1, 4)}
    path = save(tmp_path / "g.onnx", nodes, ["batch", 3, "time"], constants)
    # Batch 2, 3 channels, 20 steps. A kernel of 3 leaves 18 steps; padding keeps them; a stride of 2 leaves 8.
    assert counted(path, (2, 3, 20)) == {
        "/a/Conv": 2 * 4 * 18 * (3 * 3),
        "/b/Conv": 2 * 8 * 18 * (2 * 5),  # each of two groups sees 2 of the 4 channels
        "logprobs": 2 * 8 * 8 * (1 * 4),  # depthwise
    }


def test_matrix_products(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", "features w1", "/a/MatMul"),  # [2, 3, 7, 4] x [4, 9]
        node("Transpose", "/a/MatMul", "/a/Transpose", perm=[0, 1, 3, 2]),
        node("MatMul", "/a/MatMul /a/Transpose", "/b/MatMul"),  # [2, 3, 7, 9] x [2, 3, 9, 7]
        node("Einsum", "/a/MatMul w2", "/c/Einsum", equation="bhld,lrd->bhlr"),  # [2, 3, 7, 9] x [7, 5, 9]
        node("Reshape", "/c/Einsum shape", "/d/Reshape"),
        node("Gemm", "/d/Reshape w3 b3", "/d/Gemm", transB=1),  # [42, 5] x [11, 5]
        node("Reshape", "/b/MatMul shape3", "/e/Reshape"),
        node("ConvTranspose", "/e/Reshape w4", "/e/ConvTranspose", kernel_shape=[6], strides=[2]),
        node("ReduceSum", "/e/ConvTranspose", "/e/Sum", keepdims=0),
        node("Add", "/e/Sum /d/Gemm", "logprobs"),
    ]
    import numpy as np

    constants = {
        "w1": weight(4, 9),
        "w2": weight(7, 5, 9),
        "w3": weight(11, 5),
        "b3": weight(11),
        "w4": weight(7, 2, 6),
        "shape": np.array([42, 5]),
        "shape3": np.array([6, 7, 7]),
    }
    path = save(tmp_path / "g.onnx", nodes, [2, 3, "time", 4], constants, rank=2)
    found = counted(path, (2, 3, 7, 4))
    assert sorted(found.values()) == sorted(
        [
            (2 * 3 * 7) * 4 * 9,
            (2 * 3) * 7 * 9 * 7,
            2 * 3 * 7 * 9 * 5,  # every index of the sum once: b, h, l, d, r
            42 * 5 * 11,
            (6 * 7 * 7) * (2 * 6),  # every input value goes to 2 channels by 6 taps
        ]
    )
    assert found["/a/MatMul"] == 1512
    assert found["/b/MatMul"] == 2646


def test_recurrent_layers(tmp_path: Path) -> None:
    nodes = [
        node("LSTM", "features w r b", "/rnn/LSTM", hidden_size=5, direction="bidirectional"),  # [steps, 2, batch, 5]
        node("Transpose", "/rnn/LSTM", "/rnn/Transpose", perm=[2, 0, 1, 3]),
        node("Reshape", "/rnn/Transpose shape", "logprobs"),
    ]
    constants = {"w": weight(2, 20, 3), "r": weight(2, 20, 5), "b": weight(2, 40)}
    constants["shape"] = np.array([0, 0, 10])
    path = save(tmp_path / "g.onnx", nodes, ["time", "batch", 3], constants)
    found = products(path, {"features": (7, 2, 3)})
    (name,) = found
    assert name.startswith("/rnn/LSTM"), "the path of the layer, which OpenVINO drops"
    # Two directions of four gates, each of 5 rows, multiply 3 inputs and 5 states, for 7 steps of 2 recordings.
    assert found[name] == Product(7 * 2 * 2 * 4 * 5 * (3 + 5), found[name].readers, recurrent=True)


def test_recurrent_layers_go_to_their_kernels_in_order() -> None:
    found = {f"/rnn/LSTMSequence_{i}": Product(10 + i, recurrent=True) for i in (7, 3)}
    kernels = [
        ("/rnn/LSTM", ["/rnn/LSTM"]),
        ("LSTMSequence_9_abc_bac_x", []),
        ("/rnn/LSTM_1", ["/rnn/LSTM_1"]),
    ]
    one_each = share_out([(ExecutedOp(name, "k", "fp32", 0.0), names) for name, names in kernels], found)
    assert [op.covers for op in one_each] == [{"/rnn/LSTMSequence_7": 17}, {}, {"/rnn/LSTMSequence_3": 13}]
    split = [(ExecutedOp(f"LSTMSequence_{i}", "k", "bf16", 0.0), []) for i in range(4)]  # a kernel a direction
    assert [bool(op.covers) for op in share_out(split, found)] == [True, False, True, False]
    assert [op.precision for op in share_out([], found)] == ["unknown", "unknown"]


def test_impossible_shapes_are_one_line(tmp_path: Path) -> None:
    path = save(tmp_path / "g.onnx", [node("MatMul", "features w", "logprobs")], ["b", "t", 4], {"w": weight(4, 9)})
    with pytest.raises(EngineError, match=r"g\.onnx: cannot count") as caught:
        products(path, {"features": (1, 7, 5)})
    assert "\n" not in str(caught.value)


def op(name: str, precision: str = "fp32") -> ExecutedOp:
    return ExecutedOp(name, "kind", precision, 0.1)


def test_each_product_goes_to_one_kernel() -> None:
    found = {
        "/a/Conv": Product(100),
        "/q/MatMul": Product(10, ("/q/Mul", "/q/Softmax")),
        "/q/MatMul_1": Product(20, ("/q/Add",)),
        "/h/MatMul": Product(5, ("/h/Add",)),
        "/lost/MatMul": Product(7, ("/lost/Add",)),
    }
    kernels = [
        (op("conv", "int8"), ["/a/Conv/WithoutBiases", "/a/Conv"]),  # named twice, counted once
        (op("conv again"), ["/a/Conv"]),
        (op("attention", "bf16"), ["/q/Softmax", "/q/Mul", "/q/MatMul_1"]),  # a fused kernel that has lost a name
        (op("head"), ["/h/Add"]),  # named for what comes after it
        (op("copy"), []),
    ]
    ops = share_out(kernels, found)
    assert [(o.name, o.precision, dict(o.covers)) for o in ops] == [
        ("conv", "int8", {"/a/Conv": 100}),
        ("conv again", "fp32", {}),
        ("attention", "bf16", {"/q/MatMul": 10, "/q/MatMul_1": 20}),
        ("head", "fp32", {"/h/MatMul": 5}),
        ("copy", "fp32", {}),
        ("/lost/MatMul", "unknown", {"/lost/MatMul": 7}),
    ]
    assert sum(o.macs for o in ops) == sum(product.macs for product in found.values())


@pytest.mark.parametrize(
    ("kernel", "exported"),
    [
        ("/att/MatMul", "/att/MatMul"),
        ("/att/MatMul_1", "/att/MatMul_1"),
        ("/att/MatMul/MatMulScaleFusion/", "/att/MatMul"),
        ("/att/MatMul_1/MatMulScaleFusion/", "/att/MatMul_1"),
        ("/att/MatMul_token_17", "/att/MatMul"),
        ("/c/Conv_output_0_nchwc", "/c/Conv"),
        ("fused /c/Conv with Relu", "/c/Conv"),
        ("/att/MatMulNBits", ""),
        ("/other/MatMul", ""),
    ],
)
def test_onnxruntimes_names(kernel: str, exported: str) -> None:
    assert _original(kernel, ["/att/MatMul", "/att/MatMul_1", "/c/Conv"]) == exported
