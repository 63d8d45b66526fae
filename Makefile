# Everything is called through here: by people, by .ci/run and by the workflow files.
#
#   make demo    set up, fetch real tokenizers, text and a model; align them, and distill the model
#                (STEPS=5 make demo is a smoke run of its training)
#   make test    all checks: Rust, the core with numpy alone, lint and types, everything else
#   make wheel   the wheel that old systems install, and the source distribution, into dist/; tested with numpy alone
#   make bench   speed of alignment beside its peers -> benches/results/align.json
#   make bench-limits   long rows, memory, threads, building, Ctrl-C -> benches/results/limits.json
#   make bench-large   ten million tokens through `dskd align`, killed and resumed -> benches/results/large.json
#   make proof   what alignment finds, beside what exists -> benches/results/recall.json, differences.json
#
# Tests run against the installed wheel, never against the tree.

PYTHON ?= python3
STEPS ?= 50
ZIG ?= --zig --compatibility manylinux_2_17
VENV_BIN ?= bin
BIN := .venv/$(VENV_BIN)
CORE_BIN := .venv-core/$(VENV_BIN)
WHEEL = $$(ls build/wheels/dskd-*.whl)

SOURCES := Cargo.toml Cargo.lock pyproject.toml README.md LICENSE $(wildcard rust/*.rs) \
	$(shell find python -name '*.py' -o -name '*.pyi' -o -name 'py.typed')
# What runs where there is numpy, pytest and hypothesis and nothing else.
CORE_TESTS := tests/test_align.py tests/test_faults_input.py tests/test_import.py tests/test_overlaps.py \
	tests/test_processes.py tests/test_ragged.py tests/test_reference.py tests/test_to_student.py tests/test_vocabulary.py \
	tests/test_vocabulary_map.py

.PHONY: demo test test-rust test-core test-full lint format wheel bench bench-limits bench-large proof clean
.DELETE_ON_ERROR:

demo: $(BIN)/demo.stamp
	$(BIN)/python examples/demo.py
	$(BIN)/python examples/distill.py --steps $(STEPS)

test: test-rust test-core lint test-full

test-rust:
	cargo test --quiet

test-core: $(CORE_BIN)/core.stamp
	$(CORE_BIN)/python -m pytest -q $(CORE_TESTS)

test-full: $(BIN)/dev.stamp
	$(BIN)/python -m pytest -q

lint: $(BIN)/dev.stamp
	cargo fmt --check
	cargo clippy --quiet --all-targets -- -D warnings
	cargo clippy --quiet --all-targets --features python -- -D warnings
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	cd build && ../$(BIN)/python -m mypy.stubtest dskd._core

format: $(BIN)/dev.stamp
	cargo fmt
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(BIN)/dev.stamp
	$(BIN)/python benches/align.py --output benches/results/align.json

bench-limits: $(BIN)/dev.stamp
	$(BIN)/python benches/limits.py --output benches/results/limits.json

bench-large: $(BIN)/dev.stamp
	$(BIN)/python benches/large.py

proof: $(BIN)/dev.stamp
	$(BIN)/python benches/recall.py
	$(BIN)/python benches/differences.py

# A manylinux_2_17 wheel needs no old system to be built on, only zig as its linker; elsewhere ZIG= is empty.
wheel: | $(BIN)/maturin
	rm -rf dist
	$(BIN)/python -m pip install --quiet "ziglang>=0.13"
	PATH="$(CURDIR)/$(BIN):$$PATH" maturin build --quiet --release $(ZIG) --out dist
	$(BIN)/maturin sdist --out dist
	$(PYTHON) -m venv --clear build/wheel-env
	build/wheel-env/$(VENV_BIN)/python -m pip install --quiet dist/*.whl pytest pytest-timeout hypothesis
	build/wheel-env/$(VENV_BIN)/python -m pytest -q $(CORE_TESTS)
	$(PYTHON) -m venv --clear build/sdist-env
	build/sdist-env/$(VENV_BIN)/python -m pip install --quiet dist/*.tar.gz
	cd build && sdist-env/$(VENV_BIN)/python -c "import dskd; print('dskd', dskd.__version__, 'from its source distribution')"

build/wheel.stamp: $(SOURCES) | $(BIN)/maturin
	rm -rf build/wheels
	$(BIN)/maturin build --quiet --release --out build/wheels
	touch $@

$(CORE_BIN)/core.stamp: build/wheel.stamp | $(CORE_BIN)/python
	$(CORE_BIN)/python -m pip install --quiet numpy pytest pytest-timeout hypothesis
	$(CORE_BIN)/python -m pip install --quiet --force-reinstall --no-deps $(WHEEL)
	touch $@

$(BIN)/demo.stamp: build/wheel.stamp
	$(BIN)/python -m pip install --quiet "$(WHEEL)[demo]"
	$(BIN)/python -m pip install --quiet --force-reinstall --no-deps $(WHEEL)
	touch $@

$(BIN)/dev.stamp: $(BIN)/demo.stamp
	$(BIN)/python -m pip install --quiet "$(WHEEL)[dev]"
	touch $@

$(BIN)/maturin:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "maturin>=1.9.4,<2"

$(CORE_BIN)/python:
	$(PYTHON) -m venv .venv-core

clean:
	rm -rf build target .venv .venv-core demo python/dskd/*.so
