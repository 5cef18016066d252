"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

# No test may need the network; asked before any library reads it.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def tiny_hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny Hugging Face model by its name in :data:`tiny_hf.VARIANTS`, made once. Read it only."""

    @cache
    def folder(name: str) -> Path:
        import tiny_hf

        return tiny_hf.save(name, tmp_path_factory.mktemp(name))

    return folder
