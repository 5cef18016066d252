"""Score the same hypotheses with quantasr and with NIST's sclite, and print on how many the counts agree.

    apt-get install sctk
    python benchmarks/sclite_agreement.py
    python benchmarks/sclite_agreement.py --pairs 20000 --seed 7

The real sentences come from the test suite's golden file, which `--write` makes anew:

    python benchmarks/sclite_agreement.py --write tests/data/sclite_golden.jsonl --sentences a.jsonl b.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import string
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import kaldialign

from quantasr.speech.scoring import score_pair

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "data" / "sclite_golden.jsonl"
Pair = tuple[str, str]
Counts = tuple[int, int, int, int]
"""Correct, substitutions, deletions, insertions."""


def find_sclite() -> list[str] | None:
    """The command that starts sclite: its own name, or Debian's `sctk sclite`."""
    if shutil.which("sclite"):
        return ["sclite"]
    return ["sctk", "sclite"] if shutil.which("sctk") else None


def run_sclite(command: Sequence[str], pairs: Sequence[Pair]) -> list[Counts]:
    """Counts of each pair as sclite reports them (case-sensitive, alignment by dynamic programming)."""
    with tempfile.TemporaryDirectory() as folder:
        for name, texts in (("ref", [p[0] for p in pairs]), ("hyp", [p[1] for p in pairs])):
            lines = "".join(f"{text} (s-{number:07d})\n" for number, text in enumerate(texts))
            Path(folder, name).write_text(lines, encoding="utf-8")
        options = ["-s", "-i", "rm", "-r", "ref", "trn", "-h", "hyp", "trn", "-o", "pra", "stdout"]
        report = subprocess.run([*command, *options], cwd=folder, capture_output=True, check=True).stdout.decode(
            "utf-8"
        )
    pattern = r"id: \(s-(\d+)\)\nScores: \(#C #S #D #I\) (\d+) (\d+) (\d+) (\d+)\n"
    found = {int(row[0]): tuple(map(int, row[1:])) for row in re.findall(pattern, report)}
    if sorted(found) != list(range(len(pairs))):
        raise SystemExit(f"sclite reported {len(found)} of {len(pairs)} utterances")
    return [(c, s, d, i) for c, s, d, i in (found[number] for number in range(len(pairs)))]


def corrupt(rng: random.Random, words: Sequence[str], vocabulary: Sequence[str]) -> list[str]:
    """A hypothesis with errors of every kind: wrong, missing, added, repeated and swapped words, lost stretches."""
    if rng.random() < 0.03:
        return []
    share = rng.choice((0.05, 0.15, 0.3, 0.6))
    out: list[str] = []
    for word in words:
        if rng.random() >= share:
            out.append(word)
            continue
        kind = rng.choice(("substitute", "delete", "insert", "repeat", "split"))
        if kind == "substitute":
            out.append(rng.choice(vocabulary))
        elif kind == "insert":
            out += [rng.choice(vocabulary), word] if rng.random() < 0.5 else [word, rng.choice(words)]
        elif kind == "repeat":
            out += [word] * rng.randint(2, 4)
        elif kind == "split" and len(word) > 3:
            out += [word[: len(word) // 2], word[len(word) // 2 :]]
    for at in range(len(out) - 1):
        if rng.random() < share / 4:
            out[at], out[at + 1] = out[at + 1], out[at]
    if len(out) > 4 and rng.random() < share / 2:
        begin = rng.randrange(len(out) - 3)
        del out[begin : begin + rng.randint(2, len(out) // 2)]
    return out


def edited_pairs(rng: random.Random, sentences: Sequence[str], count: int) -> list[Pair]:
    """Real sentences with seeded errors."""
    vocabulary = sorted({word for sentence in sentences for word in sentence.split()})
    chosen = [sentences[number % len(sentences)] for number in range(count)]
    return [(text, " ".join(corrupt(rng, text.split(), vocabulary))) for text in chosen]


def harsh_pairs(rng: random.Random, count: int) -> list[Pair]:
    """Random strings over few words, where many alignments weigh the same; a few empty on one side."""
    pairs = []
    for _ in range(count):
        vocabulary = string.ascii_lowercase[: rng.choice((2, 3, 5, 10, 20))]
        lengths = [0 if rng.random() < 0.03 else rng.randint(1, 25) for _ in range(2)]
        reference, hypothesis = (" ".join(rng.choices(vocabulary, k=length)) for length in lengths)
        pairs.append((reference, hypothesis))
    return pairs


def quantasr_counts(pair: Pair) -> Counts:
    counts = score_pair(*pair)
    return counts.correct, counts.substitutions, counts.deletions, counts.insertions


def kaldialign_counts(pair: Pair) -> Counts:
    reference, hypothesis = (text.split() for text in pair)
    found = kaldialign.edit_distance(reference, hypothesis, sclite_mode=True)
    correct = len(reference) - found["sub"] - found["del"]
    return correct, found["sub"], found["del"], found["ins"]


def read_sentences(manifests: Sequence[Path]) -> list[str]:
    """Different references, from golden files or NeMo manifests, in the order of the files."""
    rows = [json.loads(line) for path in manifests for line in path.read_text(encoding="utf-8").splitlines()]
    texts = (row.get("text") or row["reference"] for row in rows if row.get("set", "real") == "real")
    plain = (re.sub(r"[^a-z' ]", " ", text.lower()).split() for text in texts)  # sclite gives brackets a meaning
    return list(dict.fromkeys(" ".join(words) for words in plain if words))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2000, help="pairs of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sentences", type=Path, nargs="+", default=[GOLDEN], help="NeMo manifests to take texts from")
    parser.add_argument("--write", type=Path, help="write a golden file with sclite's counts and stop")
    options = parser.parse_args()
    sclite = find_sclite()
    if sclite is None:
        print("sclite is not installed: apt-get install sctk", file=sys.stderr)
        return 1
    rng = random.Random(options.seed)
    sentences = read_sentences(options.sentences)
    sets = {"real": edited_pairs(rng, sentences, options.pairs), "harsh": harsh_pairs(rng, options.pairs)}
    if options.write:
        with options.write.open("w", encoding="utf-8") as file:
            for name, pairs in sets.items():
                for (reference, hypothesis), counts in zip(pairs, run_sclite(sclite, pairs), strict=True):
                    row = {"set": name, "reference": reference, "hypothesis": hypothesis, "csdi": counts}
                    file.write(json.dumps(row) + "\n")
        return 0
    scorers: dict[str, Callable[[Pair], Counts]] = {
        "quantasr": quantasr_counts,
        "kaldialign, sclite_mode": kaldialign_counts,
    }
    worst = 1.0
    for name, pairs in sets.items():
        truth = run_sclite(sclite, pairs)
        total = [sum(column) for column in zip(*truth, strict=True)]
        print(f"{name}: {len(pairs)} pairs, sclite counts C {total[0]} S {total[1]} D {total[2]} I {total[3]}")
        for scorer, count in scorers.items():
            same = sum(count(pair) == expected for pair, expected in zip(pairs, truth, strict=True))
            print(f"  {scorer:<24} agrees on {same} of {len(pairs)} ({100 * same / len(pairs):.2f} %)")
            if scorer == "quantasr":
                worst = min(worst, same / len(pairs))
    return 0 if worst == 1.0 else 1


if __name__ == "__main__":
    raise SystemExit(main())
