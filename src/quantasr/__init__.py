"""quantasr: make trained speech recognisers small and fast on CPUs, and prove that the WER held.

The verbs::

    import quantasr

    artifact = quantasr.quantize("facebook/wav2vec2-base-960h", "wav2vec2-int8", calibration="calibration.jsonl")
    recogniser = quantasr.load("wav2vec2-int8")              # no PyTorch from here on
    print(recogniser.transcribe_file("speech.wav").text)
    print(quantasr.evaluate(recogniser, "evaluation.jsonl").wer)
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantasr.bit_widths import bit_widths as bit_widths
    from quantasr.measure.evaluate import evaluate as evaluate
    from quantasr.measure.retune import retune as retune
    from quantasr.pipeline import quantize as quantize
    from quantasr.pipeline_in_place import quantize_in_place as quantize_in_place
    from quantasr.pipeline_training import finetune as finetune
    from quantasr.pipeline_training import qat as qat
    from quantasr.recipes import Recipe as Recipe
    from quantasr.runtime import load as load
    from quantasr.sensitivity import sensitivity as sensitivity
    from quantasr.sources import load_model as load_model

from quantasr.version import __version__

# Where each verb lives. They are imported when first used, so that the runtime's verbs need no PyTorch.
_VERBS = {
    "Recipe": "quantasr.recipes",
    "bit_widths": "quantasr.bit_widths",
    "evaluate": "quantasr.measure.evaluate",
    "finetune": "quantasr.pipeline_training",
    "load": "quantasr.runtime",
    "load_model": "quantasr.sources",
    "qat": "quantasr.pipeline_training",
    "quantize": "quantasr.pipeline",
    "quantize_in_place": "quantasr.pipeline_in_place",
    "retune": "quantasr.measure.retune",
    "sensitivity": "quantasr.sensitivity",
}
# What the extra `quantize` brings.
_WORKBENCH = ("onnx", "safetensors", "tomli_w", "torch")
__all__ = [
    "Recipe",
    "__version__",
    "bit_widths",
    "evaluate",
    "finetune",
    "load",
    "load_model",
    "qat",
    "quantize",
    "quantize_in_place",
    "retune",
    "sensitivity",
]


def __getattr__(name: str) -> Any:
    if name not in _VERBS:
        raise AttributeError(f"module 'quantasr' has no attribute {name!r}")
    from quantasr.errors import MissingExtraError

    try:
        return getattr(import_module(_VERBS[name]), name)
    except ModuleNotFoundError as error:
        if error.name not in _WORKBENCH:
            raise
        raise MissingExtraError(f"quantasr.{name} needs {error.name}: pip install 'quantasr[quantize]'") from None


class _Package(ModuleType):
    """This package; importing ``quantasr.quantize`` must not put that package where the verb of its name belongs."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _VERBS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
