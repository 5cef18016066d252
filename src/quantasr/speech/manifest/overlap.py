"""Keeping the utterances that a model is calibrated on apart from those it is judged by."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

from quantasr.errors import AudioError, ManifestError
from quantasr.speech.audio import audio_info
from quantasr.speech.manifest.utterance import Utterance

_TOUCH_SECONDS = 0.01  # rounded segment times may overlap by this much
_SAME_LENGTH_SECONDS = 0.05  # what encoding again may add to a recording
_NAMED = 3  # utterances that the error names


def check_disjoint(
    calibration: Sequence[Utterance],
    evaluation: Sequence[Utterance],
    what: str = "calibration",
    other: str = "evaluation",
) -> None:
    """Make sure that no speech is in both manifests. An utterance is shared when

    1. the recording is the same (the same file after following links, files with the same bytes, or the same
       command) and the two segments of it overlap by more than 0.01 s; or
    2. id and file name, without folder and suffix, are the same, and so are the texts, where both have one, and
       the lengths within 0.05 s: the same recording encoded again.

    The same sentence read a second time is not shared, nor is another part of the same recording. ``what`` and
    ``other`` are how the error calls the manifests.

    Raises:
        ManifestError: utterances are shared; says how many and names the first.
        AudioError: a recording has to be opened and cannot be.
    """
    shared = {left.id: (left, right, why) for left, right, why in _shared(calibration, evaluation)}
    if not shared:
        return
    named = "; ".join(
        f"'{left.id}' ({left.source or left.audio}) and '{right.id}' ({right.source or right.audio}), {why}"
        for left, right, why in list(shared.values())[:_NAMED]
    )
    more = f" and {len(shared) - _NAMED} more" if len(shared) > _NAMED else ""
    raise ManifestError(
        f"{len(shared)} of {len(calibration)} {what} utterances are in the {other} manifest too: "
        f"{named}{more}: take them out of one of the two"
    )


@dataclass(frozen=True)
class _Segment:
    start: float
    end: float
    utterance: Utterance


def _shared(left: Sequence[Utterance], right: Sequence[Utterance]) -> Iterator[tuple[Utterance, Utterance, str]]:
    keys = _recording_keys([*left, *right], _sizes(left) & _sizes(right))
    by_recording: defaultdict[str, list[_Segment]] = defaultdict(list)
    for utterance in right:
        by_recording[keys[_place(utterance)]].append(_segment(utterance))
    for segments in by_recording.values():
        segments.sort(key=lambda segment: segment.start)
    longest = {key: max(s.end - s.start for s in segments) for key, segments in by_recording.items()}
    starts = {key: [s.start for s in segments] for key, segments in by_recording.items()}
    by_name = {(utterance.id, utterance.audio.stem): utterance for utterance in right if utterance.is_file}

    for utterance in left:
        key, segment = keys[_place(utterance)], _segment(utterance)
        found = None
        # Nothing that begins earlier than the longest segment before this one can reach into it.
        begin = bisect_left(starts[key], segment.start - longest[key]) if key in longest else 0
        for other in by_recording.get(key, [])[begin:]:
            if other.start >= segment.end:
                break
            if min(segment.end, other.end) - max(segment.start, other.start) > _TOUCH_SECONDS:
                found = (utterance, other.utterance, "the same recording")
                break
        if found is None and utterance.is_file:
            namesake = by_name.get((utterance.id, utterance.audio.stem))
            if namesake is not None and keys[_place(namesake)] != key and _encoded_again(utterance, namesake):
                found = (utterance, namesake, "the same name, text and length")
        if found is not None:
            yield found


def _segment(utterance: Utterance) -> _Segment:
    end = inf if utterance.duration is None else utterance.start + utterance.duration
    return _Segment(utterance.start, end, utterance)


def _place(utterance: Utterance) -> str:
    if utterance.features is not None:
        return f"features {utterance.features.name}"
    return f"command {utterance.command}" if utterance.command is not None else str(utterance.audio)


def _sizes(utterances: Sequence[Utterance]) -> set[int]:
    return {_size(audio) for audio in {u.audio for u in utterances if u.is_file}}


def _size(audio: Path) -> int:
    try:
        return audio.stat().st_size
    except OSError as error:
        raise AudioError(f"{audio}: cannot be opened ({error.strerror}): check the path") from error


def _recording_keys(utterances: Sequence[Utterance], shared_sizes: set[int]) -> dict[str, str]:
    """For each recording a key that is equal where the recordings are; only files of shared sizes are read."""
    keys: dict[str, str] = {}
    digests: dict[Path, str] = {}
    for utterance in utterances:
        place = _place(utterance)
        if place in keys:
            continue
        if utterance.features is not None:
            keys[place] = hashlib.sha256(utterance.features.load().tobytes()).hexdigest()
            continue
        if utterance.command is not None:
            keys[place] = place
            continue
        audio = utterance.audio.resolve()
        if audio not in digests:
            digests[audio] = _digest(audio) if _size(audio) in shared_sizes else str(audio)
        keys[place] = digests[audio]
    return keys


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _encoded_again(left: Utterance, right: Utterance) -> bool:
    if left.text is not None and right.text is not None and left.text != right.text:
        return False
    return abs(_length(left) - _length(right)) <= _SAME_LENGTH_SECONDS


def _length(utterance: Utterance) -> float:
    if utterance.duration is not None:
        return utterance.duration
    return audio_info(utterance.audio).duration - utterance.start
