"""Makes the networks and outputs of this folder with Kaldi's own programs (nnet3-init, nnet3-copy, nnet3-info,
nnet3-compute, latgen-faster-mapped, lattice-* on PATH, and KALDI_STEPS, the folder egs/wsj/s5/steps): ``python make.py``."""
# ruff: noqa: E501 (Kaldi's config lines)

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import kaldiio
import numpy as np

HERE = Path(__file__).parent
FRAMES = 31


def around(component, dim=6):
    """A network of one component between affine layers."""
    return f"""
input-node name=input dim=6
component name=a type=NaturalGradientAffineComponent input-dim=6 output-dim=6 bias-stddev=0.5
component name=c {component}
component name=z type=NaturalGradientAffineComponent input-dim={dim} output-dim=4 bias-stddev=0.5
component-node name=a component=a input=input
component-node name=c component=c input=a
component-node name=z component=z input=c
output-node name=output input=z
"""


def through(descriptor, dim=6):
    """A network in which ``descriptor`` joins layers ``a`` and ``b`` (6 each) of the input."""
    return f"""
input-node name=input dim=6
component name=a type=AffineComponent input-dim=6 output-dim=6 bias-stddev=0.5 param-stddev=0.4
component name=b type=AffineComponent input-dim=6 output-dim=6 bias-stddev=0.5 param-stddev=0.4
component name=r type=RectifiedLinearComponent dim=6
component name=z type=AffineComponent input-dim={dim} output-dim=4 bias-stddev=0.5 param-stddev=0.4
component-node name=a component=a input=input
component-node name=r component=r input=a
component-node name=b component=b input=Offset(r, 1)
component-node name=z component=z input={descriptor}
output-node name=output input=z
"""


