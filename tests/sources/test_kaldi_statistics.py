"""Statistics over windows of frames, by hand, and in graphs on both engines."""

import io

import numpy as np
import onnxruntime
import openvino
import pytest
import torch

from quantasr.errors import ModelLoadError
from quantasr.kaldi.nnet3.model import read_model_from
from quantasr.kaldi.stream import Reader
from quantasr.sources.kaldi.build import build_network
from quantasr.sources.kaldi.statistics import sliding_sum

FLOOR = 1e-4


def network(step, period, left, right, *, reads="Round(pool, {period})", subsampling=1, contexts=(0, 0)):
    """log(count), mean and deviation of one feature."""
    text = f"""<Nnet3>

input-node name=input dim=1
component-node name=extract component=extract input=input
component-node name=pool component=pool input=extract
output-node name=output input={reads.format(period=period)}

<NumComponents> 2
<ComponentName> extract <StatisticsExtractionComponent> <InputDim> 1 <InputPeriod> {step} <OutputPeriod> {period}
<IncludeVarinance> T </StatisticsExtractionComponent>
<ComponentName> pool <StatisticsPoolingComponent> <InputDim> 3 <InputPeriod> {period} <LeftContext> {left}
<RightContext> {right} <NumLogCountFeatures> 1 <OutputStddevs> T <VarianceFloor> {FLOOR} </StatisticsPoolingComponent>
</Nnet3> """
    model = read_model_from(Reader(text.encode(), "stats"))
    return build_network(model.network, *contexts, subsampling=subsampling, where="stats").eval()


def run(net, values):
    with torch.inference_mode():
        return net(torch.tensor(values, dtype=torch.float32)[None, :, None])[0].numpy()


def test_by_hand():
    """Blocks of two frames; a window is the block before, its own and the next, as far as they are there."""
    found = run(network(1, 2, 2, 2), [1, 3, 5, 7, 9])
    first = [np.log(4), 4, np.sqrt(5)]  # of 1 3 5 7
    second = [np.log(5), 5, np.sqrt(8)]  # of 1 3 5 7 9
    third = [np.log(3), 7, np.sqrt(8 / 3)]  # of 5 7 9
    np.testing.assert_allclose(found, [first, first, second, second, third], atol=1e-6)


def test_every_third_frame_is_read_and_answered():
    """Of frames at 0 3 6 9 12 those from 9 before; frame 13 belongs to no output and is not heard."""
    values = [1, 100, 100, 2, 100, 100, 3, 100, 100, 5, 100, 100, 7, 100]
    found = run(network(3, 3, 9, 0, subsampling=3), values)
    means = [1, 1.5, 2, 2.75, 4.25]
    np.testing.assert_allclose(found[:, 1], means, atol=1e-6)
    np.testing.assert_allclose(np.exp(found[:, 0]), [1, 2, 3, 4, 4], atol=1e-5)
    assert found[0, 2] == pytest.approx(np.sqrt(FLOOR))  # one value alone does not vary


def test_frames_of_the_context_count():
    """Frame -1 is there: it is the end of the block that begins at -2."""
    found = run(network(1, 2, 2, 0, contexts=(1, 0)), [8, 1, 3, 5])
    np.testing.assert_allclose(found[:, 1], [4, 4, 3], atol=1e-6)


def test_times_without_a_value_are_refused():
    with pytest.raises(ModelLoadError, match="'pool' is read at times that are no multiples of its period of 2"):
        run(network(1, 2, 2, 2, reads="pool"), [1, 2, 3])


@pytest.mark.parametrize("width", [1, 2, 3, 7, 8, 12])
def test_sliding_sum(width):
    x = torch.arange(20.0)[None] ** 2
    np.testing.assert_array_equal(sliding_sum(x, width), x.unfold(-1, width, 1).sum(-1))


@pytest.mark.parametrize(("step", "period", "left", "right", "k"), [(1, 2, 8, 10, 1), (3, 9, 99, 99, 3)])
def test_in_a_graph(step, period, left, right, k):
    net = network(step, period, left, right, subsampling=k)
    packed = io.BytesIO()
    torch.onnx.export(
        net,
        (torch.randn(2, 50, 1),),
        packed,
        dynamo=False,
        opset_version=20,
        input_names=["x"],
        dynamic_axes={"x": {0: "batch", 1: "time"}},
    )
    onnx = onnxruntime.InferenceSession(packed.getvalue(), providers=["CPUExecutionProvider"])
    core = openvino.Core()
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(io.BytesIO(packed.getvalue())), "CPU", exact)
    for frames in (1, 8, 50, 131):
        x = torch.randn(2, frames, 1, generator=torch.Generator().manual_seed(frames))
        with torch.inference_mode():
            wanted = net(x).numpy()
        np.testing.assert_allclose(onnx.run(None, {"x": x.numpy()})[0], wanted, atol=1e-4)
        np.testing.assert_allclose(compiled(x.numpy())[0], wanted, atol=1e-4)
