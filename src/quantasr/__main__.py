"""``python -m quantasr``."""

from quantasr.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