SIMPLE = {
    "affine": "type=AffineComponent input-dim=6 output-dim=6 bias-stddev=0.5",
    "linear": "type=LinearComponent input-dim=6 output-dim=6",
    "tdnn": "type=TdnnComponent input-dim=6 output-dim=6 time-offsets=-3,0,2 bias-stddev=0.5",
    "tdnn_no_bias": "type=TdnnComponent input-dim=6 output-dim=6 time-offsets=0,3 use-bias=false",
    "batch_norm": "type=BatchNormComponent dim=6 target-rms=0.7 epsilon=0.01",
    "batch_norm_blocks": "type=BatchNormComponent dim=6 block-dim=3",
    "relu": "type=RectifiedLinearComponent dim=6",
    "sigmoid": "type=SigmoidComponent dim=6",
    "tanh": "type=TanhComponent dim=6",
    "softmax": "type=SoftmaxComponent dim=6",
    "log_softmax": "type=LogSoftmaxComponent dim=6",
    "normalize": "type=NormalizeComponent dim=6 target-rms=0.5",
    "dropout": "type=DropoutComponent dim=6 dropout-proportion=0.4",
    "general_dropout": "type=GeneralDropoutComponent dim=6 dropout-proportion=0.4 continuous=true",
    "no_op": "type=NoOpComponent dim=6",
    "backprop_truncation": "type=BackpropTruncationComponent dim=6 clipping-threshold=30 zeroing-threshold=15"
    " zeroing-interval=20 recurrence-interval=1",
    "permute": "type=PermuteComponent column-map=5,0,3,2,1,4",
    "scale_and_offset": "type=ScaleAndOffsetComponent dim=6",
    "scale_and_offset_blocks": "type=ScaleAndOffsetComponent dim=6 block-dim=2",
    "per_element_scale": "type=PerElementScaleComponent dim=6 param-mean=1.0 param-stddev=0.5",
    "per_element_offset": "type=PerElementOffsetComponent dim=6 param-mean=0.3 param-stddev=0.5",
    "block_affine": "type=BlockAffineComponent input-dim=6 output-dim=6 num-blocks=2 bias-stddev=0.5",
    "repeated_affine": "type=RepeatedAffineComponent input-dim=6 output-dim=6 num-repeats=3 bias-stddev=0.5",
    "constant_function": "type=ConstantFunctionComponent input-dim=6 output-dim=6 output-stddev=0.7",
}
OTHER_DIMS = {
    "sum_group": ("type=SumGroupComponent sizes=1,3,2", 3),
    "sum_block": ("type=SumBlockComponent input-dim=6 output-dim=3 scale=0.5", 3),
    "elementwise_product": ("type=ElementwiseProductComponent input-dim=6 output-dim=3", 3),
    "pnorm": ("type=PnormComponent input-dim=6 output-dim=3", 3),
}
DESCRIPTORS = {
    "append": ("Append(Offset(a, -2), b, Offset(input, 3))", 18),
    "sum": ("Sum(a, Scale(0.66, b))", 6),
    "scale_of_append": ("Scale(-1.5, Append(a, b))", 12),
    "append_of_sum": ("Append(Sum(a, Offset(b, 2)), Offset(Offset(a, 1), -4))", 12),
    "const": ("Append(a, Const(0.7, 3))", 9),
    "sum_const": ("Sum(a, Const(-0.4, 6))", 6),
    "replace_index": ("Append(a, ReplaceIndex(b, t, 0))", 12),
    "round": ("Append(a, Round(b, 4))", 12),
    "switch": ("Switch(a, b, Offset(b, -1))", 6),
    "if_defined": ("Sum(a, IfDefined(Offset(b, -3)))", 6),
    "failover": ("Failover(Offset(a, -4), b)", 6),
    "round_offset": ("Append(Offset(Round(a, 3), 1), Round(Offset(b, 1), 3))", 12),
}
HAND = {
    "fixed": """
input-node name=input dim=6
component name=lda type=FixedAffineComponent matrix=lda.mat
component name=scale type=FixedScaleComponent scales=scales.vec
component name=bias type=FixedBiasComponent bias=bias.vec
component-node name=lda component=lda input=Append(Offset(input, -1), input, Offset(input, 1))
component-node name=scale component=scale input=lda
component-node name=bias component=bias input=scale
output-node name=output input=bias
""",
    "dim_range": """
input-node name=input dim=6
component name=a type=AffineComponent input-dim=6 output-dim=8 bias-stddev=0.5
component name=s type=SigmoidComponent dim=3
component-node name=a component=a input=input
dim-range-node name=first input-node=a dim-offset=1 dim=3
dim-range-node name=last input-node=a dim-offset=5 dim=3
component-node name=s component=s input=last
output-node name=output input=Append(Sum(first, s), Offset(first, -2))
""",
    "convolution": around(
        "type=TimeHeightConvolutionComponent num-filters-in=2 num-filters-out=3 height-in=3 height-out=2"
        " height-offsets=-1,0,1 time-offsets=-1,0,2 required-time-offsets=0 height-subsample-out=2",
        dim=6,
    ),
    "convolution_padded": around(
        "type=TimeHeightConvolutionComponent num-filters-in=2 num-filters-out=2 height-in=3 height-out=3"
        " height-offsets=-1,0,1 time-offsets=-1,0,1",
        dim=6,
    ),
    "lstm_nonlinearity": """
input-node name=input dim=6
component name=w type=AffineComponent input-dim=6 output-dim=10 bias-stddev=0.5
component name=c type=LstmNonlinearityComponent cell-dim=2 use-dropout=false param-stddev=0.6
component name=z type=NaturalGradientAffineComponent input-dim=4 output-dim=4 bias-stddev=0.5
component-node name=w component=w input=input
component-node name=c component=c input=w
component-node name=z component=z input=c
output-node name=output input=z
""",
    "two_outputs": """
input-node name=input dim=6
component name=a type=AffineComponent input-dim=6 output-dim=5 bias-stddev=0.5
component name=l type=LogSoftmaxComponent dim=5
component-node name=a component=a input=input
component-node name=l component=l input=a
output-node name=output input=a objective=linear
output-node name=output-xent input=l objective=linear
""",
}
XCONFIG = {
    "recipe_tdnn": (3, True, """
input dim=5 name=ivector
input dim=6 name=input
fixed-affine-layer name=lda input=Append(-1,0,1,ReplaceIndex(ivector, t, 0)) affine-transform-file=lda.mat
relu-batchnorm-dropout-layer name=tdnn1 dim=8
relu-batchnorm-layer name=tdnn2 input=Append(-1,0,1) dim=8
relu-renorm-layer name=tdnn3 input=Append(-3,0,3) dim=8
output-layer name=output include-log-softmax=false dim=7
output-layer name=output-xent input=tdnn2 dim=7 learning-rate-factor=5.0
"""),
    "recipe_tdnnf": (3, True, """
input dim=5 name=ivector
input dim=6 name=input
idct-layer name=idct input=input dim=6 cepstral-lifter=22 affine-transform-file=idct.mat
linear-component name=ivector-linear dim=4 input=ReplaceIndex(ivector, t, 0)
batchnorm-component name=ivector-batchnorm target-rms=0.025
batchnorm-component name=idct-batchnorm input=idct
spec-augment-layer name=spec-augment freq-max-proportion=0.5 time-zeroed-proportion=0.2 time-mask-max-frames=20
relu-batchnorm-dropout-layer name=tdnn1 dim=8 input=Append(-1,0,1,ivector-batchnorm) dropout-per-dim=true dropout-per-dim-continuous=true
tdnnf-layer name=tdnnf2 dim=8 bottleneck-dim=3 time-stride=1 bypass-scale=0.66 dropout-proportion=0.0
tdnnf-layer name=tdnnf3 dim=8 bottleneck-dim=3 time-stride=3 bypass-scale=0.66
tdnnf-layer name=tdnnf4 dim=8 bottleneck-dim=3 time-stride=0 bypass-scale=0.75
linear-component name=prefinal-l dim=5
prefinal-layer name=prefinal-chain input=prefinal-l small-dim=5 big-dim=8
output-layer name=output include-log-softmax=false dim=7
"""),
    "recipe_cnn_tdnn": (3, False, """
input dim=6 name=input
idct-layer name=idct input=input dim=6 cepstral-lifter=22 affine-transform-file=idct.mat
batchnorm-component name=idct-batchnorm input=idct
conv-relu-batchnorm-layer name=cnn1 height-in=6 height-out=6 time-offsets=-1,0,1 height-offsets=-1,0,1 num-filters-out=3
conv-relu-batchnorm-layer name=cnn2 height-in=6 height-out=3 height-subsample-out=2 time-offsets=-1,0,1 height-offsets=-1,0,1 num-filters-out=4
tdnnf-layer name=tdnnf3 dim=8 bottleneck-dim=3 time-stride=0 bypass-scale=0
tdnnf-layer name=tdnnf4 dim=8 bottleneck-dim=3 time-stride=3
output-layer name=output include-log-softmax=true dim=7
"""),
    "recipe_res_cnn": (1, False, """
input dim=6 name=input
conv-layer name=conv1 height-in=6 height-out=6 time-offsets=-1,0,1 height-offsets=-1,0,1 num-filters-out=2
res-block name=res1 num-filters=2 height=6 time-period=1 num-bottleneck-filters=2
res-block name=res2 num-filters=2 height=6 time-period=2 num-bottleneck-filters=2
output-layer name=output include-log-softmax=true dim=5
"""),
    "recipe_lstm": (1, False, """
input dim=6 name=input
lstm-layer name=lstm1 input=Append(-1,0,1) cell-dim=4 delay=-2
output-layer name=output dim=5
"""),
    "recipe_lstmp": (3, True, """
input dim=5 name=ivector
input dim=6 name=input
relu-batchnorm-layer name=tdnn1 input=Append(-1,0,1,ReplaceIndex(ivector, t, 0)) dim=8
lstmp-layer name=lstm1 cell-dim=6 recurrent-projection-dim=2 non-recurrent-projection-dim=2 delay=-3
relu-batchnorm-layer name=tdnn2 input=Append(-3,0,3) dim=8
lstmp-layer name=lstm2 cell-dim=6 recurrent-projection-dim=2 non-recurrent-projection-dim=3 delay=-3 dropout-proportion=0.0
output-layer name=output output-delay=2 include-log-softmax=false dim=5
"""),
    "recipe_fast_lstm": (1, False, """
input dim=6 name=input
fast-lstm-layer name=lstm1 cell-dim=4 delay=-1
fast-lstm-batchnorm-layer name=lstm2 cell-dim=4 delay=-2
output-layer name=output dim=5
"""),
    "recipe_fast_lstmp": (3, False, """
input dim=6 name=input
relu-batchnorm-layer name=tdnn1 input=Append(-2,-1,0,1,2) dim=8
fast-lstmp-layer name=lstm1 cell-dim=6 recurrent-projection-dim=2 non-recurrent-projection-dim=2 delay=-3 dropout-proportion=0.0
fast-lstmp-layer name=lstm2 cell-dim=6 recurrent-projection-dim=2 non-recurrent-projection-dim=2 delay=-3 decay-time=20
output-layer name=output include-log-softmax=false dim=5
"""),
    "recipe_blstmp": (3, False, """
input dim=6 name=input
fast-lstmp-layer name=f cell-dim=4 recurrent-projection-dim=2 non-recurrent-projection-dim=2 delay=-3
fast-lstmp-layer name=b input=input cell-dim=4 recurrent-projection-dim=2 non-recurrent-projection-dim=2 delay=3
output-layer name=output input=Append(f,b) include-log-softmax=false dim=5
"""),
    "recipe_stats": (1, False, """
input dim=6 name=input
relu-batchnorm-layer name=tdnn1 input=Append(-1,0,1) dim=6
stats-layer name=stats1 config=mean+stddev(-8:1:2:10)
relu-batchnorm-layer name=tdnn2 input=Append(tdnn1, stats1) dim=6
output-layer name=output dim=5
"""),
    "recipe_stats_counts": (3, False, """
input dim=6 name=input
relu-batchnorm-layer name=tdnn1 input=Append(-1,0,1) dim=6
stats-layer name=stats1 config=mean+count(-99:3:9:99)
relu-batchnorm-layer name=tdnn2 input=Append(tdnn1, stats1) dim=6
output-layer name=output include-log-softmax=false dim=5
"""),
}  # fmt: skip


