"""Lists of utterances: which recording, which part of it, and what was said."""

from quantasr.speech.manifest.ivectors import with_ivectors
from quantasr.speech.manifest.overlap import check_disjoint
from quantasr.speech.manifest.read import FORMATS, detect_format, read_manifest, stream_manifest
from quantasr.speech.manifest.utterance import Utterance, require_texts
from quantasr.speech.manifest.write import write_manifest

__all__ = [
    "FORMATS",
    "Utterance",
    "check_disjoint",
    "detect_format",
    "read_manifest",
    "require_texts",
    "stream_manifest",
    "with_ivectors",
    "write_manifest",
]
