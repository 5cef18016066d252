#!/bin/sh
# The four examples on the small recognisers of digits in this checkout, in minutes. In the root of the checkout:
#
#     sh examples/qat/on_digits.sh DATA OUT
#
# DATA holds the Free Spoken Digit Dataset, as for train_digits.py; OUT is a new folder.
set -eu
data=$1 out=$2
here=examples/qat sample=src/quantasr/sample/digits models=tests/data

python "$here/write_digits.py" --data "$data" --out "$out/speech" --strings 600

# The same recipes and settings as for models of full size, but for what is said here: few steps, and a high rate.
train() {
    name=$1 model=$2 config=$3 recipe=$4
    shift 4
    quantasr qat "$model" "$out/$name" --config "$here/$config" --recipe "$here/$recipe" \
        --calibration "$sample/calibration.jsonl" --train "$out/speech/train.jsonl" \
        --validation "$out/speech/validation.jsonl" --test "$sample/evaluation.jsonl" \
        --epochs 1 --batch 16 --set train.warm_up=3 --set train.validate_every=0 "$@"
    quantasr evaluate "$model" "$out/$name" --manifest "$sample/evaluation.jsonl" --trust
}

train huggingface "$sample" wav2vec2_librispeech.toml wav2vec2_parts.toml --rate 1e-4
train nemo "$models/nemo/conformer.nemo" nemo_conformer.toml nemo_conformer_w4.toml --rate 3e-4 --precision fp32
train speechbrain "$models/speechbrain/wav2vec2_ctc" speechbrain_ctc.toml speechbrain_ctc_w4.toml --rate 3e-4 \
    --trust --set train.patience=0
train kaldi "$models/kaldi/digits" kaldi_tdnn.toml kaldi_tdnn_w4.toml --rate 1e-4