def cases():
    """name -> (config or xconfig, frame_subsampling_factor, with i-vector, is an xconfig)."""
    for name, text in SIMPLE.items():
        yield name, around(text), 1, False, False
    for name, (text, dim) in OTHER_DIMS.items():
        yield name, around(text, dim), 1, False, False
    for name, (text, dim) in DESCRIPTORS.items():
        yield name, through(text, dim), 1, False, False
    for name in ("append", "round", "switch", "replace_index", "if_defined"):
        yield f"{name}_by_3", through(*DESCRIPTORS[name]), 3, False, False
    for name, text in HAND.items():
        yield name, text, 1, False, False
    for name, (factor, ivector, text) in XCONFIG.items():
        yield name, text, factor, ivector, True


def run(*command, cwd):
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        sys.exit(f"{command}\n{done.stderr}")
    return done.stdout


def vector(values):
    return "[ " + " ".join(f"{v:.4g}" for v in values) + " ]"


def filled(text, rng):
    """A network's text with what training would have left: statistics, and parameters that start as 0 or 1."""

    def stats(found):
        dim = int(found["dim"])
        mean, var = rng.normal(size=dim), rng.uniform(0.3, 2, dim)
        return f"{found[1]}<Count> 100 <StatsMean> {vector(mean)}\n<StatsVar> {vector(var)}\n"

    text = re.sub(
        r"(<BatchNormComponent>.*?<BlockDim> (?P<dim>\d+).*?)<Count> \S+ <StatsMean>\s*\[[^\]]*\]\s*<StatsVar>\s*\[[^\]]*\]\s*",
        stats, text, flags=re.S)  # fmt: skip

    def scales(found):
        dim = len(found[2].split())
        return f"<Scales> {vector(rng.uniform(0.5, 1.5, dim))}\n<Offsets> {vector(rng.normal(size=dim))}\n"

    return re.sub(r"(<Scales>)\s*\[([^\]]*)\]\s*<Offsets>\s*\[[^\]]*\]\s*", scales, text)


