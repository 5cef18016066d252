"""Transcribe recordings with an artifact; needs no PyTorch.

python examples/transcribe.py ARTIFACT AUDIO...
"""

import sys

import quantasr

recogniser = quantasr.load(sys.argv[1])
for path in sys.argv[2:]:
    print(recogniser.transcribe_file(path).text)
