"""Options that several subcommands share."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantasr.artifact import GRAPH, NATIVE
from quantasr.atomic import MANIFEST
from quantasr.cli.output import say
from quantasr.engines import ENGINES
from quantasr.engines.engine import COMPUTE
from quantasr.errors import ModelLoadError, RecipeError
from quantasr.speech.manifest import FORMATS, Utterance, read_manifest, with_ivectors

if TYPE_CHECKING:
    from quantasr.sources import AsrModel
    from quantasr.speech.transcript import Transcriber


NAMED = 20
"""Words that are named where there may be many."""


def count(text: str) -> int:
    """An argument that counts something: 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: give 1 or more")
    return value


def threads(text: str) -> int:
    """A number of threads, 0 for all cores."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text}: give 1 or more, or 0 for all cores")
    return value


def seconds(text: str) -> float:
    """A length of audio."""
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text}: give more than 0 seconds")
    return value


def add_command(subparsers: Any, name: str, summary: str, examples: str) -> argparse.ArgumentParser:
    """A subcommand with a summary and examples, and ``--json``, which all have."""
    command: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    return command


def add_manifest(command: argparse.ArgumentParser, what: str) -> None:
    """``--manifest``, ``--format`` and ``--limit``."""
    command.add_argument("--manifest", required=True, help=what)
    command.add_argument("--format", choices=["auto", *FORMATS], default="auto", help="form of the manifest")
    command.add_argument("--limit", type=count, metavar="N", help="the first N utterances only")
    add_ivectors(command)


def add_ivectors(command: argparse.ArgumentParser) -> None:
    """``--ivectors`` and ``--ivector-period``."""
    command.add_argument(
        "--ivectors",
        action="append",
        metavar="PLACE",
        help="Kaldi: i-vectors that were extracted before: a folder with ivector_online.scp, scp:FILE or ark:FILE; "
        "may be given again for other speech",
    )
    command.add_argument(
        "--ivector-period", type=count, metavar="N", help="frames from one to the next (the folder's, or 10)"
    )


def read_speech(path: str, arguments: argparse.Namespace, *, format: str | None = None) -> list[Utterance]:
    """The utterances of a manifest, of ``--format`` or ``format``, with the i-vectors that the options name."""
    format = arguments.format if format is None else format
    found = read_manifest(path, format=format, trust=arguments.trust)
    if arguments.ivectors is None:
        return found
    return list(with_ivectors(found, arguments.ivectors, period=arguments.ivector_period))


def add_engine(command: argparse.ArgumentParser) -> None:
    """``--engine``, ``--compute`` and ``--threads``."""
    command.add_argument("--engine", choices=["auto", *ENGINES], help="default: what the recipe says; auto measures")
    command.add_argument("--compute", choices=COMPUTE, help="type of the float rest; default: what the recipe says")
    add_threads(command)


def add_threads(command: argparse.ArgumentParser, default: int = 0) -> None:
    """``--threads``."""
    shown = str(default) if default else "all cores"
    command.add_argument("--threads", type=threads, default=default, metavar="N", help=f"default: {shown}")


def add_decoder(command: argparse.ArgumentParser) -> None:
    """``--lm`` and the options of the beam search."""
    group = command.add_argument_group("decoding", "the model's own, mostly greedy, unless these say otherwise")
    group.add_argument("--greedy", action="store_true", help="the best token of each frame, whatever the model brings")
    group.add_argument("--lm", type=Path, metavar="FILE", help="KenLM n-gram, ARPA or binary")
    group.add_argument("--beam-width", type=count, metavar="N", help="beam search with N beams (64 with --lm)")
    group.add_argument("--alpha", type=float, default=0.5, help="weight of the language model (0.5)")
    group.add_argument("--beta", type=float, default=1.5, help="bonus for each word (1.5)")
    group.add_argument(
        "--grammar", type=Path, metavar="FILE", help="phrases, one a line, instead of a Vosk model's language model"
    )


def add_trust(command: argparse.ArgumentParser) -> None:
    """``--trust``."""
    command.add_argument(
        "--trust",
        action="store_true",
        help="allow what runs code while it is read: SpeechBrain's hyperparams.yaml, pickled weights, piped wav.scp",
    )


def decoder_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The ``decoder`` or ``grammar`` that the options ask for, as a keyword argument; empty for the model's own."""
    if not hasattr(arguments, "greedy"):
        return {}  # a subcommand without these options
    if arguments.grammar is not None:
        if arguments.greedy or arguments.lm is not None or arguments.beam_width is not None:
            raise RecipeError("--grammar is for Kaldi and Vosk models, --lm, --beam-width and --greedy are for others")
        from quantasr.kaldi.compile.grammar import read_phrases

        return {"grammar": read_phrases(arguments.grammar)}
    if arguments.greedy:
        if arguments.lm is not None or arguments.beam_width is not None:
            raise RecipeError("--greedy is no beam search: leave it out, or --lm and --beam-width")
        from quantasr.speech.decoding import GreedyDecoder

        return {"decoder": GreedyDecoder()}
    if arguments.lm is None and arguments.beam_width is None:
        return {}
    from quantasr.speech.beam import BeamDecoder

    width = arguments.beam_width or 64
    return {"decoder": BeamDecoder(beam_width=width, alpha=arguments.alpha, beta=arguments.beta, lm=arguments.lm)}


def is_artifact(where: str) -> bool:
    """Whether ``where`` is an artifact folder, perhaps a damaged one, and not a model in its own framework."""
    return any((Path(where) / name).is_file() for name in (MANIFEST, GRAPH, NATIVE))


def open_recogniser(where: str, arguments: argparse.Namespace, **options: Any) -> Transcriber:
    """An artifact on the engine that the options name, or an original model in PyTorch."""
    options = decoder_options(arguments) | options
    if is_artifact(where):
        from quantasr.runtime import load

        recogniser: Transcriber = load(
            where,
            engine=arguments.engine,
            compute=arguments.compute,
            threads=arguments.threads,
            trust=arguments.trust,
            **options,
        )
    else:
        model = load_original(where, arguments)
        if "grammar" in options and model.decoder != "lattice":
            raise RecipeError(f"{model.name}: has no decoding graph: --grammar is for Kaldi and Vosk models")
        recogniser = model.transcriber(name=f"{model.name} [PyTorch fp32]", **options)
    unknown = getattr(recogniser, "unknown_words", ())
    if unknown:
        named = ", ".join(f"'{word}'" for word in unknown[:NAMED])
        more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
        say(f"quantasr: {arguments.grammar}: {where} does not know {named}{more}: left out of the grammar")
    return recogniser


def load_original(where: str, arguments: argparse.Namespace) -> AsrModel:
    """An original model, on as many threads as the options say."""
    if not Path(where).exists() and (where.startswith((".", "/", "~")) or where.count("/") != 1 or where[-1] == "/"):
        raise ModelLoadError(f"{where}: no such file or folder: give an artifact folder, a model folder or a hub id")
    import quantasr

    model = quantasr.load_model(where, trust=arguments.trust)
    if arguments.threads:
        import torch

        torch.set_num_threads(arguments.threads)
    return model
