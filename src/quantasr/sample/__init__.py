"""The sample that ships with quantasr: a recogniser of spoken digit strings, and speech to measure it with.

Trained by ``examples/train_digits.py``; ``digits/README.md`` says how, and under which licence the recordings are.
"""

from pathlib import Path


def folder() -> Path:
    """The folder with the model, the two manifests, their audio, a README and the licence."""
    return Path(__file__).parent / "digits"


def model() -> Path:
    """The recogniser, as ``load_model`` takes it: a Hugging Face Wav2Vec2 CTC folder, 8000 samples a second."""
    return folder()


def evaluation() -> Path:
    """The evaluation manifest: strings of recordings that are in no other set."""
    return folder() / "evaluation.jsonl"


def calibration() -> Path:
    """The calibration manifest: apart from both training and evaluation."""
    return folder() / "calibration.jsonl"
