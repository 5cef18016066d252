"""Train a small Kaldi chain model of spoken English digit strings, on a CPU and without Kaldi.

DATA holds the Free Spoken Digit Dataset as ``audio/`` and ``all.jsonl``, one line a recording: ``audio_filepath``,
``text``, ``speaker``, ``take``. OUT becomes a folder as Kaldi's chain recipes leave it (``final.mdl``, ``tree``,
tables, ``conf/`` and ``graph/``), with a README; a checkpoint to resume from lies beside it as ``OUT.pt``. Speech,
strings and sets are those of ``train_digits.py`` (``digit_strings.py`` says how they are made), so the evaluation set
of the package's sample was not heard in training.

The network is in ``kaldi_tdnnf.py``, and as Kaldi's in ``kaldi_export.py``; its objective, LF-MMI from a flat start
(Hadian et al., 2018), is the package's; lexicon and configurations are in ``kaldi_digits/``. Vosk measures the result.

Example:

    python examples/train_kaldi_digits.py out/kaldi_digits --data ~/data/digits
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from digit_strings import (
    LONGEST,
    TAKES,
    Counts,
    Example,
    Recording,
    Wave,
    read_corpus,
    read_set,
    training_batches,
    wer,
    word_errors,
)
from digit_training import fit
from kaldi_export import to_network
from kaldi_tdnnf import SUBSAMPLING, Shape, Tdnnf
from torch import Tensor
from torch.nn.functional import pad

from quantasr.kaldi.chain import Normalization, PhoneLm, Pronunciations, make_denominator, normalization_of
from quantasr.kaldi.compile import make_graph, tree_of, write_tree
from quantasr.kaldi.compile import read_lexicon as kaldi_lexicon
from quantasr.kaldi.fst import Fst, SymbolTable
from quantasr.kaldi.nnet3 import AcousticModel, TransitionModel, write_model
from quantasr.kaldi.nnet3.transitions import HmmState, Topology
from quantasr.speech.frontend.kaldi_features import KaldiFeatures
from quantasr.training.lf_mmi import ChainGraphs, lf_mmi
from quantasr.training.lf_mmi.graph import denominator_of

PARTS = Path(__file__).with_name("kaldi_digits")
SAMPLE = Path(__file__).parents[1] / "src" / "quantasr" / "sample" / "digits"
LICENCE = """\
Everything in this folder is under Creative Commons Attribution-ShareAlike 4.0 International (CC BY-SA 4.0),
https://creativecommons.org/licenses/by-sa/4.0/legalcode; README.md names the recordings' authors and the changes made.
"""
SILENCE = "SIL"
XENT, L2 = 0.1, 5e-5  # weights of the cross-entropy output and of the squared scores
LEAK = 0.1  # of the denominator
PAUSES = 0.8  # how often the phone model expects silence between two words, and at the ends


def read_lexicon() -> dict[str, list[str]]:
    """Words and their phones, each marked with its position in the word as in Kaldi's recipes: T_B UW_E."""
    words = {}
    for line in (PARTS / "lexicon.txt").read_text().splitlines():
        word, *phones = line.split()
        marks = ["B", *"I" * (len(phones) - 2), "E"]
        words[word] = [f"{phone}_{mark}" for phone, mark in zip(phones, marks, strict=True)]
    return words


def phone_ids(lexicon: dict[str, list[str]]) -> dict[str, int]:
    """Phones and their numbers from 0; silence first, as Kaldi has it."""
    return {p: i for i, p in enumerate([SILENCE, *sorted({p for phones in lexicon.values() for p in phones})])}


def phone_lm(pronunciations: Pronunciations, words: Sequence[str]) -> Fst:
    """The bigrams of phones that are expected of the strings of the training set.

    All words and lengths are equally likely, and silence stands between two words, and at the ends, with probability
    ``PAUSES``.
    """
    pause, any_word = pronunciations.choices([])[0], {}
    for word in words:
        any_word |= {phones: 1 / len(words) for phones in pronunciations.choices([word])[1]}
    lm = PhoneLm(order=2)
    for length in range(1, LONGEST + 1):
        lm.add_choices([pause, *[any_word, pause] * length])
    return lm.fst()


def chain_graphs(ids: dict[str, int]) -> ChainGraphs:
    """The denominator, and what makes numerators; phones as in ``phones.txt``, from 1."""
    transitions = transition_model(len(ids))
    tree = tree_of(transitions)
    table = SymbolTable.of([("<eps>", 0), *((phone, i + 1) for phone, i in ids.items())], "phones")
    lexicon = kaldi_lexicon(PARTS / "lexicon.txt")
    pronunciations = Pronunciations(lexicon, table, silence=SILENCE, silence_probability=PAUSES)
    den = make_denominator(phone_lm(pronunciations, [entry.word for entry in lexicon]), tree, transitions)
    parts = denominator_of(den), Normalization(normalization_of(den)), pronunciations
    return ChainGraphs(tree, transitions, SUBSAMPLING, *parts)


