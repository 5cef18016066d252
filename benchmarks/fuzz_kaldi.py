"""Read damaged files of Kaldi and OpenFst, many of them; only a KaldiFileError of one line may come out, and soon.

    python benchmarks/fuzz_kaldi.py
    python benchmarks/fuzz_kaldi.py --inputs 1000000 --processes 2
    python benchmarks/fuzz_kaldi.py --only mdl,fst --seed 7 --more folder_with_files
    python benchmarks/fuzz_kaldi.py --atheris mdl         # guided by coverage, until stopped (pip install atheris)

Small sound files of every kind that quantasr reads (from the test suite; `--more` adds others, told apart by their
suffix) are cut off, joined, and changed in bits, sizes, tokens and numbers. They are read in processes whose memory is
limited. What takes more than a second of CPU, runs out of memory or stack, crashes, or raises anything else is kept in
`fuzz_failures` and makes the script fail.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import re
import resource
import struct
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from quantasr.errors import ModelLoadError
from quantasr.kaldi.archive import Archive, archive_writer
from quantasr.kaldi.cmvn import read_cmvn_stats
from quantasr.kaldi.compile.arpa import read_arpa
from quantasr.kaldi.compile.grammar import read_phrases
from quantasr.kaldi.compile.lexicon import read_lexicon
from quantasr.kaldi.compile.tree import read_tree
from quantasr.kaldi.fst import read_fst, read_words
from quantasr.kaldi.ivector import read_diag_gmm, read_extractor
from quantasr.kaldi.nnet3.components import Component, input_dim, output_dim
from quantasr.kaldi.nnet3.config import parse_line
from quantasr.kaldi.nnet3.model import AcousticModel, Network, read_model, write_model
from quantasr.kaldi.nnet3.transitions import TransitionModel, read_transition_model
from quantasr.kaldi.options import read_options
from quantasr.kaldi.stream import Reader

DATA = Path(__file__).resolve().parents[1] / "tests" / "data" / "kaldi"
FAILURES = Path("fuzz_failures")
SECONDS = 1.0
MEMORY = 2 << 30
Read = Callable[[Path], object]


def _archive(kind: str) -> Read:
    return lambda path: list(Archive(path, kind).values())  # type: ignore[arg-type]


def _list(path: Path) -> object:
    return list(Archive(f"scp:{path}").values())


def _model(path: Path) -> object:
    model = read_model(path)
    write_model(model, path.with_suffix(".written"))  # what can be read can be written
    return model


def _lexicons(path: Path) -> object:
    """With and without probabilities, whichever of them it is."""
    weighted = path.with_name("lexiconp.txt")
    weighted.write_bytes(path.read_bytes())
    try:
        return read_lexicon(path)
    except ModelLoadError:
        return read_lexicon(weighted)


READERS: dict[str, Read] = {
    "mdl": _model,
    "ark": _archive("matrix"),
    "vec": _archive("vector"),
    "int": _archive("ints"),
    "scp": _list,
    "mat": lambda path: Reader.open(path).read_matrix(),
    "packed": lambda path: Reader.open(path).read_packed(),
    "dubm": read_diag_gmm,
    "ie": read_extractor,
    "stats": read_cmvn_stats,
    "tree": read_tree,
    "conf": read_options,
    "words": read_words,
    "fst": read_fst,
    "arpa": lambda path: list(read_arpa(path)),
    "lexicon": _lexicons,
    "json": read_phrases,
}
"""Kind of file, which is its suffix too -> what reads it."""


def seeds(folder: Path, more: Path | None = None) -> dict[str, list[bytes]]:
    """Sound files of every kind, small ones; ``folder`` is for those that are made first."""
    found: dict[str, list[bytes]] = {kind: [] for kind in READERS}
    files = DATA / "files"
    for name in ("matrices", "cm", "cm2", "cm3"):
        found["ark"] += [(files / f"{name}.ark").read_bytes(), (files / f"{name}.txt").read_bytes()]
    for kind, name in (("vec", "vectors"), ("int", "ints")):
        found[kind] += [(files / f"{name}.ark").read_bytes(), (files / f"{name}.txt").read_bytes()]
    for kind, name in (
        ("dubm", "ivector/final.dubm"), ("ie", "ivector/final.ie"), ("mat", "ivector/final.mat"),
        ("stats", "ivector/global_cmvn.stats"), ("conf", "ivector/online_cmvn.conf"), ("conf", "ivector/splice.conf"),
        ("conf", "digits/conf/mfcc.conf"), ("tree", "digits/tree"), ("words", "digits/graph/words.txt"),
        ("lexicon", "digits/lexicon.txt"),
    ):  # fmt: skip
        found[kind].append((DATA / name).read_bytes())
    found["packed"] += [b"\0BDP \4\2\0\0\0" + struct.pack("<3d", 1, 2, 3), b"[\n1 \n2 3 ]\n", b"FP 2 1 2 3 "]
    found["arpa"].append(_ARPA)
    found["lexicon"].append(b"one 0.7 w ah n\none 0.3 w aa n\ntwo 1.0 t uw\n")
    found["json"].append('["one two", "물 [unk]", "\\u00e9"]'.encode())
    with archive_writer(folder / "a.ark", folder / "a.scp") as put:
        put("a", np.ones((3, 2), np.float32))
    found["scp"] += [(folder / "a.scp").read_bytes(), f"b {folder}/a.ark:2[0:1,1:1]\n".encode()]
    for path in [*DATA.rglob("*.fst"), *(more.iterdir() if more else ())]:
        kind = {"raw": "mdl", "txt": "words"}.get(path.suffix[1:], path.suffix[1:])
        if kind in found:
            found[kind].append(path.read_bytes())
    found["mdl"] += list(_models(folder))
    return found


def _models(folder: Path) -> Iterator[bytes]:
    """Every kind of component in a whole model of its own, with both kinds of transition models, binary and text."""
    network = read_model(DATA / "files" / "every_component.raw").network
    transitions = [
        read_transition_model(Reader.open(DATA / "files" / f"transitions_{form}.bin")) for form in ("hmm", "chain")
    ]
    for index, (name, component) in enumerate(network.components.items()):
        for binary in (True, False):
            model = transitions[index % 2]
            write_model(AcousticModel(model, _network(name, component, model), 1, 1, binary=binary), folder / "x")
            yield (folder / "x").read_bytes()


def _network(name: str, component: Component, model: TransitionModel) -> Network:
    """``component`` behind an input, a part of itself, and an output of as many numbers as the model has pdfs."""
    pdfs, dim = model.num_pdfs, output_dim(component)
    parts = ", ".join(["part", "Offset(part, -1)", "ReplaceIndex(part, t, 0)"] + ["Scale(0.5, part)"] * pdfs)
    lines = (
        f"input-node name=input dim={input_dim(component)}",
        f"component-node name={name} component={name} input=Sum(input, IfDefined(Offset(input, 1)))",
        f"dim-range-node name=part input-node={name} dim=1 dim-offset={dim - 1}",
        f"output-node name=more input=Append({parts})",
        f"output-node name=output input=Append({', '.join(['Round(part, 3)'] * (pdfs - 1) + ['Const(1, 1)'])})",
    )
    return Network(tuple(parse_line(line) for line in lines), {name: component})


# Damage

_ARPA = b"""\\data\\
ngram 1=4
ngram 2=2