def make(name, text, factor, with_ivector, is_xconfig, inputs, work):
    rng = np.random.default_rng(sum(map(ord, name)))
    for file, rows, columns in (("lda.mat", *((23, 24) if is_xconfig else (5, 19))), ("idct.mat", 6, 7)):
        lines = (" ".join(f"{v:.4f}" for v in row) for row in rng.normal(size=(rows, columns)))
        (work / file).write_text("[ " + "\n".join(lines) + " ]\n")
    (work / "scales.vec").write_text(vector(rng.uniform(0.5, 2, 5)) + "\n")
    (work / "bias.vec").write_text(vector(rng.normal(size=5)) + "\n")
    if is_xconfig:
        (work / "x").write_text(text.lstrip())
        configs = work / "configs"
        run(sys.executable, f"{os.environ['KALDI_STEPS']}/nnet3/xconfig_to_configs.py", "--xconfig-file=x",
            f"--config-dir={configs}", cwd=work)  # fmt: skip
        text = (configs / "final.config").read_text().replace("param-stddev=0.0 bias-stddev=0.0", "bias-stddev=0.5")
        text = text.replace("param-stddev=0.0", "").replace("bias-stddev=0.0", "bias-stddev=0.3")
    (work / "config").write_text(text)
    run("nnet3-init", "--binary=false", f"--srand={len(name)}", "config", "net.txt", cwd=work)
    (work / "filled.txt").write_text(filled((work / "net.txt").read_text(), rng))
    run("nnet3-copy", "filled.txt", str(HERE / f"{name}.raw"), cwd=work)
    info = run("nnet3-info", str(HERE / f"{name}.raw"), cwd=work)
    kaldiio.save_ark(str(work / "feats.ark"), {"u": inputs["feats"]})
    options = ["--use-gpu=no", f"--frame-subsampling-factor={factor}", "--frames-per-chunk=9999"]
    if with_ivector:
        kaldiio.save_ark(str(work / "iv.ark"), {"u": inputs["ivector"]})
        options.append("--ivectors=ark:iv.ark")
    run("nnet3-compute", *options, str(HERE / f"{name}.raw"), "ark:feats.ark", "ark:out.ark", cwd=work)
    output = dict(kaldiio.load_ark(str(work / "out.ark")))["u"]
    if not np.abs(output).max() > 0.05 or output.std(0).max() < 1e-3:
        print("dull:", name, file=sys.stderr)
    left, right = (int(re.search(rf"{side}-context: (\d+)", info)[1]) for side in ("left", "right"))
    about = {"network": f"{name}.raw", "ivector": with_ivector, "frame_subsampling_factor": factor,
             "left_context": left, "right_context": right}  # fmt: skip
    return about, output