@cache
def frontend() -> KaldiFeatures:
    """MFCC as ``mfcc.conf`` says."""
    return KaldiFeatures.from_conf(PARTS / "mfcc.conf")


def batch_of(waves: Sequence[Wave], context: int) -> tuple[Tensor, Tensor]:
    """Features [batch, dim, context + frames + context], edges repeated; and how many frames each recording gives."""
    feats = [torch.from_numpy(frontend()(wave)) for wave in waves]
    lengths = torch.tensor([math.ceil(len(f) / SUBSAMPLING) for f in feats])
    return pad(stack(feats), (context, context), mode="replicate"), lengths


def loss_of(model: Tdnnf, graphs: ChainGraphs, examples: Sequence[Example]) -> Tensor:
    """LF-MMI, cross-entropy against the numerator's posteriors, and the size of the scores, per frame."""
    model.constrain()
    feats, lengths = batch_of([e.wave for e in examples], model.shape.context)
    scores, log_posteriors = model(feats)
    numerators = [graphs.numerator(e.text) for e in examples]
    objective, targets = lf_mmi(scores, lengths, numerators, graphs.denominator, leak=LEAK)
    xent = (targets * log_posteriors).sum()
    inside = torch.arange(scores.shape[1]) < lengths[:, None]
    size = (scores.square().sum(2) * inside).sum()
    return (-objective.float().sum() - XENT * xent + L2 / 2 * size) / lengths.sum()


def stack(sequences: Sequence[Tensor]) -> Tensor:
    """Features [frames, dim] of different lengths as one tensor [batch, dim, frames]; the last frame is repeated."""
    longest = max(len(s) for s in sequences)
    return torch.stack([pad(s.T[None], (0, longest - len(s)), mode="replicate")[0] for s in sequences])


@dataclass(frozen=True)
class Loop:
    """All strings of words; its states are phones. Log-probabilities, without the 1/2 of leaving a phone.

    ``start`` [states], ``enter`` [from, to], ``end`` [states]; ``phone`` [states]: which one, from 0, so that its pdfs
    are 2 * phone and 2 * phone + 1.
    """

    start: Tensor
    enter: Tensor
    end: Tensor
    phone: Tensor


def word_loop(lexicon: dict[str, list[int]]) -> tuple[Loop, list[str]]:
    """A graph of all strings of words with optional silence, and the word that starts in each state, or nothing."""
    chains = [("", [0]), *lexicon.items()]
    phone = [p for _, chain in chains for p in chain]
    names = [name if i == 0 else "" for name, chain in chains for i in range(len(chain))]
    size, begins = len(phone), np.cumsum([0, *(len(chain) for _, chain in chains)])
    start, end = torch.full((2, size), -torch.inf)
    enter = torch.full((size, size), -torch.inf)
    for k, (_, chain) in enumerate(chains):
        first, last = begins[k], begins[k] + len(chain) - 1
        start[first], end[last] = math.log(0.5 / (len(lexicon) if k else 1)), 0
        for s in range(first, last):
            enter[s, s + 1] = 0
        for other in range(len(chains)):
            if k or other:
                enter[last, begins[other]] = math.log((0.5 if k else 1) / (len(lexicon) if other else 1))
    return Loop(start, enter, end, torch.tensor(phone)), names


@torch.no_grad()
def recognise(model: Tdnnf, graph: Loop, names: Sequence[str], waves: Sequence[Wave]) -> list[str]:
    """Best strings by the Viterbi algorithm."""
    model.eval()
    texts = []
    for wave in waves:
        scores = model(batch_of([wave], model.shape.context)[0])[0][0]
        first, further = scores[:, 2 * graph.phone], scores[:, 2 * graph.phone + 1]
        best, froms = graph.start + first[0], []
        for t in range(1, len(scores)):
            entered, origin = (best[:, None] + graph.enter).max(0)
            entered, stayed = entered + first[t], best + further[t]
            froms.append(torch.where(entered > stayed, origin, -1))
            best = torch.maximum(entered, stayed)
        state, words = int((best + graph.end).argmax()), []
        for origins in reversed(froms):
            if origins[state] >= 0:
                words.append(names[state])
                state = int(origins[state])
        words.append(names[state])
        texts.append(" ".join(w for w in reversed(words) if w))
    return texts


def build(corpus: Sequence[Recording], seed: int, phones: int) -> Tdnnf:
    """The untrained network; its first, fixed layer has the statistics of 128 training strings."""
    part = [r for r in corpus if r.take in TAKES["training"]]
    waves = [e.wave for examples in training_batches(part, 16, seed + 1, 72, 80) for e in examples]
    feats = torch.cat([torch.from_numpy(frontend()(wave)) for wave in waves])
    return Tdnnf(Shape(), 2 * phones, feats.mean(0), feats.std(0))


