"""Options that several subcommands share."""

from __future__ import annotations

import argparse
import json
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


GREEDY_WIDTHS = {"attention": 0}
"""The beam width that stands for a greedy search, where it is not 1."""

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


def engines(text: str) -> str | dict[str, str]:
    """``auto``, an engine, or one for each part: ``encoder=openvino,decoder=onnxruntime``."""
    known = ("auto", *ENGINES)
    named = dict(pair.partition("=")[::2] for pair in text.split(",")) if "=" in text else {"": text}
    for name in named.values():
        if name not in known:
            raise argparse.ArgumentTypeError(
                f"{text}: choose from {', '.join(known)}; of a model in parts also encoder=openvino,decoder=onnxruntime"
            )
    return named if "=" in text else text


def named_value(text: str) -> tuple[str, Any]:
    """``KEY=VALUE``: a number, true, false, null, a list in brackets, or text."""
    name, sign, value = text.partition("=")
    if not name or not sign:
        raise argparse.ArgumentTypeError(f"{text}: write a name and a value, such as beam_width=4")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


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
    command.add_argument(
        "--engine",
        type=engines,
        metavar=f"{{auto,{','.join(ENGINES)}}}",
        help="default: what the recipe says; auto measures; of a model in parts also encoder=openvino,decoder=...",
    )
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
    group.add_argument("--language", metavar="NAME", help="Whisper: what is spoken, as en or english (it finds out)")
    group.add_argument("--task", help="Whisper: transcribe, or translate into English (transcribe)")
    group.add_argument(
        "--option",
        type=named_value,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any option of a search that goes step by step: blank_penalty=0.5; may be given again",
    )
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


def decoder_options(arguments: argparse.Namespace, decoder: str = "ctc", *, steps: bool = False) -> dict[str, Any]:
    """What the options say of decoding, as keyword arguments of a recogniser; empty for the model's own.

    ``decoder`` is that of the model, and ``steps`` whether it goes step by step. Raises RecipeError for options that
    belong to other models.
    """
    if not hasattr(arguments, "greedy"):
        return {}  # a subcommand without these options
    if steps:
        return _step_options(arguments, decoder)
    for name in ("language", "task", "option"):
        if getattr(arguments, name):
            raise RecipeError(f"--{name} is for models that decode step by step: Whisper, transducers, attention")
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


def _step_options(arguments: argparse.Namespace, decoder: str) -> dict[str, Any]:
    """Of searches that go step by step, which know by themselves what they do not have."""
    for name in ("lm", "grammar"):
        if getattr(arguments, name) is not None:
            raise RecipeError(f"--{name} is for CTC, Kaldi and Vosk models: this one decodes step by step")
    if arguments.greedy and arguments.beam_width is not None:
        raise RecipeError("--greedy is no beam search: leave it out, or --beam-width")
    found = dict(arguments.option)
    if arguments.greedy:
        found["beam_width"] = GREEDY_WIDTHS.get(decoder, 1)
    found |= {
        name: value for name in ("beam_width", "language", "task") if (value := getattr(arguments, name)) is not None
    }
    if decoder == "whisper" and (getattr(arguments, "words", False) or getattr(arguments, "confidences", False)):
        found["word_timestamps"] = True
    return found


def is_artifact(where: str) -> bool:
    """Whether ``where`` is an artifact folder, perhaps a damaged one, and not a model in its own framework."""
    return any((Path(where) / name).is_file() for name in (MANIFEST, GRAPH, NATIVE))


def open_recogniser(where: str, arguments: argparse.Namespace, **options: Any) -> Transcriber:
    """An artifact on the engine that the options name, or an original model in PyTorch."""
    if is_artifact(where):
        from quantasr.artifact import Artifact
        from quantasr.runtime import load

        artifact = Artifact.load(where)
        recogniser: Transcriber = load(
            artifact,
            engine=arguments.engine,
            compute=arguments.compute,
            threads=arguments.threads,
            trust=arguments.trust,
            **decoder_options(arguments, artifact.decoder, steps=bool(artifact.parts)) | options,
        )
    else:
        model = load_original(where, arguments)
        options = original_options(model, arguments) | options
        if "grammar" in options and model.decoder != "lattice":
            raise RecipeError(f"{model.name}: has no decoding graph: --grammar is for Kaldi and Vosk models")
        recogniser = model.transcriber(name=f"{model.name} [PyTorch fp32]", **options)
    unknown = getattr(recogniser, "unknown_words", ())
    if unknown:
        named = ", ".join(f"'{word}'" for word in unknown[:NAMED])
        more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
        say(f"quantasr: {arguments.grammar}: {where} does not know {named}{more}: left out of the grammar")
    return recogniser


def original_options(model: AsrModel, arguments: argparse.Namespace) -> dict[str, Any]:
    """:func:`decoder_options` for a model in its own framework."""
    from quantasr.sources.parts_model import PartsModel

    return decoder_options(arguments, model.decoder, steps=isinstance(model, PartsModel))


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
