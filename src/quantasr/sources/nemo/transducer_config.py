"""What a NeMo transducer's configuration says of its prediction network, its joint and its decoding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from quantasr.errors import ModelLoadError
from quantasr.speech.transducer.options import MAX_SYMBOLS

PREDICTION_NETWORKS = ("RNNTDecoder", "StatelessTransducerDecoder")
JOINTS = ("RNNTJoint", "SampledRNNTJoint")  # the latter samples in training only


@dataclass(frozen=True)
class TransducerConfig:
    """Arguments of ``prediction_class`` and of ``joint_class``; ``durations`` are a TDT model's, else empty."""

    prediction_class: str
    prediction: dict[str, Any]
    joint_class: str
    joint: dict[str, Any]
    durations: tuple[int, ...]
    max_symbols: int


def read_transducer(
    where: str, part: Callable[[str], tuple[str, dict[str, Any]]], section: Callable[[str], Any]
) -> TransducerConfig:
    """Read it by the configuration's ``part`` (class and arguments) and ``section``.

    Raises :class:`ModelLoadError` for what is not supported: other networks and joints, and big blanks.
    """
    prediction_class, prediction = part("decoder")
    if prediction_class not in PREDICTION_NETWORKS:
        known = ", ".join(PREDICTION_NETWORKS)
        raise ModelLoadError(f"{where}: prediction network {prediction_class} is not supported; supported are {known}")
    joint_class, joint = part("joint")
    if joint_class not in JOINTS:
        raise ModelLoadError(f"{where}: joint {joint_class} is not supported; supported are {', '.join(JOINTS)}")
    if prediction_class == "RNNTDecoder":
        norm = prediction.get("normalization_mode")
        if norm is not None:
            raise ModelLoadError(f"{where}: a prediction network with {norm} normalization is not supported")
        if prediction.get("blank_as_pad", True) is not True:
            raise ModelLoadError(f"{where}: blank_as_pad: false is not supported; NeMo has long made only true")
        if int((prediction.get("prednet") or {}).get("rnn_hidden_size") or -1) > 0:
            raise ModelLoadError(f"{where}: an LSTM with projections in the prediction network is not supported")
    decoding = section("decoding")
    decoding = decoding if isinstance(decoding, dict) else {}
    if decoding.get("big_blank_durations") or decoding.get("model_type") == "multiblank":
        raise ModelLoadError(f"{where}: multi-blank transducers are not supported; RNN-T and TDT are")
    greedy = decoding.get("greedy")
    greedy = greedy if isinstance(greedy, dict) else {}
    symbols = greedy.get("max_symbols") or greedy.get("max_symbols_per_step") or MAX_SYMBOLS
    return TransducerConfig(
        prediction_class=prediction_class,
        prediction=prediction,
        joint_class=joint_class,
        joint=joint,
        durations=_durations(where, decoding, joint, section),
        max_symbols=max(1, int(symbols)),
    )


def _durations(
    where: str, decoding: dict[str, Any], joint: dict[str, Any], section: Callable[[str], Any]
) -> tuple[int, ...]:
    """A TDT model's durations, which its decoding, its defaults and its loss name alike."""
    extra = int(joint.get("num_extra_outputs") or 0)
    if extra == 0:
        return ()
    for found in (
        decoding.get("durations"),
        section("model_defaults.tdt_durations"),
        section("loss.tdt_kwargs.durations"),
    ):
        if not found:
            continue
        if isinstance(found, list) and len(found) == extra and all(isinstance(frames, int) for frames in found):
            return tuple(found)
        raise ModelLoadError(f"{where}: its durations are {found}, but its joint has {extra} outputs for them")
    raise ModelLoadError(f"{where}: its joint has {extra} more outputs than tokens, and no durations to stand for them")
