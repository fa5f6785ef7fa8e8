# `make demo` and `make test` do everything on a machine that has python3.11, gcc and make.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
VENV_QONNX := .venv-qonnx

.PHONY: venv venv-qonnx demo test test-all lint format lock clean

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

clean:
	rm -rf $(VENV) $(VENV_QONNX) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
