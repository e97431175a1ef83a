# `make demo` shows what the plugin does, `make test` checks all of it; both set up what they need in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check lint bench device clean

demo: .venv/ready
	@$(BIN)/python examples/digits/demo.py

test: lint
	$(BIN)/python -m pytest -n 2

check: lint
	$(BIN)/python -m pytest -q -n 2 tests/rules tests/observe/source tests/observe/calls tests/test_layering.py

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	for example in examples/*/; do (cd $$example && ../../$(BIN)/mypy --config-file ../../pyproject.toml .) || exit 1; done

bench: .venv/ready
	$(BIN)/python -m benchmarks

device: .venv/ready
	$(BIN)/python -m pytest tests/device

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable . --group dev
	touch $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