def make_lattice(work):
    """A lattice of noise over the graph of digits, and its best paths at weights and penalties of Kaldi's score.sh."""
    digits = HERE.parent / "digits"
    noise = np.random.default_rng(1).normal(scale=1.5, size=(24, 52)).astype(np.float32)
    kaldiio.save_ark(str(work / "loglikes.ark"), {"u": noise})
    np.save(HERE / "loglikes.npy", noise)
    run("latgen-faster-mapped", "--acoustic-scale=1.0", "--beam=12", "--lattice-beam=4", "--determinize-lattice=false",
        str(digits / "final.mdl"), str(digits / "graph" / "HCLG.fst"), "ark:loglikes.ark", f"ark,t:{HERE}/lattice.txt",
        cwd=work)  # fmt: skip
    rows = []
    for weight in (0.5, 0.7, 1.0, 1.7, 4.0):
        for penalty in (-2.0, 0.0, 0.5, 1.0, 3.0):
            run("lattice-scale", f"--inv-acoustic-scale={weight}", f"ark:{HERE}/lattice.txt", "ark:scaled", cwd=work)
            run("lattice-add-penalty", f"--word-ins-penalty={penalty}", "ark:scaled", "ark:penalized", cwd=work)
            run("lattice-best-path", "ark:penalized", "ark,t:words", "ark,t:alignment", cwd=work)
            words, alignment = (
                [int(part) for part in (work / file).read_text().split()[1:]] for file in ("words", "alignment")
            )
            rows.append({"lm_weight": weight, "penalty": penalty, "words": words, "alignment": alignment})
    (HERE / "best_paths.json").write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")


def make_risks(work):
    """That lattice determinized, and what minimum Bayes risk decoding says of it."""
    lattice = f"ark:{HERE}/determinized.txt"
    run("lattice-determinize-pruned", "--beam=4", f"ark:{HERE}/lattice.txt", f"ark,t:{HERE}/determinized.txt", cwd=work)
    rows = []
    for lm_scale, acoustic_scale in ((1, 1), (1, 0.5), (0.9, 1), (1, 0.1), (0.3, 0.3), (2, 1)):
        run("lattice-mbr-decode", "--one-best-times=true", f"--lm-scale={lm_scale}",
            f"--acoustic-scale={acoustic_scale}", lattice, "ark,t:words", "ark,t:risk", "ark,t:bins", "ark,t:times",
            cwd=work)  # fmt: skip
        words, risk, bins, times = (
            (work / name).read_text().split(None, 1)[1] for name in ("words", "risk", "bins", "times")
        )
        shares = [part.strip(" [\n").split() for part in bins.split("]")]
        words = [int(word) for word in words.split()]
        # between any two bins of words there is one of no word
        found = [dict(zip(map(int, shares[2 * i + 1][::2]), map(float, shares[2 * i + 1][1::2]), strict=True))[word]
                 for i, word in enumerate(words)]  # fmt: skip
        spans = [[float(part) for part in span.split()] for span in times.split(";")]
        rows.append({"lm_scale": lm_scale, "acoustic_scale": acoustic_scale, "words": words, "risk": float(risk),
                     "confidences": found, "times": spans})  # fmt: skip
    (HERE / "mbr.json").write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")


def main():
    with tempfile.TemporaryDirectory() as work:
        make_lattice(Path(work))
        make_risks(Path(work))
    rng = np.random.default_rng(5)
    inputs = {
        "feats": rng.normal(size=(FRAMES, 6)).astype(np.float32),
        "ivector": rng.normal(size=5).astype(np.float32),
    }
    index, outputs = {}, {}
    for name, *case in cases():
        with tempfile.TemporaryDirectory() as work:
            index[name], outputs[name] = make(name, *case, inputs, Path(work))
    np.savez_compressed(HERE / "inputs.npz", **inputs)
    np.savez_compressed(HERE / "outputs.npz", **outputs)
    lines = [f"{json.dumps(name)}: {json.dumps(about)}" for name, about in index.items()]
    (HERE / "index.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
