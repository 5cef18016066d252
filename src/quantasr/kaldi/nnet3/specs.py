"""Which fields each kind of nnet3 component has in a file (Kaldi's nnet3/nnet-*-component.cc, versions since 2015).

A field is Kaldi's token without its brackets. Files may leave out those with ``?``: only older or newer versions of
Kaldi write them, or only if they are not the default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, cast, get_args

Type: TypeAlias = Literal[
    "int", "ints", "pairs", "float", "double", "bool", "vector", "matrix", "2int", "2float", "flag", "components"
]
"""``2int``, ``2float``: two numbers behind a token; ``flag``: the token alone; ``components``: how many, then each."""


@dataclass(frozen=True)
class Field:
    """The type of a field, and whether every file has it."""

    type: Type
    optional: bool


_UPDATABLE = "LearningRateFactor?:float IsGradient?:bool MaxChange?:float L2Regularize?:float LearningRate?:float "
_AFFINE = _UPDATABLE + "LinearParams:matrix BiasParams:vector "
_STATISTICS = (
    "ValueAvg?:vector DerivAvg?:vector Count?:double OderivRms?:vector OderivCount?:double "
    "NumDimsSelfRepaired?:double NumDimsProcessed?:double "
)
_NONLINEAR = (
    "Dim:int BlockDim?:int " + _STATISTICS.replace("?", "", 3) + "SelfRepairLowerThreshold?:float "
    "SelfRepairUpperThreshold?:float SelfRepairScale?:float"
)
_IMAGE = "InputXDim:int InputYDim:int InputZDim:int "
_GRU = (
    "ValueAvg:vector DerivAvg:vector SelfRepairTotal:double Count:double SelfRepairThreshold:float "
    "SelfRepairScale:float Alpha:float "
)
_IN_OUT = "InputDim:int OutputDim:int "

_TABLE = {
    **dict.fromkeys(
        ["SigmoidComponent", "TanhComponent", "SoftmaxComponent", "LogSoftmaxComponent", "RectifiedLinearComponent"],
        _NONLINEAR,
    ),
    "NormalizeComponent": "Dim?:int InputDim?:int BlockDim?:int TargetRms?:float AddLogStddev?:bool " + _STATISTICS,
    "BatchNormComponent": "Dim:int BlockDim:int Epsilon:float TargetRms:float TestMode:bool Count:double "
    "StatsMean:vector StatsVar:vector",
    "NoOpComponent": "Dim:int BackpropScale?:float " + _STATISTICS,
    "AffineComponent": _AFFINE + "OrthonormalConstraint?:float",
    "NaturalGradientAffineComponent": _AFFINE
    + "RankIn:int RankOut:int OrthonormalConstraint?:float UpdatePeriod:int NumSamplesHistory:float Alpha:float "
    "MaxChangePerSample?:float UpdateCount?:double ActiveScalingCount?:double MaxChangeScaleStats?:double",
    "LinearComponent": _UPDATABLE + "Params:matrix OrthonormalConstraint?:float UseNaturalGradient:bool RankInOut:2int "
    "Alpha:float NumSamplesHistory:float UpdatePeriod:int",
    "FixedAffineComponent": "LinearParams:matrix BiasParams:vector",
    "FixedScaleComponent": "Scales:vector",
    "FixedBiasComponent": "Bias:vector",
    "RepeatedAffineComponent": _AFFINE + "NumRepeats:int",
    "NaturalGradientRepeatedAffineComponent": _AFFINE + "NumRepeats:int",
    "BlockAffineComponent": _AFFINE + "NumBlocks:int",
    "PerElementScaleComponent": _UPDATABLE + "Params:vector",
    "NaturalGradientPerElementScaleComponent": _UPDATABLE + "Params:vector Rank:int UpdatePeriod:int "
    "NumSamplesHistory:float Alpha:float MaxChangePerMinibatch?:float",
    "PerElementOffsetComponent": _UPDATABLE + "Offsets:vector Dim?:int UseNaturalGradient?:bool",
    "ScaleAndOffsetComponent": _UPDATABLE + "Dim:int Scales:vector Offsets:vector UseNaturalGradient:bool Rank:int",
    "TdnnComponent": _AFFINE + "TimeOffsets:ints OrthonormalConstraint:float UseNaturalGradient:bool "
    "NumSamplesHistory:float Alpha?:float AlphaInOut?:2float RankInOut:2int",
    "TimeHeightConvolutionComponent": _AFFINE
    + "NumFiltersIn:int NumFiltersOut:int HeightIn:int HeightOut:int HeightSubsampleOut:int Offsets:pairs "
    "RequiredTimeOffsets:ints MaxMemoryMb:float UseNaturalGradient:bool NumMinibatchesHistory:float AlphaInOut:2float "
    "RankInOut:2int",
    "ConvolutionComponent": _UPDATABLE + _IMAGE + "FiltXDim:int FiltYDim:int FiltXStep:int FiltYStep:int "
    "InputVectorization:int FilterParams:matrix BiasParams:vector",
    "MaxpoolingComponent": _IMAGE
    + "PoolXSize:int PoolYSize:int PoolZSize:int PoolXStep:int PoolYStep:int PoolZStep:int",
    "PnormComponent": _IN_OUT,
    "ElementwiseProductComponent": _IN_OUT,
    "DistributeComponent": _IN_OUT,
    "SumBlockComponent": _IN_OUT + "Scale:float",
    "SumGroupComponent": "Sizes:ints",
    "PermuteComponent": "ColumnMap:ints",
    "ClipGradientComponent": "Dim:int ClippingThreshold:float NormBasedClipping:bool "
    "SelfRepairClippedProportionThreshold?:float SelfRepairTarget?:float SelfRepairScale?:float "
    "NumElementsClipped:int NumElementsProcessed:int NumSelfRepaired?:int NumBackpropped?:int",
    "BackpropTruncationComponent": "Dim:int Scale?:float ClippingThreshold:float ZeroingThreshold:float "
    "ZeroingInterval:int RecurrenceInterval:int NumElementsClipped:double NumElementsZeroed:double "
    "NumElementsProcessed:double NumZeroingBoundaries:double",
    "StatisticsExtractionComponent": "InputDim:int InputPeriod:int OutputPeriod:int IncludeVarinance:bool",
    "StatisticsPoolingComponent": "InputDim:int InputPeriod:int LeftContext:int RightContext:int "
    "NumLogCountFeatures:int OutputStddevs:bool VarianceFloor:float",
    "ConstantFunctionComponent": _UPDATABLE + "InputDim:int Output:vector IsUpdatable:bool UseNaturalGradient:bool",
    "ConstantComponent": _UPDATABLE + "Output:vector IsUpdatable:bool UseNaturalGradient:bool",
    "DropoutComponent": "Dim:int DropoutProportion:float DropoutPerFrame?:bool TestMode?:bool",
    "DropoutMaskComponent": "OutputDim:int DropoutProportion:float TestMode?:bool Continuous?:flag",
    "GeneralDropoutComponent": "Dim:int BlockDim:int TimePeriod:int DropoutProportion:float "
    "SpecAugmentMaxProportion?:float SpecAugmentMaxRegions?:int TestMode?:flag Continuous?:flag",
    "SpecAugmentTimeMaskComponent": "Dim:int ZeroedProportion:float TimeMaskMaxFrames:int TestMode?:flag",
    "LstmNonlinearityComponent": _UPDATABLE + "Params:matrix ValueAvg:matrix DerivAvg:matrix SelfRepairConfig:vector "
    "SelfRepairProb:vector UseDropout?:bool Count:double",
    "GruNonlinearityComponent": _UPDATABLE
    + "CellDim:int RecurrentDim:int w_h:matrix RankInOut:2int UpdatePeriod:int "
    + _GRU,
    "OutputGruNonlinearityComponent": _UPDATABLE + "CellDim:int w_h:vector Rank:int UpdatePeriod:int " + _GRU,
    "RestrictedAttentionComponent": "NumHeads:int KeyDim:int ValueDim:int NumLeftInputs:int NumRightInputs:int "
    "TimeStride:int NumLeftInputsRequired:int NumRightInputsRequired:int OutputContext:bool KeyScale:float "
    "StatsCount:double EntropyStats:vector PosteriorStats:matrix",
    "CompositeComponent": _UPDATABLE + "MaxRowsProcess:int NumComponents:components",
}


def _parse(text: str) -> dict[str, Field]:
    fields = {}
    for word in text.split():
        name, _, kind = word.partition(":")
        assert kind in get_args(Type), word
        fields[name.rstrip("?")] = Field(cast("Type", kind), name.endswith("?"))
    return fields


SPECS: dict[str, dict[str, Field]] = {kind: _parse(text) for kind, text in _TABLE.items()}
"""Kind of component -> its fields."""

OPENING = {"NumFiltersIn": ("<Model>", "<ConvolutionModel>")}
"""Tokens without a value that stand before a field: a convolution's model is a part of its own in a file."""

CLOSING = {"RequiredTimeOffsets": "</ConvolutionModel>"}
"""The token that stands behind a field."""
