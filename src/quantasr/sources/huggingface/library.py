"""The library transformers: whether it is there, what it says when it cannot load, and how to keep it quiet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten

from quantasr.errors import ModelLoadError


def require_transformers(where: str) -> None:
    """Raise :class:`ModelLoadError` with the command that installs transformers where it is missing."""
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise ModelLoadError(
            f"{where}: Hugging Face models need transformers: pip install 'quantasr[huggingface]'"
        ) from None


@contextmanager
def load_errors(where: str) -> Iterator[None]:
    """Say in one line what transformers says in many."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    hub = "" if Path(where).exists() else "no such folder, and "
    try:
        yield
    except ModelLoadError:
        raise
    except json.JSONDecodeError as error:
        raise ModelLoadError(f"{where}: a configuration file is not JSON: {error}") from None
    except SafetensorError as error:
        raise ModelLoadError(f"{where}: the weights are damaged, copy them again: {error}") from None
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RuntimeError,
        ImportError,
        StrictDataclassError,
    ) as error:
        reason = shorten(str(error) or type(error).__name__, 250, placeholder=" ...")
        raise ModelLoadError(f"{where}: {hub}cannot load it: {reason}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bar and advice out of our output."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
