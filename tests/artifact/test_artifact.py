"""The artifact folder: what is written is what is read, and anything else is refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantasr import sample
from quantasr.artifact import FORMAT, Artifact
from quantasr.errors import ArtifactError
from quantasr.recipes import Recipe
from quantasr.speech.manifest import read_manifest

FILES = ("artifact.json", "calibration.json", "graph.onnx", "layers.json", "recipe.toml", "tokenizer.json")


@pytest.fixture
def folder(sample_artifact: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(sample_artifact("default"), tmp_path / "artifact"))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change artifact.json and sign it anew, as somebody would who knows docs/artifact.md but not this code."""
    path = folder / "artifact.json"
    row = json.loads(path.read_text("utf-8"))
    change(row)
    row.pop("checksum", None)
    text = json.dumps({**row, "checksum": "0" * 64}, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text.replace("0" * 64, hashlib.sha256(text.encode()).hexdigest()), "utf-8")


def test_everything_that_was_written_is_read(folder: Path) -> None:
    artifact = Artifact.load(folder)
    assert {path.name for path in folder.iterdir()} == set(FILES)
    assert artifact.size == sum((folder / name).stat().st_size for name in FILES)
    assert (artifact.family, artifact.decoder, artifact.padded_batches) == ("wav2vec2", "ctc", True)
    # 5 · 4 · 2 · 2 · 2 samples from frame to frame, at 8000 samples a second.
    assert artifact.frame_seconds == 160 / 8000
    assert artifact.frontend.sample_rate == 8000
    assert artifact.tokenizer.tokens[artifact.tokenizer.blank_id] == "<pad>"
    assert artifact.round_up == 4000  # half a second of samples
    assert len(artifact.calibration()) == len(read_manifest(sample.calibration()))
    assert {row["mode"] for row in artifact.layers()} == {"static", "float"}
    recipe = Recipe.load(folder / "recipe.toml")
    assert recipe.to_dict() == artifact.recipe
    assert artifact.provenance["calibration"]["utterances"] == 48
    assert artifact.parity["float"]["largest_difference"] <= 1e-3
    assert artifact.measured["graph_bytes"] == (folder / "graph.onnx").stat().st_size
    assert 0.25 < artifact.measured["ratio"] < 0.5


def test_figures_can_be_added_and_read_back(folder: Path) -> None:
    from dataclasses import replace

    before = Artifact.load(folder)
    replace(before, measured={"wer": 0.0125, "note": "größer"}).write_manifest()
    after = Artifact.load(folder)
    assert after.measured == {"wer": 0.0125, "note": "größer"}
    assert replace(after, measured=before.measured) == before
    assert {path.name for path in folder.iterdir()} == set(FILES)


def test_a_copy_elsewhere_is_the_same_artifact(folder: Path, tmp_path: Path) -> None:
    moved = folder.rename(tmp_path / "elsewhere with spaces ü")
    assert Artifact.load(moved).checksum == Artifact.load(str(moved)).checksum


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_seen_in_every_file(folder: Path, name: str) -> None:
    path = folder / name
    original = path.read_bytes()
    for at in (0, len(original) // 3, len(original) // 2, len(original) - 1):
        changed = bytearray(original)
        changed[at] ^= 0x01
        path.write_bytes(changed)
        with pytest.raises(ArtifactError, match=name):
            Artifact.load(folder)
    path.write_bytes(original)
    Artifact.load(folder)


def test_any_changed_byte_of_the_manifest_is_seen(folder: Path) -> None:
    path = folder / "artifact.json"
    original = path.read_bytes()
    for at in range(0, len(original), 7):
        # Space for newline, and the other way round, would leave the JSON as it was.
        changed = bytearray(original)
        changed[at] = {0x20: 0x0A, 0x0A: 0x20}.get(changed[at], changed[at] ^ 0x02)
        path.write_bytes(changed)
        with pytest.raises(ArtifactError):
            Artifact.load(folder)


@pytest.mark.parametrize("name", [name for name in FILES if name != "artifact.json"])
def test_a_missing_or_shortened_file_is_named(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1])
    for verify in (True, False):
        with pytest.raises(ArtifactError, match=f"{name}: differs"):
            Artifact.load(folder, verify=verify)
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name}: missing.*copy it again"):
        Artifact.load(folder)


