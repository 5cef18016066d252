"""Opening a recording and making sure that all of it is there; :mod:`quantasr.speech.audio` reads with it."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import soundfile
from numpy.typing import NDArray

from quantasr.errors import AudioError

AudioSource: TypeAlias = str | Path | BinaryIO
"""A file's path, or an open binary file that can seek (its ``name``, if it has one, is used in errors)."""

AUDIO_SUFFIXES = frozenset(
    (".aif", ".aiff", ".au", ".caf", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".rf64", ".sph", ".w64", ".wav")
)
"""What a folder of recordings is searched for."""

_CONVERT = "convert it first, for instance with 'ffmpeg -i IN OUT.wav'"
_CUT = "is cut short"
_REMEDY = "copy or download it again"
# Programs that write to a pipe cannot know the length and leave a placeholder at or above this (sox, ffmpeg, arecord).
_UNKNOWN_LENGTH = 0x7FFFF000
# What libsndfile notes when the header promises more bytes of samples than the file has (WAV, AIFF, AU).
_PROMISE = re.compile(r"^\s*(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
# Where libsndfile lands some frames off when it seeks; these are decoded up to the place instead.
_SEEKS_BADLY = ("MP3", "OGG")


class _Sound(soundfile.SoundFile):  # type: ignore[misc]
    """A sound file that is read straight on.

    soundfile seeks to where it is after every read of a file that can seek, which moves MPEG audio of variable
    bit rate by some frames, and fails at the end of a FLAC file that does not say how long it is.
    """

    def seekable(self) -> bool:
        return False


class Recording:
    """An open recording; samples are read in order, averaged to mono.

    ``frames`` is the length in samples per channel, or None where only decoding all of it tells; ``position``
    is where the next :meth:`read` begins.
    """

    def __init__(self, file: soundfile.SoundFile, name: str, frames: int | None) -> None:
        self._file = file
        self.position = 0
        self.name = name
        self.frames = frames
        self.sample_rate: int = file.samplerate
        self.channels: int = file.channels
        self.format: str = f"{file.format}/{file.subtype}"

    def seek(self, frame: int) -> None:
        """Go forward to a frame."""
        if self.frames is None or self._file.format in _SEEKS_BADLY:
            while self.position < frame and len(self.read(min(frame - self.position, self.sample_rate))):
                pass
            return
        try:
            self._file.seek(frame)
        except soundfile.LibsndfileError as error:
            raise AudioError(f"{self.name}: cannot be read at {frame / self.sample_rate:.2f} s: {_REMEDY}") from error
        self.position = frame

    def read(self, frames: int) -> NDArray[np.float32]:
        """The next samples, ``[time]``, fewer only where the recording ends.

        Raises:
            AudioError: the data is damaged or ends before its header says, or holds NaN or infinite samples.
        """
        at = self.position / self.sample_rate
        try:
            block: NDArray[np.float32] = self._file.read(frames, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise AudioError(f"{self.name}: is damaged or cut short after {at:.2f} s: {_REMEDY}") from error
        if not np.isfinite(block).all():
            raise AudioError(f"{self.name}: holds NaN or infinite samples after {at:.2f} s: write it again as integers")
        self.position += len(block)
        if self.frames is not None and len(block) < frames:
            # Encoders of MPEG audio disagree whether the frame that tells the length is itself counted.
            slack = (1152 if self.sample_rate >= 32000 else 576) if self._file.format == "MP3" else 0
            if self.position < self.frames - slack:
                there, promised = self.position / self.sample_rate, self.frames / self.sample_rate
                raise AudioError(f"{self.name}: {_CUT}: {there:.2f} s of {promised:.2f} s are there; {_REMEDY}")
        mono: NDArray[np.float32] = block[:, 0] if self.channels == 1 else block.mean(axis=1, dtype=np.float32)
        return mono


@contextmanager
def open_recording(source: AudioSource) -> Iterator[Recording]:
    """Open a recording for reading.

    Raises:
        AudioError: it is missing, empty, not audio, cut short as far as its header tells, or has no samples.
    """
    with ExitStack() as stack:
        if isinstance(source, str | Path):
            name, data = str(source), stack.enter_context(_open_file(Path(source)))
        else:
            name, data = str(getattr(source, "name", "the audio stream")), source
        cut = f"{name}: {_CUT}: its end is missing; {_REMEDY}"
        if _ogg_is_cut(data):
            raise AudioError(cut)
        data.seek(0)
        # libsndfile reads a file faster by its path than through Python.
        file = stack.enter_context(_open_sound(source if isinstance(source, str | Path) else data, name))
        frames: int | None = file.frames
        if file.format == "MP3" and not _mpeg_tells_length(data):
            data.seek(0)
            file, frames = stack.enter_context(_open_as_pipe(data, name)), None
        promise = _PROMISE.search(file.extra_info)
        if promise and int(promise[2]) < int(promise[1]) < _UNKNOWN_LENGTH:
            raise AudioError(cut)
        if frames == 0:
            raise AudioError(f"{name}: holds no samples: leave it out, or record it again")
        yield Recording(file, name, None if frames is None or frames > 2**62 else frames)  # FLAC from a pipe


def _open_file(path: Path) -> BinaryIO:
    """Open a file that is there, may be read, and has something in it."""
    try:
        if path.is_dir():
            raise AudioError(f"{path}: is a folder, not a recording: name a file in it")
        data = path.open("rb")
    except FileNotFoundError as error:
        raise AudioError(f"{path}: no such file: check the path") from error
    except OSError as error:
        raise AudioError(f"{path}: cannot be opened ({error.strerror}): check its rights") from error
    if data.seek(0, os.SEEK_END) == 0:
        data.close()
        raise AudioError(f"{path}: is empty (0 bytes): {_REMEDY}, or leave it out")
    return data


def _open_sound(source: str | Path | BinaryIO, name: str) -> soundfile.SoundFile:
    try:
        return _Sound(source)
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: a .raw file, which has no header
        what = "is not audio that can be read here (wav, flac, mp3, ogg, ...)"
        raise AudioError(f"{name}: {what}: {_CONVERT}") from error


@contextmanager
def _open_as_pipe(data: BinaryIO, name: str) -> Iterator[soundfile.SoundFile]:
    """Open MPEG audio that does not say how long it is.

    libsndfile would guess the length from the size of the first frame and stop there, which loses most of a
    file with a variable bit rate. From a pipe it reads to the end.
    """
    read_end, write_end = os.pipe()

    def feed() -> None:
        # The reader may close early, having all it wants.
        with suppress(BrokenPipeError), os.fdopen(write_end, "wb") as pipe:
            shutil.copyfileobj(data, pipe)

    feeder = threading.Thread(target=feed, name=f"feed {name}", daemon=True)
    feeder.start()
    try:
        try:
            file = _Sound(read_end, closefd=False)
        except soundfile.LibsndfileError as error:
            raise AudioError(f"{name}: is damaged: {_CONVERT}") from error
        with file:
            yield file
    finally:
        os.close(read_end)
        feeder.join()


def _mpeg_tells_length(data: BinaryIO) -> bool:
    """Whether MPEG audio begins with a Xing or Info frame, which counts the frames to come."""
    position = data.tell()  # where libsndfile is, if it reads through this very object
    data.seek(0)
    head = data.read(10)
    start = 0
    if head[:3] == b"ID3" and len(head) == 10:  # the size of the tag: four bytes of seven bits each
        start = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
    data.seek(start)
    first_frame = data.read(1024)
    data.seek(position)
    return b"Xing" in first_frame or b"Info" in first_frame


def _ogg_is_cut(data: BinaryIO) -> bool:
    """Whether an Ogg stream lacks its last page, which carries the end-of-stream flag (RFC 3533, section 6)."""
    data.seek(0)
    if data.read(4) != b"OggS":
        return False
    size = data.seek(0, os.SEEK_END)
    data.seek(max(0, size - 2**17))  # a page has at most 65,307 bytes
    tail = data.read()
    page = tail.rfind(b"OggS\0")
    if page < 0 or len(tail) < page + 27:
        return True
    segments = tail[page + 27 : page + 27 + tail[page + 26]]
    whole = len(segments) == tail[page + 26] and page + 27 + len(segments) + sum(segments) <= len(tail)
    return not (whole and tail[page + 5] & 0x04)
