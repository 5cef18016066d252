"""The version, apart from everything, so that anything can import it."""

__version__ = "0.1.0"
