"""The families of errors. Each says what is wrong, where, and what to do, in one line.

Every family is also the closest builtin, so that code which knows nothing of quantasr can catch it.
"""


class QuantasrError(Exception):
    """Base of every error that quantasr raises on purpose; the command line prints it as one line."""


class ModelLoadError(QuantasrError, ValueError):
    """A model folder or hub id cannot be loaded, or what it holds is not usable."""


class KaldiFileError(ModelLoadError):
    """A file of Kaldi or OpenFst is not what it should be; names the file and the byte offset."""


class RecipeError(QuantasrError, ValueError):
    """A recipe is malformed, names something unknown, or matches no layer."""


class CalibrationError(QuantasrError, ValueError):
    """There is no calibration data, or what there is cannot give a scale."""


class ManifestError(QuantasrError, ValueError):
    """A manifest cannot be read; names the file and the line."""


class AudioError(QuantasrError, ValueError):
    """An audio file or array cannot be used; names the file."""


class TrainingError(QuantasrError, ValueError):
    """Training cannot start or go on: its data, options, run folder or checkpoint do not fit."""


class ArtifactError(QuantasrError, ValueError):
    """An artifact folder is incomplete, changed, too new, or failed its parity check."""


class EngineError(QuantasrError, RuntimeError):
    """An engine is unknown, not installed, or refuses the graph."""


class MissingExtraError(QuantasrError, ImportError):
    """Something needs a library that is not installed; names the pip extra that brings it."""