def test_a_folder_without_manifest_is_no_artifact(folder: Path, tmp_path: Path) -> None:
    (folder / "artifact.json").unlink()
    for where in (folder, tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ArtifactError, match=r"not an artifact: it has no artifact\.json"):
            Artifact.load(where)


def test_unverified_loading_reads_a_graph_of_the_right_size(folder: Path) -> None:
    content = bytearray((folder / "graph.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "graph.onnx").write_bytes(content)
    Artifact.load(folder, verify=False)


def test_other_formats_are_refused_before_anything_else_is_read(folder: Path) -> None:
    def newer(row: dict[str, Any]) -> None:
        row.clear()
        row.update(format=FORMAT + 1, files="of another kind")

    rewrite(folder, newer)
    with pytest.raises(ArtifactError, match=r"format 2 is newer than this quantasr reads \(1\): upgrade quantasr"):
        Artifact.load(folder)
    rewrite(folder, lambda row: row.update(format=0))
    with pytest.raises(ArtifactError, match=r"format 0 is older.*make the artifact again"):
        Artifact.load(folder)
    for wrong in ("1", True, None, 1.0):
        rewrite(folder, lambda row, wrong=wrong: row.update(format=wrong))
        with pytest.raises(ArtifactError, match="no format number"):
            Artifact.load(folder)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda row: row.pop("recipe"), "lacks 'recipe'"),
        (lambda row: row.update(min_samples="465"), "'min_samples' is \"465\""),
        (lambda row: row.update(min_samples=True), "'min_samples' is true"),
        (lambda row: row.update(padded_batches=1), "'padded_batches' is 1"),
        (lambda row: row.update(files=["graph.onnx"]), "'files' is"),
        (lambda row: row["files"].pop("graph.onnx"), "lists no graph.onnx"),
        (lambda row: row["files"].update({"tokenizer.json": "abc"}), "'tokenizer.json' needs sha256 and bytes"),
        (lambda row: row.update(decoder="oracle"), "decoder 'oracle' is unknown.*upgrade"),
        (lambda row: row.update(frontend={"kind": "mfcc"}), "frontend kind 'mfcc' is unknown"),
        (lambda row: row.update(frontend={"kind": "wave", "colour": 1}), "frontend 'wave'"),
    ],
)
def test_a_wrong_field_is_named(folder: Path, change: Callable[[dict[str, Any]], None], complaint: str) -> None:
    rewrite(folder, change)
    with pytest.raises(ArtifactError, match=complaint) as caught:
        Artifact.load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../secret.txt", "/etc/hostname", "sub/graph.onnx", "..", "."])
def test_no_file_name_leads_out_of_the_folder(folder: Path, name: str) -> None:
    (folder.parent / "secret.txt").write_text("x")
    listed = {"sha256": hashlib.sha256(b"x").hexdigest(), "bytes": 1}
    rewrite(folder, lambda row: row["files"].update({name: listed}))
    with pytest.raises(ArtifactError, match=r"leads out of the artifact|missing"):
        Artifact.load(folder)


def test_the_manifest_may_be_anything(folder: Path) -> None:
    for content in (b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b'{"format": 1}', b"\x80\x04K\x01."):
        (folder / "artifact.json").write_bytes(content)
        with pytest.raises(ArtifactError, match=r"artifact\.json"):
            Artifact.load(folder)


def test_nothing_is_pickled(folder: Path) -> None:
    """Every file is text or the ONNX graph: nothing that runs when it is read."""
    for path in folder.iterdir():
        content = path.read_bytes()
        assert content[:1] != b"\x80"  # a pickle's first byte
        assert content[:2] != b"PK"  # a zip, as of torch.save
        if path.suffix in (".json", ".toml"):
            content.decode("utf-8")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_without_rights_is_named(folder: Path) -> None:
    (folder / "graph.onnx").chmod(0)
    with pytest.raises(ArtifactError, match="cannot read it: Permission denied"):
        Artifact.load(folder)
