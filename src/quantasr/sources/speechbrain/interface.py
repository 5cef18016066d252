"""From a folder or hub id to SpeechBrain's own live interface, without a trace on the disk or on the screen."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from quantasr.errors import ModelLoadError

HYPERPARAMS = "hyperparams.yaml"
_PATH_KEY = "pretrained_path"


def require_speechbrain(where: str) -> str:
    """SpeechBrain's version; raises :class:`ModelLoadError` with what to do where it cannot be imported."""
    try:
        with quiet():
            import speechbrain
            import speechbrain.inference.ASR
    except ImportError as error:
        raise ModelLoadError(
            f"{where}: SpeechBrain models need {error.name or 'speechbrain'}: pip install 'quantasr[speechbrain]'"
        ) from error
    except OSError as error:  # torchaudio's libraries
        raise ModelLoadError(
            f"{where}: SpeechBrain needs torchaudio, whose libraries are for another PyTorch: install one "
            f"that fits yours, or delete {_torchaudio_libraries()}, which nothing here uses"
        ) from error
    return str(speechbrain.__version__)


def _torchaudio_libraries() -> str:
    from importlib.util import find_spec

    found = find_spec("torchaudio")
    folder = Path(found.origin).parent if found and found.origin else Path("torchaudio")
    return f"{folder}/lib/*.so"


def open_interface(where: str, *, revision: str | None, trust: bool) -> Any:
    """SpeechBrain's ``EncoderASR`` or ``EncoderDecoderASR`` for a folder or hub id, on the CPU, in evaluation mode.

    Which one, its ``hyperparams.yaml`` says: with a ``decoding_function`` it is the former. Raises
    :class:`ModelLoadError`, without ``trust`` before anything is read.
    """
    folder = Path(where)
    if folder.exists() and not (folder / HYPERPARAMS).is_file():
        raise ModelLoadError(f"{where}: not a SpeechBrain model folder: it has no {HYPERPARAMS}")
    if not trust:
        raise ModelLoadError(
            f"{where}: reading SpeechBrain's {HYPERPARAMS} runs whatever code it names, and its checkpoints are "
            "pickled: if you trust who made it, allow that with --trust"
        )
    require_speechbrain(where)
    from speechbrain.inference.interfaces import pretrained_from_hparams
    from speechbrain.utils.fetching import FetchConfig, LocalStrategy

    with load_errors(where), quiet(), _hub_cache(), _quiet_kenlm():
        interface = pretrained_from_hparams(
            cls=make_interface,
            source=str(folder.absolute()) if folder.is_dir() else where,
            overrides=overrides(folder),
            # Without a folder of its own it reads files where they lie: in the model's folder, or the hub's cache.
            savedir=None,
            local_strategy=LocalStrategy.NO_LINK,
            fetch_config=FetchConfig(revision=revision, allow_updates=revision is not None),
            run_opts={"device": "cpu"},
        )
        interface.eval()
    check_weights(where, interface.mods)
    return interface


def find_hyperparameters(where: str, revision: str | None) -> Path:
    """The ``hyperparams.yaml`` of a folder or hub id that was opened before."""
    from speechbrain.utils.fetching import FetchConfig, LocalStrategy, fetch

    if Path(where).is_absolute() and not Path(where).exists():
        raise ModelLoadError(f"{where}: the model was loaded from there, and is there no more")
    source = str(Path(where).absolute()) if Path(where).is_dir() else where
    config = FetchConfig(revision=revision, allow_network=False)
    with load_errors(where), quiet():
        found: Path = fetch(HYPERPARAMS, source, local_strategy=LocalStrategy.NO_LINK, fetch_config=config)
        return found


def make_interface(modules: dict[str, Any], hparams: dict[str, Any], **options: Any) -> Any:
    """The interface that fits what a ``hyperparams.yaml`` has."""
    from speechbrain.inference.ASR import EncoderASR, EncoderDecoderASR

    if "encoder" not in modules:
        raise ModelLoadError(
            f"its modules ({', '.join(modules) or 'none'}) have no encoder: it is no speech recogniser"
        )
    if "decoding_function" in hparams:
        return EncoderASR(modules=modules, hparams=hparams, **options)
    if "decoder" in modules:
        return EncoderDecoderASR(modules=modules, hparams=hparams, **options)
    raise ModelLoadError("it has neither a decoding_function (CTC) nor a decoder among its modules (attention)")


