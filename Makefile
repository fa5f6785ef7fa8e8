# `make demo` and `make test` do everything on a machine that has python3.11, gcc and make.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
VENV_QONNX := .venv-qonnx
VENV_PEERS := .venv-peers
VENV_TIMM := .venv-timm

.PHONY: venv venv-qonnx venv-timm venv-peers emulation demo test test-all lint format lock clean

venv: $(VENV)/.stamp

$(VENV)/.stamp: requirements/development.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/development.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

# qonnx needs an older onnx than we do: reference results for QONNX models come from an environment of their own.
venv-qonnx: $(VENV_QONNX)/.stamp

$(VENV_QONNX)/.stamp: requirements/qonnx.lock
	test -x $(VENV_QONNX)/bin/python || $(PYTHON) -m venv $(VENV_QONNX)
	$(VENV_QONNX)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/qonnx.lock
	touch $@

# timm wants torchvision, which the benchmarks replace by a stand-in: a folder of its own, beside what it needs else.
venv-timm: $(VENV_TIMM)/.stamp

$(VENV_TIMM)/.stamp: requirements/timm.lock $(VENV)/.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --no-deps --target $(VENV_TIMM) \
		-r requirements/timm.lock
	touch $@

# OpenVINO and NNCF, which `python -m benchmarks.cpu` compares with: large, and needed for nothing else.
venv-peers: $(VENV_PEERS)/.stamp

$(VENV_PEERS)/.stamp: requirements/peers.lock
	test -x $(VENV_PEERS)/bin/python || $(PYTHON) -m venv $(VENV_PEERS)
	$(VENV_PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/peers.lock
	touch $@

# QEMU and a Python for aarch64, which the tests of code for other processors run (and skip without): from Debian's
# packages and PyPI, without root.
emulation: build/emulation/complete

build/emulation/complete: tests/backends/tvm/emulation.py requirements/emulation.lock requirements/development.lock | $(VENV)/.stamp
	$(BIN)/python -m tests.backends.tvm.emulation

demo: venv
	$(BIN)/python examples/digits.py

# One worker a core; libraries that start threads of their own would only get in each other's way.
test: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

test-all: venv venv-qonnx
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "" --hypothesis-profile=explore

lint: venv
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: venv
	$(BIN)/ruff check --fix .

# Writes down what the environments hold now. torch's local version (+cpu) is left to the index that is used.
lock:
	$(BIN)/python -m pip freeze --exclude-editable --exclude pip --all | sed 's/+cpu$$//' > requirements/development.lock
	$(VENV_QONNX)/bin/python -m pip freeze --exclude pip > requirements/qonnx.lock
	$(VENV_PEERS)/bin/python -m pip freeze --exclude pip > requirements/peers.lock

clean:
	rm -rf $(VENV) $(VENV_QONNX) $(VENV_TIMM) $(VENV_PEERS) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
