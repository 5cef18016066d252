"""What Vosk makes of some recordings with grammars given at run time; ``python golden.py`` writes vosk.json beside it.

Needs vosk 0.3.45. Recordings are those of the package's evaluation set, without endpoints (model.conf).
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import soundfile
import vosk

HERE = Path(__file__).parent
DIGITS = HERE.parent / "digits"
RECORDINGS = HERE.parents[3] / "src" / "quantasr" / "sample" / "digits"
GRAMMARS = [
    ["one two three four", "six seven eight", "three nine four five", "five five", "zero", "two six"],
    ["one two", "three zero", "five seven nine"],
    ["one nowhere two", "five"],
]


def main() -> None:
    """Transcribe."""
    vosk.SetLogLevel(-1)
    rows = [json.loads(line) for line in (RECORDINGS / "evaluation.jsonl").read_text().splitlines()[40:60]]
    with tempfile.TemporaryDirectory() as folder:
        for name in ("am", "conf", "graph"):
            (Path(folder) / name).mkdir()
        shutil.copy(DIGITS / "final.mdl", f"{folder}/am")
        shutil.copy(DIGITS / "conf" / "mfcc.conf", f"{folder}/conf")
        shutil.copy(HERE / "model.conf", f"{folder}/conf")
        shutil.copy(DIGITS / "graph" / "phones.txt", f"{folder}/graph")
        for name in ("HCLr.fst", "Gr.fst", "words.txt", "disambig_tid.int"):
            shutil.copy(HERE / name, f"{folder}/graph")
        model = vosk.Model(folder)
    found = []
    for grammar in [None, *GRAMMARS]:
        texts = {row["audio_filepath"]: list(texts_of(model, row["audio_filepath"], grammar)) for row in rows}
        found.append({"grammar": grammar, "texts": texts})
    (HERE / "vosk.json").write_text(json.dumps(found, indent=1) + "\n")


def texts_of(model: vosk.Model, path: str, grammar: list[str] | None) -> Iterator[str]:
    """The text, which is that of minimum Bayes risk, and the best path, which is the first of its alternatives."""
    samples, rate = soundfile.read(RECORDINGS / path, dtype="int16")
    more = [] if grammar is None else [json.dumps(grammar)]
    for alternatives in (0, 1):
        recogniser = vosk.KaldiRecognizer(model, rate, *more)
        recogniser.SetMaxAlternatives(alternatives)
        for at in range(0, len(samples), rate // 5):
            recogniser.AcceptWaveform(samples[at : at + rate // 5].tobytes())
        result = json.loads(recogniser.FinalResult())
        yield (result["alternatives"][0] if alternatives else result)["text"].strip()


if __name__ == "__main__":
    main()