def overrides(folder: Path) -> dict[str, str]:
    """A folder is complete in itself: ``pretrained_path``, mostly the hub id that it came from, is the folder."""
    if not folder.is_dir():
        return {}
    text = (folder / HYPERPARAMS).read_text("utf-8", "replace")
    found = re.search(rf"^{_PATH_KEY}\s*:\s*(?!!)\S", text, re.MULTILINE)
    return {_PATH_KEY: str(folder.absolute())} if found else {}


def check_weights(where: str, modules: torch.nn.Module) -> None:
    """Raise :class:`ModelLoadError` when a weight is not finite."""
    for name, tensor in [*modules.named_parameters(), *modules.named_buffers()]:
        if not bool(torch.isfinite(tensor).all()):
            raise ModelLoadError(f"{where}: weight {name} has NaN or infinite values: the checkpoint is broken")


@contextmanager
def load_errors(where: str) -> Iterator[None]:
    """Say in one line what SpeechBrain, HyperPyYAML and PyTorch say in many."""
    from pickle import UnpicklingError

    from ruamel.yaml.error import YAMLError
    from yaml import YAMLError as PlainYAMLError

    try:
        yield
    except ModelLoadError as error:
        raise error if str(error).startswith(where) else ModelLoadError(f"{where}: {error}") from None
    except FileNotFoundError as error:
        file = error.filename or str(error).split("\n", 1)[0]
        raise ModelLoadError(f"{where}: {file} is missing: copy the model again, with all its files") from error
    except (YAMLError, PlainYAMLError) as error:
        raise ModelLoadError(f"{where}: its {HYPERPARAMS} is not YAML: {_short(error)}") from error
    except (UnpicklingError, EOFError) as error:
        raise ModelLoadError(f"{where}: a checkpoint is damaged, copy it again: {_short(error)}") from error
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RuntimeError,
        ImportError,
        ArithmeticError,
        SyntaxError,
        AssertionError,
    ) as error:
        raise ModelLoadError(f"{where}: cannot load it: {_short(error)}") from error


def _short(error: BaseException) -> str:
    return shorten(str(error) or type(error).__name__, 250, placeholder=" ...")


@contextmanager
def quiet() -> Iterator[None]:
    """Import and use SpeechBrain and transformers without their advice, bars and warnings."""
    from transformers.utils import logging as bars

    before, shown = logging.root.manager.disable, bars.is_progress_bar_enabled()
    logging.disable(logging.WARNING)
    bars.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        if shown:
            bars.enable_progress_bar()


@contextmanager
def _hub_cache() -> Iterator[None]:
    """Keep what transformers fetches in its own cache.

    SpeechBrain hands it the recipe's ``save_path``, mostly ``wav2vec2_checkpoint``: a folder wherever one stands.
    """
    from huggingface_hub.constants import HF_HUB_CACHE
    from speechbrain.integrations.huggingface.huggingface import HFTransformersInterface

    make, load = HFTransformersInterface.__init__, HFTransformersInterface.load_feature_extractor

    def init(self: Any, source: str, save_path: str = "", *arguments: Any, **options: Any) -> None:
        make(self, source, HF_HUB_CACHE, *arguments, **options)

    def load_feature_extractor(self: Any, source: str, cache_dir: str = "", **options: Any) -> Any:
        return load(self, source, HF_HUB_CACHE, **options)

    patched: dict[str, Callable[..., Any]] = {"__init__": init, "load_feature_extractor": load_feature_extractor}
    for name, method in patched.items():
        setattr(HFTransformersInterface, name, method)
    try:
        yield
    finally:
        HFTransformersInterface.__init__ = make
        HFTransformersInterface.load_feature_extractor = load


@contextmanager
def _quiet_kenlm() -> Iterator[None]:
    """Keep KenLM, which SpeechBrain gives no options, from drawing a bar while it reads an ARPA file."""
    try:
        import kenlm
    except ImportError:  # SpeechBrain says so where it needs it
        yield
        return
    make = kenlm.Model

    def model(path: str, *arguments: Any) -> Any:
        config = kenlm.Config()
        config.show_progress = False
        config.arpa_complain = kenlm.ARPALoadComplain.NONE
        return make(path, *(arguments or (config,)))

    kenlm.Model = model
    try:
        yield
    finally:
        kenlm.Model = make
