"""Random numbers that depend on names alone: the same whatever was drawn before, in whichever process."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(*names: int | str) -> np.random.Generator:
    """A generator for what ``names`` say: a seed, an epoch, an id, a purpose."""
    text = "\0".join(map(str, names))
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little"))


def rank(seed: int, name: str) -> int:
    """A number of 64 bits that orders names at random."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:8], "little")
