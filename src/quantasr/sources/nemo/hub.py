"""Fetching pretrained models, from Hugging Face's hub and NVIDIA's."""

from __future__ import annotations

from pathlib import Path

from quantasr.errors import ModelLoadError
from quantasr.sources.nemo.module import quiet


def download(name: str, revision: str | None) -> Path:
    """The ``.nemo`` file of a hub id (``nvidia/stt_en_conformer_ctc_small``) or of a name on NVIDIA's own hub.

    It is kept in the cache of the library that fetches it. ``revision`` is for hub ids alone. Raises
    :class:`ModelLoadError`.
    """
    if name.endswith(".nemo"):
        raise ModelLoadError(f"{name}: no such file")
    try:
        with quiet():
            return _from_hugging_face(name, revision) if "/" in name else _from_nvidia(name)
    except (OSError, ValueError, RuntimeError, LookupError) as error:
        reason = str(error).strip().split("\n", 1)[0][:200]
        raise ModelLoadError(
            f"{name}: no such file or folder, and no pretrained model could be fetched by that name: {reason}"
        ) from None


def _from_hugging_face(name: str, revision: str | None) -> Path:
    import huggingface_hub as hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    file = f"{name.rsplit('/', 1)[-1]}.nemo"
    try:
        return Path(hub.hf_hub_download(name, file, revision=revision))
    except LocalEntryNotFoundError:  # without network, and not in the cache
        raise
    except EntryNotFoundError:
        files = [file for file in hub.list_repo_files(name, revision=revision) if file.endswith(".nemo")]
    if len(files) != 1:
        raise ValueError(f"its repository has {len(files) or 'no'} .nemo files")
    return Path(hub.hf_hub_download(name, files[0], revision=revision))


def _from_nvidia(name: str) -> Path:
    from nemo.collections.asr.models import ASRModel

    # The file alone: what from_pretrained does with it otherwise would run what is in it.
    return Path(ASRModel.from_pretrained(name, return_model_file=True))
