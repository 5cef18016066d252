# Each target does its own set-up in .venv; all that is needed is Python 3.11 or 3.12, git and a C compiler.

VENV := .venv
BIN := $(VENV)/bin
SUPPORTED := import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	$$p -c '$(SUPPORTED)' >/dev/null 2>&1 && echo $$p && break; done)

# torchaudio's wheels on PyPI are linked to CUDA. Beside a CPU build of PyTorch these cannot be loaded, and the import
# fails; without them it does not, and SpeechBrain uses none of them.
TORCHAUDIO := $(VENV)/lib/python3.*/site-packages/torchaudio/lib/*.so

.PHONY: demo test test-cpus lint format clean bench-setup

demo: $(VENV)/ready  ## quantize the sample recogniser and show its WER and speed before and after
	$(BIN)/quantasr demo

# A file of tests stays in one process: what is costly to make is made once for it.
test: lint  ## everything that CI runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

test-cpus: $(VENV)/ready  ## what depends on the CPU, as on others (QEMU, installed where it may be)
	$(BIN)/python tests/cpus/run.py --install

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "quantasr needs Python 3.11 or 3.12: install one, or name it: make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[all,test]'
	@$(BIN)/python -c 'import torchaudio' 2>/dev/null || rm -f $(TORCHAUDIO)
	@$(BIN)/python -c 'import torchaudio' >/dev/null
	touch $@

clean:
	rm -rf $(VENV) build dist src/*.egg-info

bench-setup: $(VENV)/ready  ## what the benchmarks need besides
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[benchmarks]'