def transition_model(phones: int) -> TransitionModel:
    """Chain topology: one state a phone, with a pdf for its first frame and one for all others; phones from 1."""
    states = (HmmState(0, 1, ((0, 0.5), (1, 0.5))), HmmState())
    numbers = np.arange(1, phones + 1, dtype=np.int32)
    topology = Topology(numbers, np.array([-1] + [0] * phones, np.int32), (states,))
    tuples = np.stack([numbers, 0 * numbers, 2 * numbers - 2, 2 * numbers - 1], axis=1)
    return TransitionModel(topology, tuples, np.array([0] + [math.log(0.5)] * 2 * phones, np.float32))


def save(model: Tdnnf, ids: dict[str, int], out: Path) -> None:
    """Write what a Kaldi experiment leaves: model, tree, phones, configuration, and the graph of all digit strings."""
    transitions, context = transition_model(len(ids)), model.shape.context
    write_model(AcousticModel(transitions, to_network(model), context, context), out / "final.mdl")
    write_tree(tree_of(transitions), out / "tree", binary=False)
    (out / "phones.txt").write_text("<eps> 0\n" + "".join(f"{phone} {i + 1}\n" for phone, i in ids.items()))
    (out / "frame_subsampling_factor").write_text(f"{SUBSAMPLING}\n")
    (out / "conf").mkdir(exist_ok=True)
    (out / "conf" / "mfcc.conf").write_text((PARTS / "mfcc.conf").read_text())
    (out / "lexicon.txt").write_text((PARTS / "lexicon.txt").read_text())
    make_graph(out, out / "lexicon.txt", out / "graph", kind="words")


def vosk_folder(out: Path, folder: Path) -> Path:
    """The same model as Vosk wants to find it."""
    for name, where in (("final.mdl", "am"), ("mfcc.conf", "conf"), ("model.conf", "conf")):
        (folder / where).mkdir(parents=True, exist_ok=True)
        source = {"final.mdl": out, "mfcc.conf": out / "conf", "model.conf": PARTS}[name]
        shutil.copy(source / name, folder / where)
    shutil.copytree(out / "graph", folder / "graph")
    return folder


def evaluate(out: Path) -> dict[str, Counts]:
    """Word errors of Vosk with the saved model on the sample's sets as they ship."""
    counts = {}
    with tempfile.TemporaryDirectory() as folder:
        vosk_folder(out, Path(folder))
        for name in ("evaluation", "calibration"):
            manifest = SAMPLE / f"{name}.jsonl"
            command = [sys.executable, Path(__file__).with_name("vosk_transcribe.py"), folder, manifest]
            texts = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            counts[name] = word_errors([e.text for e in read_set(manifest)], texts)
    return counts


def write_readme(model: Tdnnf, out: Path, seconds: float, options: argparse.Namespace) -> None:
    """Write README.md (what the model is, its errors, how it was made) and LICENSE; measures the saved folder."""
    figures = []
    for name, errors in evaluate(out).items():
        print(f"{name}: WER {wer(errors):.2f} % {errors}", flush=True)
        cells = (f"{wer(errors):.2f} %", *(str(errors[kind]) for kind in ("sub", "del", "ins", "words")))
        figures.append(f"| {name} | " + " | ".join(cells) + " |")
    shape = model.shape
    fields = {
        "layers": len(shape.strides) + 1,
        "hidden": shape.hidden,
        "bottleneck": shape.bottleneck,
        "context": shape.context,
        "parameters": sum(p.numel() for p in model.parameters()),
        "phones": model.chain.output.out_channels // 2,
        "subsampling": SUBSAMPLING,
        "vosk": version("vosk"),
        "beam": 13,
        "figures": "\n".join(figures),
        "minutes": seconds / 60,
        "torch": torch.__version__,
    }
    template = (PARTS / "readme.md").read_text()
    (out / "README.md").write_text(template.format(**fields, **vars(options)))
    (out / "LICENSE").write_text(LICENCE)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write; an interrupted run is resumed from the file beside it")
    parser.add_argument("--data", type=Path, required=True, help="folder of the recordings, with all.jsonl")
    parser.add_argument("--steps", type=int, default=2400, help="optimiser steps (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=3e-3, help="highest learning rate (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="strings a step (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of strings and weights (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's threads (default: %(default)s)")
    options = parser.parse_args()
    for name in ("steps", "rate", "batch", "threads"):
        if not 0 < getattr(options, name) < math.inf:
            parser.error(f"--{name} {getattr(options, name)}: must be more than 0")
    options.bf16 = False
    return options


def main() -> None:
    """Train, save, and measure what was saved."""
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    corpus = read_corpus(options.data)
    spoken = read_lexicon()
    ids = phone_ids(spoken)
    lexicon = {word: [ids[p] for p in phones] for word, phones in spoken.items()}
    model = build(corpus, options.seed, len(ids))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    graph, names = word_loop(lexicon)
    checkpoint = options.out.with_name(f"{options.out.name}.pt")
    loss, recogniser = partial(loss_of, model, chain_graphs(ids)), partial(recognise, model, graph, names)
    seconds = fit(model, corpus, checkpoint, options, loss, recogniser)
    save(model.eval(), ids, options.out)
    write_readme(model, options.out, seconds, options)


if __name__ == "__main__":
    main()
