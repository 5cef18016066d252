"""One recogniser, several threads: everybody gets the text of their own recording."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from quantasr import load, sample
from quantasr.engines import ENGINES
from quantasr.speech.manifest import read_manifest


@pytest.mark.parametrize("engine", list(ENGINES))
def test_threads_do_not_mix_up_their_texts(sample_artifact: Callable[[str], Path], engine: str) -> None:
    recogniser = load(sample_artifact("default"), engine=engine, compute="fp32", threads=1)
    waves = [utterance.load(recogniser.sample_rate) for utterance in read_manifest(sample.evaluation())[:8]]
    alone = [recogniser.transcribe([wave])[0].text for wave in waves]
    assert len(set(alone)) > 4
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda wave: recogniser.transcribe([wave])[0].text, waves * 15))
    assert together == alone * 15
