"""The runtime on a machine that has nothing of the workbench: no PyTorch, no transformers, no onnx."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from quantasr import sample

BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "onnx", "safetensors", "tomli_w", "nncf"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])
sys.meta_path.insert(0, Blocked())
"""


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture
def artifact(sample_artifact: Callable[[str], Path]) -> Path:
    return sample_artifact("default")


@pytest.fixture
def recording() -> Path:
    return sample.folder() / "evaluation" / "000-george.ogg"


def test_every_command_of_the_runtime_runs(artifact: Path, recording: Path) -> None:
    code = f"""{BLOCK}
from quantasr.cli import main
artifact, recording, manifest = sys.argv[1:]
for arguments in (
    ["transcribe", artifact, recording, "--json"],
    ["evaluate", artifact, "--manifest", manifest, "--limit", "3", "--json"],
    ["inspect", artifact, "--engine", "openvino", "--seconds", "1", "--json"],
    ["bench", artifact, "--seconds", "1", "--rounds", "1", "--threads", "1", "--no-memory", "--json"],
    ["transcribe", artifact, recording],
    ["evaluate", artifact, "--manifest", manifest, "--limit", "3"],
    ["inspect", artifact, "--engine", "onnxruntime", "--seconds", "1"],
):
    code = main(arguments)
    assert code == 0, (arguments, code)
assert not {{"torch", "transformers", "onnx"}} & set(sys.modules)
"""
    done = python(code, artifact, recording, sample.evaluation())
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()[:4]]
    assert lines[0]["text"] == "six"
    assert lines[1]["results"][0]["utterances"] == 3
    assert lines[2]["audit"]["int8_share"] > 0.3
    assert {row["threads"] for row in lines[3]} == {1}
    assert [line for line in done.stderr.splitlines() if not line.startswith("timing ")] == []


def test_the_same_in_python(artifact: Path, recording: Path) -> None:
    code = f"""{BLOCK}
import quantasr
recogniser = quantasr.load(sys.argv[1])
print(recogniser.transcribe_file(sys.argv[2]).text)
print(quantasr.evaluate(recogniser, sys.argv[3], limit=3).wer.rate)
"""
    done = python(code, artifact, recording, sample.evaluation())
    assert done.stdout.splitlines() == ["six", "0.0"], done.stderr


def test_the_workbench_says_what_it_lacks(recording: Path) -> None:
    for name in ("quantize", "load_model", "Recipe"):
        done = python(f"{BLOCK}\nimport quantasr\nquantasr.{name}")
        assert done.returncode != 0
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith(f"quantasr.errors.MissingExtraError: quantasr.{name} needs ")
        assert last.endswith("pip install 'quantasr[quantize]'")
    for arguments in (
        ["quantize", sample.model(), "/tmp/never", "--calibration", sample.calibration()],
        ["demo"],
        ["transcribe", sample.model(), recording],
    ):
        done = python(f"{BLOCK}\nfrom quantasr.cli import main\nsys.exit(main(sys.argv[1:]))", *arguments)
        assert done.returncode == 1
        complaints = [line for line in done.stderr.splitlines() if not line.startswith("-- ")]
        assert len(complaints) == 1, done.stderr
        assert complaints[0].startswith("quantasr: quantasr.")
        assert "pip install 'quantasr[quantize]'" in complaints[0]


def test_importing_the_package_imports_next_to_nothing() -> None:
    done = python("import sys, quantasr; print(quantasr.__version__); print(*sys.modules, file=sys.stderr)")
    assert done.returncode == 0
    heavy = {"numpy", "onnxruntime", "openvino", "torch", "rich", "soundfile", "argparse", "tempfile", "subprocess"}
    assert not heavy & set(done.stderr.split())


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_transcribing_imports_only_what_it_needs(engine: str, artifact: Path, recording: Path) -> None:
    code = "import sys\nfrom quantasr.cli import main\nmain(sys.argv[1:])\nprint(*sys.modules, file=sys.stderr)"
    done = python(code, "transcribe", artifact, recording, "--engine", engine)
    assert done.stdout == "six\n"
    loaded = set(done.stderr.split())
    unwanted = {"torch", "transformers", "onnx", "rich", "kaldialign", "scipy", "kaldi_native_fbank", "pyctcdecode"}
    assert not unwanted & loaded
    assert {"onnxruntime", "openvino"} & loaded == {engine}


def test_a_remembered_choice_spares_the_other_engine(artifact: Path, recording: Path) -> None:
    code = "import sys\nfrom quantasr.cli import main\nmain(sys.argv[1:])\nprint(*sys.modules, file=sys.stderr)"
    both = {"onnxruntime", "openvino"}
    python(code, "transcribe", artifact, recording, "--threads", "1")
    again = python(code, "transcribe", artifact, recording, "--threads", "1")
    assert len(both & set(again.stderr.split())) == 1


def test_the_verb_quantize_is_not_the_package_of_that_name() -> None:
    code = """
import quantasr.quantize.layers
assert callable(quantasr.quantize)
from quantasr.quantize import prepare
assert callable(quantasr.quantize)
"""
    assert python(code).returncode == 0


def test_an_unknown_verb_is_an_attribute_error() -> None:
    import quantasr

    with pytest.raises(AttributeError, match="module 'quantasr' has no attribute 'dequantize'"):
        _ = quantasr.dequantize
    for verb in ("Recipe", "evaluate", "load", "load_model", "quantize"):
        assert callable(getattr(quantasr, verb))
        assert verb in quantasr.__all__
