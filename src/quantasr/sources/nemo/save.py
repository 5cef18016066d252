"""A NeMo model written back as a ``.nemo``, which NeMo's own ``restore_from`` reads."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from quantasr.errors import ModelLoadError
from quantasr.sources.asr_model import AsrModel, CtcModel
from quantasr.sources.nemo.archive import WEIGHTS, NemoArchive, open_archive
from quantasr.sources.nemo.hub import download

SUFFIX = ".nemo"


def save(model: AsrModel, folder: Path) -> None:
    """Fill ``folder`` with what a ``.nemo`` holds: the original's files, and the weights as they are now.

    NeMo's weights are PyTorch's pickles of plain tensors. Those of parts that a CTC model does not run (a hybrid's
    transducer) stay what they were. Raises :class:`ModelLoadError` when the original is gone, or of other weights.
    """
    vocabulary = model.vocabulary if isinstance(model, CtcModel) else {}
    with original(model) as archive:
        state = archive.weights()
        for name in archive:
            if name == WEIGHTS or name in vocabulary:
                continue
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target)
    for name, content in vocabulary.items():
        if content is not None:
            (folder / name).write_bytes(content)
    mine = {key: value.detach().cpu() for key, value in model.module.state_dict().items()}
    head = "decoder." if vocabulary else None
    for key, value in mine.items():
        if key not in state or (state[key].shape != value.shape and not (head and key.startswith(head))):
            raise ModelLoadError(
                f"{archive.where}: has other weights than the model that was loaded from there: the first is {key}"
            )
    torch.save({**state, **mine}, folder / WEIGHTS)


@contextmanager
def original(model: AsrModel) -> Iterator[NemoArchive]:
    """The archive that a model was loaded from."""
    where = model.provenance["model"]
    place = where if Path(where).exists() else str(download(where, model.provenance.get("revision")))
    with open_archive(place) as archive:
        yield archive


def save_file(model: AsrModel, path: Path) -> None:
    """Write ``path``, a ``.nemo``; see :func:`save`."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        save(model, Path(folder))
        pack(Path(folder), path)


def pack(folder: Path, path: Path) -> None:
    """Make a ``.nemo`` of a folder that holds what is in it."""
    with tarfile.open(path, "w:") as tar:
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            tar.add(file, f"./{file.relative_to(folder).as_posix()}", filter=_anonymous)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without the name of whoever runs this."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member
