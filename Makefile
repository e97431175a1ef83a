# `make demo` shows what the plugin does, `make test` checks all of it; both set up what they need in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check lint style types examples bench device docs matrix clean

demo: .venv/ready
	@$(BIN)/python examples/digits/demo.py

test: lint
	$(BIN)/python -m pytest -n 2

# Of the tests those of the core that run no suite, process or compiler of their own.
check: style types
	$(BIN)/python -m pytest -q -n 2 -m "not slow" tests/rules tests/report tests/observe/source tests/observe/calls tests/observe/forwards \
		tests/test_guards.py tests/test_evaluation.py tests/test_strict.py tests/test_rooms.py tests/test_policy.py

lint: style types examples

style: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready
	$(BIN)/mypy

# What mypy has read of torch for one example it need not read again for the next.
examples: .venv/ready
	for example in $(sort $(dir $(wildcard examples/*/*.py))); do \
		(cd $$example && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache/examples .) || exit 1; \
	done

bench: .venv/ready
	$(BIN)/python -m benchmarks

device: .venv/ready
	$(BIN)/python -m pytest tests/device

docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir .venv/site
	@echo "file://$(CURDIR)/.venv/site/index.html"

matrix: .venv/ready
	$(BIN)/nox

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable . --group dev
	touch $@

clean:
	rm -rf .venv .nox .mypy_cache .pytest_cache .ruff_cache .hypothesis
