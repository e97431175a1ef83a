# `make demo` shows the plugin at work, `make test` runs all checks. Both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all check lint style types examples bench device ecosystem docs matrix clean

demo: .venv/ready
	@$(BIN)/python examples/digits/demo.py

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not repetition"

# All tests, and those of xdist once more with workers that are started as in a user's run, not forked.
test-all: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal --hypothesis-profile=many
	$(BIN)/python -m pytest -n 2 --new-processes -m xdist

# The fast tests of the core: those that start no suite, process or compiler.
check: style types
	$(BIN)/python -m pytest -q -n 2 -m "not (slow or repetition)" tests/rules tests/report tests/observe/source tests/observe/model_code tests/observe/calls tests/observe/forwards \
		tests/test_guards.py tests/test_evaluation.py tests/test_strict.py tests/test_subpackages.py tests/test_policy.py

lint: style types examples

style: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready
	$(BIN)/mypy
	[ ! -d ecosystem ] || $(BIN)/mypy ecosystem

# The examples share a cache, so that mypy analyzes torch only once.
examples: .venv/ready
	for example in $(sort $(dir $(wildcard examples/*/*.py))); do \
		(cd $$example && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache/examples .) || exit 1; \
	done

bench: .venv/ready
	$(BIN)/python -m benchmarks

device: .venv/ready
	$(BIN)/python -m pytest tests/device

# Public architectures and test suites, compared with the record: `make ecosystem ONLY=timm,zuko` for some of them.
ecosystem: .venv/ready
	@$(BIN)/python -m ecosystem $(if $(ONLY),--only $(ONLY)) $(if $(SHARD),--shard $(SHARD)) $(if $(ACCEPT),--accept)

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
