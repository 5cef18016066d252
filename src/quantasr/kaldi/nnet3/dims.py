"""How many numbers each kind of component takes and gives for a frame, and whether its arrays fit together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np

Fields: TypeAlias = Mapping[str, Any]
Dims: TypeAlias = tuple[int, int]


def dims_of(kind: str, fields: Fields) -> Dims:
    """(input, output) of a component; raises ValueError when sizes do not fit together."""
    dims = _TABLE[kind](fields)
    if min(dims) <= 0 or max(dims) >= 1 << 31:
        raise ValueError(f"{dims[0]} numbers in and {dims[1]} out cannot be")
    return dims


def _fit(what: str, found: int, wanted: int) -> None:
    if found != wanted:
        raise ValueError(f"{what} are {found}, not {wanted}")


def _whole(what: str, number: int, parts: int) -> int:
    if parts <= 0 or number % parts:
        raise ValueError(f"{number} {what} cannot be split into {parts} parts")
    return number // parts


def _same(fields: Fields) -> Dims:
    _whole("numbers", fields["Dim"], fields.get("BlockDim", 1) or 1)
    return fields["Dim"], fields["Dim"]


def _in_out(fields: Fields) -> Dims:
    return fields["InputDim"], fields["OutputDim"]


def _multiple(fields: Fields) -> Dims:
    _whole("numbers", fields["InputDim"], fields["OutputDim"])
    return _in_out(fields)


def _length(field: str) -> Callable[[Fields], Dims]:
    return lambda fields: (len(fields[field]), len(fields[field]))


def _normalize(fields: Fields) -> Dims:
    dim = fields.get("InputDim", fields.get("Dim", 0))
    blocks = _whole("numbers", dim, fields.get("BlockDim", dim))
    return dim, dim + (blocks if fields.get("AddLogStddev") else 0)


def _batch_norm(fields: Fields) -> Dims:
    _whole("numbers", fields["Dim"], fields["BlockDim"])
    for name in ("StatsMean", "StatsVar"):
        if len(fields[name]) or fields["Count"]:
            _fit(f"the numbers in <{name}>", len(fields[name]), fields["BlockDim"])
    return fields["Dim"], fields["Dim"]


def _matrix(fields: Fields, *, bias_may_lack: bool = False) -> Dims:
    outputs, inputs = (fields["LinearParams"] if "LinearParams" in fields else fields["Params"]).shape
    if "BiasParams" in fields and not (bias_may_lack and not len(fields["BiasParams"])):
        _fit("the numbers in <BiasParams>", len(fields["BiasParams"]), outputs)
    return inputs, outputs


def _tdnn(fields: Fields) -> Dims:
    inputs, outputs = _matrix(fields, bias_may_lack=True)
    if len(set(fields["TimeOffsets"].tolist())) < len(fields["TimeOffsets"]):
        raise ValueError("an offset stands twice in <TimeOffsets>")
    return _whole("columns in <LinearParams>", inputs, len(fields["TimeOffsets"])), outputs


def _repeated(fields: Fields) -> Dims:
    inputs, outputs = _matrix(fields)
    return inputs * fields["NumRepeats"], outputs * fields["NumRepeats"]


def _blocks(fields: Fields) -> Dims:
    inputs, outputs = _matrix(fields)
    _whole("rows in <LinearParams>", outputs, fields["NumBlocks"])
    return inputs * fields["NumBlocks"], outputs


def _offset(fields: Fields) -> Dims:
    dim = fields.get("Dim", len(fields["Offsets"]))
    _whole("numbers", dim, len(fields["Offsets"]))
    return dim, dim


def _scale_and_offset(fields: Fields) -> Dims:
    _fit("the numbers in <Scales>", len(fields["Scales"]), len(fields["Offsets"]))
    return _offset(fields)


def _time_height(fields: Fields) -> Dims:
    columns, rows = _matrix(fields)
    _fit("the rows of <LinearParams>", rows, fields["NumFiltersOut"])
    _fit("the columns of <LinearParams>", columns, fields["NumFiltersIn"] * len(fields["Offsets"]))
    if min(fields[name] for name in ("HeightIn", "HeightOut", "HeightSubsampleOut")) <= 0:
        raise ValueError("a height is not positive")
    if fields["Offsets"].shape[1:] != (2,) or not len(fields["Offsets"]):
        raise ValueError("<Offsets> are no pairs")
    times = set(fields["Offsets"][:, 0].tolist())
    if not set(fields["RequiredTimeOffsets"].tolist()) <= times:
        raise ValueError("<RequiredTimeOffsets> are not among <Offsets>")
    return fields["NumFiltersIn"] * fields["HeightIn"], fields["NumFiltersOut"] * fields["HeightOut"]


def _image(fields: Fields, axes: str, window: str, step: str) -> Dims:
    """The places of a window in an image; of a convolution, times its filters."""
    size, places = 1, 1
    for axis in "XYZ":
        inputs = fields[f"Input{axis}Dim"]
        if inputs <= 0:
            raise ValueError(f"<Input{axis}Dim> is {inputs}")
        size *= inputs
        if axis in axes:
            width, stride = fields[window.format(axis)], fields[step.format(axis)]
            if not 0 < width <= inputs or stride <= 0:
                raise ValueError(f"a window of {width} in steps of {stride} does not fit into {inputs}")
            places *= 1 + (inputs - width) // stride
    return size, places


def _convolution(fields: Fields) -> Dims:
    inputs, places = _image(fields, "XY", "Filt{}Dim", "Filt{}Step")
    filters, width = fields["FilterParams"].shape
    _fit("the columns of <FilterParams>", width, fields["FiltXDim"] * fields["FiltYDim"] * fields["InputZDim"])
    _fit("the numbers in <BiasParams>", len(fields["BiasParams"]), filters)
    return inputs, places * filters


def _sum_group(fields: Fields) -> Dims:
    sizes = np.asarray(fields["Sizes"], np.int64)
    if len(sizes) and sizes.min() <= 0:
        raise ValueError(f"a size is {sizes.min()}")
    return int(sizes.sum()), len(sizes)


def _permute(fields: Fields) -> Dims:
    if sorted(fields["ColumnMap"].tolist()) != list(range(len(fields["ColumnMap"]))):
        raise ValueError("<ColumnMap> is no permutation")
    return len(fields["ColumnMap"]), len(fields["ColumnMap"])


def _extraction(fields: Fields) -> Dims:
    if min(fields["InputPeriod"], fields["OutputPeriod"]) <= 0 or fields["OutputPeriod"] % fields["InputPeriod"]:
        raise ValueError(f"periods of {fields['InputPeriod']} and {fields['OutputPeriod']} frames do not fit")
    return fields["InputDim"], 1 + fields["InputDim"] * (2 if fields["IncludeVarinance"] else 1)


def _pooling(fields: Fields) -> Dims:
    period, left, right = fields["InputPeriod"], fields["LeftContext"], fields["RightContext"]
    if period <= 0 or left < 0 or right < 0 or left + right == 0 or left % period or right % period:
        raise ValueError(f"contexts of {left} and {right} frames do not fit a period of {period}")
    if fields["NumLogCountFeatures"] < 0:
        raise ValueError(f"<NumLogCountFeatures> is {fields['NumLogCountFeatures']}")
    if fields["OutputStddevs"]:
        _whole("numbers besides the count", fields["InputDim"] - 1, 2)
    return fields["InputDim"], fields["InputDim"] + fields["NumLogCountFeatures"] - 1


def _lstm(fields: Fields) -> Dims:
    rows, cells = fields["Params"].shape
    _fit("the rows of <Params>", rows, 3)
    _fit("the columns of <ValueAvg>", fields["ValueAvg"].shape[1], cells)
    return cells * 5 + (3 if fields.get("UseDropout") else 0), cells * 2


def _gru(fields: Fields) -> Dims:
    cells, recurrent = fields["CellDim"], fields["RecurrentDim"]
    _fit("the rows of <w_h>", fields["w_h"].shape[0], cells)
    _fit("the columns of <w_h>", fields["w_h"].shape[1], recurrent)
    return 4 * cells if recurrent == cells else 3 * cells + 2 * recurrent, 2 * cells


def _output_gru(fields: Fields) -> Dims:
    _fit("the numbers in <w_h>", len(fields["w_h"]), fields["CellDim"])
    return 3 * fields["CellDim"], 2 * fields["CellDim"]


def _attention(fields: Fields) -> Dims:
    names = ("NumHeads", "KeyDim", "ValueDim", "TimeStride", "NumLeftInputs", "NumRightInputs")
    heads, keys, values, stride, left, right = (fields[name] for name in names)
    if min(heads, keys, values, stride) <= 0 or min(left, right) < 0:
        raise ValueError(f"{heads} heads of {keys} and {values} numbers over {left} and {right} frames cannot be")
    context = left + 1 + right
    return heads * (2 * keys + values + context), heads * (values + (context if fields["OutputContext"] else 0))


def _composite(fields: Fields) -> Dims:
    parts = fields["NumComponents"]
    if not parts:
        raise ValueError("there is no component in it")
    for before, after in pairwise(parts):
        if before._dims[1] != after._dims[0]:
            raise ValueError(
                f"'{after.name}' takes {after._dims[0]} numbers, what is before it gives {before._dims[1]}"
            )
    return parts[0]._dims[0], parts[-1]._dims[1]


_TABLE: dict[str, Callable[[Fields], Dims]] = {
    **dict.fromkeys(
        [
            "SigmoidComponent", "TanhComponent", "SoftmaxComponent", "LogSoftmaxComponent", "RectifiedLinearComponent",
            "NoOpComponent", "ClipGradientComponent", "BackpropTruncationComponent", "DropoutComponent",
            "GeneralDropoutComponent", "SpecAugmentTimeMaskComponent",
        ],
        _same,
    ),
    **dict.fromkeys(
        ["AffineComponent", "NaturalGradientAffineComponent", "LinearComponent", "FixedAffineComponent"], _matrix
    ),
    "NormalizeComponent": _normalize,
    "BatchNormComponent": _batch_norm,
    "FixedScaleComponent": _length("Scales"),
    "FixedBiasComponent": _length("Bias"),
    "PerElementScaleComponent": _length("Params"),
    "NaturalGradientPerElementScaleComponent": _length("Params"),
    "PerElementOffsetComponent": _offset,
    "ScaleAndOffsetComponent": _scale_and_offset,
    "RepeatedAffineComponent": _repeated,
    "NaturalGradientRepeatedAffineComponent": _repeated,
    "BlockAffineComponent": _blocks,
    "TdnnComponent": _tdnn,
    "TimeHeightConvolutionComponent": _time_height,
    "ConvolutionComponent": _convolution,
    "MaxpoolingComponent": lambda fields: _image(fields, "XYZ", "Pool{}Size", "Pool{}Step"),
    "PnormComponent": _multiple,
    "ElementwiseProductComponent": _multiple,
    "SumBlockComponent": _multiple,
    "DistributeComponent": _multiple,
    "SumGroupComponent": _sum_group,
    "PermuteComponent": _permute,
    "StatisticsExtractionComponent": _extraction,
    "StatisticsPoolingComponent": _pooling,
    "ConstantFunctionComponent": lambda fields: (fields["InputDim"], len(fields["Output"])),
    "ConstantComponent": _length("Output"),
    "DropoutMaskComponent": lambda fields: (fields["OutputDim"], fields["OutputDim"]),
    "LstmNonlinearityComponent": _lstm,
    "GruNonlinearityComponent": _gru,
    "OutputGruNonlinearityComponent": _output_gru,
    "RestrictedAttentionComponent": _attention,
    "CompositeComponent": _composite,
}  # fmt: skip
