"""What Kaldi's chain code makes of a small model; ``python make.py PROGRAMS`` writes everything that lies beside it.

PROGRAMS is a folder with Kaldi's ``chain-est-phone-lm`` and ``chain-make-den-fst``, and two programs around its
classes: ``chain-oracle DEN PDFS LEAK SCORES DERIVATIVES`` prints DenominatorComputation::Forward of each matrix and
writes what Backward adds to the derivatives; ``chain-sup TREE MODEL NORMALIZATION FACTOR LEFT RIGHT ALIGNMENTS BEGIN
FRAMES`` goes from AlignmentToProtoSupervision to AddWeightToSupervisionFst and prints the FST.
"""

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from quantasr.kaldi.archive import Archive, archive_writer
from quantasr.kaldi.compile.tree import PDF_CLASS, ContextTree, Leaf, Split, Table, write_tree
from quantasr.kaldi.nnet3.transitions import HmmState, Topology, TransitionModel, write_transition_model
from quantasr.kaldi.writer import writing

HERE = Path(__file__).parent
PHONES = 5  # 1 is silence
STATES = 12  # of the phone language model, beside the bigrams


def tree() -> ContextTree:
    """Biphones: each phone has pdfs of its own, which differ after silence or the beginning, or after vowels."""
    count = 0
    tables = [None]
    for phone in range(1, PHONES + 1):
        pairs = []
        for _ in range(2 if phone > 1 else 1):
            pairs.append(Table(PDF_CLASS, (Leaf(count), Leaf(count + 1))))
            count += 2
        after = frozenset({0, 1} if phone % 2 else {2, 3})
        tables.append(Split(0, after, *pairs) if phone > 1 else pairs[0])
    return ContextTree(2, 1, Table(1, tuple(tables)))


def transitions(of: ContextTree) -> TransitionModel:
    """Chain topology."""
    numbers = np.arange(1, PHONES + 1, dtype=np.int32)
    states = (HmmState(0, 1, ((0, 0.5), (1, 0.5))), HmmState())
    windows = [(left, phone) for phone in range(1, PHONES + 1) for left in range(PHONES + 1)]
    rows = sorted({(w[1], 0, of.pdf(w, 0), of.pdf(w, 1)) for w in windows})
    topology = Topology(numbers, np.array([-1] + [0] * PHONES, np.int32), (states,))
    return TransitionModel(
        topology, np.array(rows, np.int32), np.array([0] + [np.log(0.5)] * 2 * len(rows), np.float32)
    )


def sentences(seed: int, count: int) -> list[list[int]]:
    """Phones that follow each other with preferences."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        phones = [1]
        for _ in range(rng.randint(2, 9)):
            phones.append(rng.choice([2, 3, 4, 5, (phones[-1] % PHONES) + 1, (phones[-1] % PHONES) + 1]))
        found.append([*phones, 1])
    return found


def alignment(model: TransitionModel, of: ContextTree, phones: list[int], seed: int) -> list[int]:
    """Transition-ids of some frames for each phone, self-loops behind."""
    rng, tids, left = random.Random(seed), [], 0
    for phone in phones:
        first = model.first_tid(phone, 0, of.pdf((left, phone), 0), of.pdf((left, phone), 1))
        tids += [first + 1] + [first] * rng.randint(2, 8)
        left = phone
    return tids


def main() -> None:
    """Make everything."""
    programs = Path(sys.argv[1])

    def run(name: str, *arguments: object) -> str:
        command = [str(programs / name), *map(str, arguments)]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    of = tree()
    model = transitions(of)
    write_tree(of, HERE / "tree")
    with writing(HERE / "0.trans_mdl", binary=True) as writer:
        write_transition_model(writer, model)
    said = sentences(1, 60)
    result = {"sentences": said, "extra_states": STATES, "pdfs": model.num_pdfs}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        with archive_writer(work / "phones.ark") as put:
            for i, phones in enumerate(said):
                put(f"s{i:03}", np.array(phones, np.int32))
        run("chain-est-phone-lm", f"--num-extra-lm-states={STATES}", f"ark:{work}/phones.ark", HERE / "phone_lm.fst")
        run("chain-make-den-fst", HERE / "tree", HERE / "0.trans_mdl", HERE / "phone_lm.fst", HERE / "den.fst",
            HERE / "normalization.fst")  # fmt: skip
        scores = np.random.default_rng(2).normal(scale=2, size=(40, model.num_pdfs)).astype(np.float32)
        arrays = {"scores": scores}
        with archive_writer(work / "scores.ark") as put:
            put("a", scores)
        for leak in (1e-5, 0.1):
            out = work / "derivatives.ark"
            text = run("chain-oracle", HERE / "den.fst", model.num_pdfs, leak, f"ark:{work}/scores.ark", f"ark:{out}")
            result[f"likelihood {leak:g}"] = float(text.split()[1])
            arrays[f"posteriors {leak:g}"] = Archive(out)["a"]
        tids = alignment(model, of, said[0], 3)
        result["alignment"] = tids
        with archive_writer(work / "ali.ark") as put:
            put("a", np.array(tids, np.int32))
        for name, weighted, begin, frames in (("whole", "-", 0, 0), ("part", HERE / "normalization.fst", 3, 6)):
            model_files = (HERE / "tree", HERE / "0.trans_mdl", weighted)
            text = run("chain-sup", *model_files, 3, 5, 5, f"ark:{work}/ali.ark", begin, frames)
            result[name] = text.strip().splitlines()[1:]
    np.savez_compressed(HERE / "golden.npz", **arrays)
    (HERE / "golden.json").write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
