"""``quantasr bench``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from quantasr.cli.options import add_command, add_threads, add_trust, count, seconds
from quantasr.cli.output import say, show, write_json

_EXAMPLES = """\
  quantasr bench out/ --threads 2
  quantasr bench out-default/ out-fast/ --original ./my-model --audio speech.wav --rounds 30
  quantasr bench native-onednn/ native-fbgemm/ out/ --original ./my-model --manifest test.jsonl
"""


def add(subparsers: Any) -> argparse.ArgumentParser:
    """Add the subcommand."""
    command = add_command(
        subparsers, "bench", "Time, memory, size, int8 share and WER on every engine, in one run.", _EXAMPLES
    )
    command.add_argument("artifacts", nargs="+", type=Path, metavar="ARTIFACT")
    command.add_argument("--original", metavar="MODEL", help="the model that they were made from, timed in PyTorch")
    command.add_argument("--audio", type=Path, metavar="FILE", help="default: 10 s of noise")
    command.add_argument(
        "--seconds", type=seconds, default=10.0, help="length of the noise, or of the audio at most (10)"
    )
    add_threads(command)
    command.add_argument("--rounds", type=count, default=15, metavar="N", help="turns that count (15)")
    command.add_argument("--manifest", metavar="MANIFEST", help="speech with reference texts: the error rates as well")
    command.add_argument("--limit", type=count, metavar="N", help="the first N utterances of it only")
    command.add_argument("--no-memory", action="store_true", help="skip the processes that measure memory")
    add_trust(command)
    return command


def run(arguments: argparse.Namespace) -> int:
    """Time everything, and show one table."""

    from quantasr.artifact import Artifact
    from quantasr.measure.bench import bench
    from quantasr.measure.report import bench_table
    from quantasr.measure.report_parts import split_table
    from quantasr.speech.audio import load_audio
    from quantasr.speech.frontend import noise
    from quantasr.speech.manifest import read_manifest, require_texts

    artifacts = [Artifact.load(folder) for folder in arguments.artifacts]
    rate = artifacts[0].frontend.sample_rate
    if arguments.audio is not None:
        wave = load_audio(arguments.audio, rate)[: round(arguments.seconds * rate)]
    else:
        wave = noise(artifacts[0].frontend, round(arguments.seconds * rate))
    utterances = read_manifest(arguments.manifest, trust=arguments.trust) if arguments.manifest else []
    utterances = utterances[: arguments.limit]
    require_texts(utterances)
    original = None
    if arguments.original:
        from quantasr.measure.original import load_original

        original = load_original(arguments.original, arguments.threads, trust=arguments.trust)
    say(f"timing {len(artifacts)} artifacts on {len(wave) / rate:.1f} s of audio")
    rows = bench(
        artifacts,
        wave,
        original=original,
        threads=arguments.threads,
        rounds=arguments.rounds,
        memory=not arguments.no_memory,
        utterances=utterances,
        trust=arguments.trust,
        progress=True,
    )
    if arguments.json:
        write_json([row.to_dict() for row in rows])
    else:
        show(bench_table(rows), *([split_table(rows)] if any(row.split for row in rows) else []))
    return 0