\\1-grams:
-99 <s> -0.3
-0.8 </s>
-0.5 one -0.2
-0.7 two

\\2-grams:
-0.1 <s> one
-0.2 one two

\\end\\
"""
_TOKEN = re.compile(rb"<?/?[A-Za-z]\w*>?")
_NUMBER = re.compile(rb"-?[0-9]+(\.[0-9]+)?(e-?[0-9]+)?")
_SIZES = [-1, 0, 1, 2, 255, 65536, 1 << 20, 1 << 28, (1 << 30) - 1, 1 << 30, (1 << 31) - 1, -(1 << 31)]
_TEXTS = [b"-1", b"0", b"99999999999", b"2147483647", b"1e999", b"nan", b"-inf", b"1_0", b"", b"0x10", b"9" * 5000]
_BITS = 8


def damage(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """``data`` with one to three things wrong."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = rng.choice(_WAYS)(rng, data, others)
    return data


def _cut(rng: random.Random, data: bytes, _: list[bytes]) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _flip(rng: random.Random, data: bytes, _: list[bytes]) -> bytes:
    changed = bytearray(data)
    for _i in range(rng.randint(1, _BITS) if changed else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _size(rng: random.Random, data: bytes, _: list[bytes]) -> bytes:
    """An absurd integer, where one stands if there is one."""
    places = [found.end() for found in re.finditer(b"\4", data)] or [rng.randrange(len(data) + 1)]
    at = rng.choice(places) if rng.random() < 0.8 else rng.randrange(len(data) + 1)
    wide = rng.random() < 0.2
    return data[:at] + struct.pack("<q" if wide else "<i", rng.choice(_SIZES)) + data[at + (8 if wide else 4) :]


def _number(rng: random.Random, data: bytes, _: list[bytes]) -> bytes:
    return _replace(rng, data, _NUMBER, rng.choice(_TEXTS))


def _token(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """A token left out, twice, or another one in its place."""
    words = _TOKEN.findall(rng.choice([data, rng.choice(others)])) or [b"<X>"]
    return _replace(rng, data, _TOKEN, rng.choice([b"", b"Append(", b"<X> <Y>", *rng.choices(words, k=9)]))


def _replace(rng: random.Random, data: bytes, pattern: re.Pattern[bytes], by: bytes) -> bytes:
    found = list(pattern.finditer(data))
    if not found:
        return data + by
    place = rng.choice(found)
    return data[: place.start()] + by + data[place.end() :]


def _splice(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """A piece of this or another file put in, or a piece left out."""
    source = rng.choice([data, rng.choice(others)])
    start = rng.randrange(len(source) + 1)
    at = rng.randrange(len(data) + 1)
    piece = source[start : start + rng.randint(0, 64)]
    return data[:at] + piece + data[at + rng.choice((0, len(piece), rng.randint(0, 64))) :]


def _header(rng: random.Random, data: bytes, _: list[bytes]) -> bytes:
    return data[2:] if data[:2] == b"\0B" else b"\0B" + data


_WAYS = [_cut, _flip, _flip, _size, _size, _number, _token, _token, _splice, _splice, _header]


# Running


@dataclass
class Tally:
    """What happened: inputs read, how many were refused, the slowest, and what must not happen."""

    inputs: int = 0
    refused: int = 0
    slowest: float = 0.0
    slowest_kind: str = ""
    slowest_data: bytes = b""
    kinds: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.inputs += other.inputs
        self.refused += other.refused
        self.failures += other.failures
        for kind, count in other.kinds.items():
            self.kinds[kind] = self.kinds.get(kind, 0) + count
        if other.slowest > self.slowest:
            self.slowest, self.slowest_kind, self.slowest_data = other.slowest, other.slowest_kind, other.slowest_data


def read_one(kind: str, path: Path, tally: Tally) -> str | None:
    """Read ``path``; what must not happen, or None."""
    tally.inputs += 1
    tally.kinds[kind] = tally.kinds.get(kind, 0) + 1
    problem = None
    begin = time.process_time()
    try:
        READERS[kind](path)
    except ModelLoadError as error:
        tally.refused += 1
        if "\n" in str(error) or len(str(error)) > 600:
            problem = f"an error that is not one short line: {str(error)[:200]!r}"
    except Exception as error:  # MemoryError and RecursionError among them
        problem = f"{type(error).__name__}: {str(error)[:200]}"
    taken = time.process_time() - begin
    if taken > tally.slowest:
        tally.slowest, tally.slowest_kind, tally.slowest_data = taken, kind, path.read_bytes()
    if taken > SECONDS:
        problem = problem or f"{taken:.1f} s"
    return problem


def run(
    inputs: int, seed: int, only: list[str], folder: Path, keep: Path | None = None, more: Path | None = None
) -> Tally:
    """Read ``inputs`` damaged files of the kinds ``only``, in this process; ``keep`` is where failures are kept."""
    warnings.simplefilter("error")
    # Numbers too large for float32 become infinite there, and are refused by name right after.
    warnings.filterwarnings(
        "ignore", "(overflow|invalid value) encountered in cast", module=r"quantasr\.kaldi\.ivector"
    )
    rng = random.Random(seed)
    sound = seeds(folder, more)
    everything = [data for kind in only for data in sound[kind]]
    weights = [len(sound[kind]) ** 0.5 for kind in only]
    tally = Tally()
    path = folder / "input"
    for kind in only:  # compiles what is compiled, and makes sure that the sound files are sound
        for data in sound[kind]:
            path.write_bytes(data)
            READERS[kind](path)
    for number in range(inputs):
        kind = rng.choices(only, weights)[0]
        others = sound[kind] if rng.random() < 0.9 else everything
        path.write_bytes(damage(rng, rng.choice(sound[kind]), others))
        problem = read_one(kind, path, tally)
        if problem is not None:
            name = f"{kind}-{seed}-{number}.{kind}"
            tally.failures.append(f"{name}: {problem}")
            if keep is not None:
                keep.mkdir(exist_ok=True)
                (keep / name).write_bytes(path.read_bytes())
    return tally


def _limited(inputs: int, seed: int, only: list[str], folder: Path, more: Path | None) -> Tally:
    """``run`` in a process that may not take more than ``MEMORY`` bytes besides what it has."""
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, most))
    return run(inputs, seed, only, folder, FAILURES, more)


def _fuzz(arguments: argparse.Namespace, only: list[str]) -> Tally:
    total = Tally()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(arguments.processes, spawn) as pool:
        work = {}
        for number in range(arguments.processes):
            folder = Path(name, str(number))
            folder.mkdir()
            share = arguments.inputs // arguments.processes + (number < arguments.inputs % arguments.processes)
            work[pool.submit(_limited, share, arguments.seed + number, only, folder, arguments.more)] = folder
        for future, folder in work.items():
            try:
                total.add(future.result())
            except BrokenProcessPool:
                FAILURES.mkdir(exist_ok=True)
                (FAILURES / f"crash-{folder.name}").write_bytes((folder / "input").read_bytes())
                total.failures.append(f"crash-{folder.name}: a process crashed, on this input or another's")
    return total


def _guided(kind: str, more: Path | None) -> None:
    """Fuzz one kind of file with atheris, which looks for inputs that reach new code."""
    import atheris

    folder = Path(tempfile.mkdtemp())
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, data in enumerate(seeds(folder, more)[kind]):
        (corpus / str(number)).write_bytes(data)
    path = folder / "input"

    def one(data: bytes) -> None:
        path.write_bytes(data)
        problem = read_one(kind, path, Tally())
        if problem is not None:
            raise RuntimeError(problem)

    atheris.instrument_all()
    atheris.Setup([sys.argv[0], str(corpus), "-max_len=4096", "-timeout=2", "-rss_limit_mb=2048"], one)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help=f"some of {','.join(READERS)}", default=",".join(READERS))
    parser.add_argument("--more", type=Path, help="a folder of further sound files")
    parser.add_argument("--atheris", metavar="KIND", choices=list(READERS))
    arguments = parser.parse_args()
    if arguments.atheris:
        _guided(arguments.atheris, arguments.more)
        return
    begin = time.perf_counter()
    total = _fuzz(arguments, arguments.only.split(","))
    taken = time.perf_counter() - begin
    print(f"{total.inputs:,} inputs in {taken:.0f} s ({total.inputs / taken:,.0f} a second), seed {arguments.seed}")
    print(f"{total.refused / max(total.inputs, 1):.1%} refused with one line, the others could still be read")
    print(f"slowest: {1000 * total.slowest:.0f} ms of CPU ({total.slowest_kind}, {len(total.slowest_data)} bytes)")
    if total.slowest > SECONDS / 10:
        FAILURES.mkdir(exist_ok=True)
        (FAILURES / f"slowest.{total.slowest_kind}").write_bytes(total.slowest_data)
    print("by kind: " + ", ".join(f"{kind} {count:,}" for kind, count in sorted(total.kinds.items())))
    for failure in total.failures[:50]:
        print("FAILED", failure)
    if total.failures or total.inputs < arguments.inputs:
        raise SystemExit(f"{len(total.failures)} failures, kept in fuzz_failures")


if __name__ == "__main__":
    main()
