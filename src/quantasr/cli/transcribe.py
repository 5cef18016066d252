"""``quantasr transcribe``."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantasr.cli.options import (
    add_command,
    add_decoder,
    add_engine,
    add_ivectors,
    add_trust,
    open_recogniser,
    read_speech,
)
from quantasr.cli.output import say, write_json
from quantasr.errors import AudioError, ManifestError
from quantasr.speech.fronted import BLOCK_SECONDS
from quantasr.speech.manifest.kaldi import FEATURES
from quantasr.speech.manifest.utterance import Utterance
from quantasr.speech.transcript import Word

if TYPE_CHECKING:
    from quantasr.speech.transcript import Transcriber, Transcript

_EXAMPLES = """\
  quantasr transcribe out/ speech.wav
  quantasr transcribe out/ *.flac --json --threads 2
  quantasr transcribe out/ lecture.mp3 --words --engine openvino
  quantasr transcribe vosk-model/ command.wav --grammar phrases.txt
  quantasr transcribe exp/chain/tdnn1a data/test/feats.scp
"""


def add(subparsers: Any) -> argparse.ArgumentParser:
    """Add the subcommand."""
    command = add_command(
        subparsers, "transcribe", "Transcribe audio files of any length, rate and channel count.", _EXAMPLES
    )
    command.add_argument("model", help="artifact folder (no PyTorch needed), or original model")
    command.add_argument("audio", nargs="+", type=Path, metavar="FILE", help="audio; for Kaldi models also feats.scp")
    command.add_argument("--words", action="store_true", help="one word a line with its start and end in seconds")
    command.add_argument("--confidences", action="store_true", help="--words with each word's confidence, 0 to 1")
    command.add_argument("--stats", action="store_true", help="with --json: a last line with load time and peak memory")
    command.add_argument("--chunk", type=float, metavar="SECONDS", help="window for long files (30; attention: 40)")
    add_engine(command)
    add_decoder(command)
    add_ivectors(command)
    add_trust(command)
    return command


def run(arguments: argparse.Namespace) -> int:
    """Transcribe every file; one that cannot be read is reported and the rest goes on."""
    begin = time.perf_counter()
    chunk = {} if arguments.chunk is None else {"chunk_seconds": arguments.chunk}
    recogniser = open_recogniser(arguments.model, arguments, **chunk)
    loaded = time.perf_counter() - begin
    failed = reported = 0
    speech = _speech(arguments)
    for path, utterance in speech:
        start = time.perf_counter()
        try:
            if utterance is None:
                transcript, faults = _transcribe(recogniser, path)
            else:
                transcript, faults = recogniser.transcribe([utterance.load(recogniser.sample_rate)])[0], ()
        except AudioError as error:
            failed += 1
            say(f"quantasr: {error}")
            continue
        _write(arguments, path, transcript, time.perf_counter() - start)
        if faults:
            reported += 1
            say(f"quantasr: {path}: {'; '.join(faults)}")
    if arguments.stats:
        from quantasr.measure.footprint import peak_memory

        whole = time.perf_counter() - begin
        stats = {"peak_bytes": peak_memory(), "load_seconds": round(loaded, 4), "process_seconds": round(whole, 4)}
        write_json({"stats": {**stats, "recogniser": recogniser.name}})
    if failed == len(speech):
        return 1
    return 3 if failed or reported else 0


def _speech(arguments: argparse.Namespace) -> list[tuple[Path, Utterance | None]]:
    """The files, and instead of a feats.scp its utterances, which then go by their ids."""
    speech: list[tuple[Path, Utterance | None]] = []
    for path in arguments.audio:
        if path.name == FEATURES:
            speech += [(Path(found.id), found) for found in read_speech(str(path), arguments, format="kaldi")]
        else:
            speech.append((path, None))
    if arguments.ivectors is not None and any(utterance is None for _, utterance in speech):
        raise ManifestError("--ivectors go with feats.scp here: for audio, name a data folder to 'quantasr evaluate'")
    return speech


def _transcribe(recogniser: Transcriber, path: Path) -> tuple[Transcript, tuple[str, ...]]:
    """The text of a file, and what looked wrong about its sound."""
    # Here, so that what is wrong with the model shows before audio libraries are loaded.
    from quantasr.measure.faults import FaultWatch
    from quantasr.speech.audio import stream_audio

    watch = FaultWatch()
    blocks = stream_audio(path, recogniser.sample_rate, BLOCK_SECONDS)
    return recogniser.transcribe_stream(watch.watch(blocks)), watch.faults


def _write(arguments: argparse.Namespace, path: Path, transcript: Transcript, seconds: float) -> None:
    if arguments.json:
        write_json({"audio": str(path), **transcript.to_dict(), "processing_seconds": round(seconds, 4)})
    elif arguments.words or arguments.confidences:
        if transcript.text and not transcript.words:
            say(f"quantasr: {path}: this model gives words no times: the line is the whole recording")
        whole = Word(transcript.text, 0.0, transcript.duration)
        for word in transcript.words or ([whole] if transcript.text else []):
            row = f"{path}\t{word.start:.2f}\t{word.end:.2f}\t{word.text}"
            if arguments.confidences:
                row += "\t-" if word.confidence is None else f"\t{word.confidence:.3f}"
            print(row, flush=True)
    else:
        print(transcript.text if arguments.audio == [path] else f"{path}\t{transcript.text}", flush=True)
