# Everything is called through here: by people, by .ci/run and by the workflow files.
#
#   make demo    set up, fetch real tokenizers, text and a model; align them, and distill the model
#                (STEPS=5 make demo is a smoke run of its training)
#   make test    all checks: Rust, the core with numpy alone, lint and types, everything else
#   make fuzz    inputs that coverage leads to, a minute a target (SECONDS_A_TARGET=1200 make fuzz for longer)
#   make test-kernels   the tests of the losses with other kernels than this machine's own
#   make test-debug   the tests of the core on a build that checks overflow and its own assertions; all
#                tests with TESTS=tests
#   make wheel   the wheel that old systems install, and the source distribution, into dist/; tested with numpy alone
#   make bench   speed of alignment beside its peers -> benches/results/align.json
#   make bench-limits   long rows, memory, threads, building, Ctrl-C -> benches/results/limits.json
#   make bench-large   ten million tokens through `dskd align`, killed and resumed -> benches/results/large.json
#   make bench-projectors   solving projectors beside pinv, and what they say -> benches/results/projectors.json
#   make bench-loss   time and peak memory of the fused losses -> benches/results/loss.json
#   make test-gpu   the losses on a GPU are their definitions; says so where there is none
#   make bench-gpu   their speed and memory there, beside its own products and peers -> benches/results/gpu.json
#   make study   what dual space gains, option by option, and why -> benches/results/study.json; two to
#                three hours by estimate, and it goes on where it was cut; FAST=1 make study is a smoke run
#   make proof   what alignment finds, beside what exists -> benches/results/recall.json, differences.json
#
# Tests run against the installed wheel, never against the tree, in WORKERS processes (WORKERS=8 make test).

PYTHON ?= python3
STEPS ?= 50
SECONDS_A_TARGET ?= 60
WORKERS ?= 2
FUZZ_TARGETS ?= rows one_text decode
ZIG ?= --zig --compatibility manylinux_2_17
VENV_BIN ?= bin
BIN := .venv/$(VENV_BIN)
CORE_BIN := .venv-core/$(VENV_BIN)
DEBUG_BIN := .venv-debug/$(VENV_BIN)
WHEEL = $$(ls build/wheels/dskd-*.whl)
# The tests of a file stay in one process, whose fixtures they share. Files go by their names: by the number of
# their tests, those with few long ones would be last, and the other processes wait for them.
PYTEST := -m pytest -q --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
TESTING := pytest pytest-timeout pytest-xdist hypothesis

SOURCES := Cargo.toml Cargo.lock pyproject.toml README.md LICENSE $(shell find rust -name '*.rs') \
	$(shell find python -name '*.py' -o -name '*.pyi' -o -name 'py.typed')
# What runs where there is numpy, pytest and hypothesis and nothing else.
CORE_TESTS := tests/test_align.py tests/test_faults_input.py tests/test_import.py tests/test_overlaps.py \
	tests/test_processes.py tests/test_ragged.py tests/test_reference.py tests/test_resync.py tests/test_to_student.py \
	tests/test_vocabulary.py tests/test_vocabulary_map.py

# What computes with floating-point numbers.
NUMERICS := $(foreach name,alm closed_forms contract cross_entropy cross_model_attention divergences dual_space \
	elementwise frozen heads key_query_matching linear logits objective products projectors rounding \
	shared_vocabulary strict_top_k teacher_statistics uld unreachable,tests/test_$(name).py)

.PHONY: demo test test-rust test-core test-full test-kernels test-debug fuzz lint format wheel bench bench-limits bench-large \
	bench-projectors bench-loss test-gpu bench-gpu study proof clean
.DELETE_ON_ERROR:

demo: $(BIN)/demo.stamp
	$(BIN)/python examples/demo.py
	$(BIN)/python examples/distill.py --steps $(STEPS)

test: test-rust test-core lint test-full

test-rust:
	cargo test --quiet

test-core: $(CORE_BIN)/core.stamp
	$(CORE_BIN)/python $(PYTEST) $(CORE_TESTS)

# Products are small here: a thread a process, and as many processes as there is room for.
test-full: $(BIN)/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST)

# Kernels that round otherwise than those of the machine at hand: without vector instructions, in one thread; and
# with those of most machines, in two, the products by the other library. Threads that wait for one another sleep:
# those that turn keep the one that they wait for from running.
test-kernels: $(BIN)/dev.stamp
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE OMP_NUM_THREADS=1 \
		$(BIN)/python $(PYTEST) $(NUMERICS)
	ATEN_CPU_CAPABILITY=avx2 OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive \
		$(BIN)/python $(PYTEST) --without-onednn $(NUMERICS)

# A build of its own in an environment of its own, so that what is measured stays the release build. TESTS=tests
# is the whole suite, which needs what [dev] installs.
test-debug: TESTS ?= $(CORE_TESTS)
test-debug: $(DEBUG_BIN)/core.stamp
	$(if $(filter tests,$(TESTS)),$(DEBUG_BIN)/python -m pip install --quiet "$$(ls build/debug-wheels/dskd-*.whl)[dev]")
	$(DEBUG_BIN)/python $(PYTEST) $(TESTS)

# cargo-fuzz wants a nightly compiler; RUSTC_BOOTSTRAP lets the stable one do, and there is no unsafe code for a
# sanitizer to watch. libFuzzer is C++, so this needs a C++ compiler besides. Inputs and logs stay in
# build/fuzz, an input that fails in fuzz/artifacts.
fuzz: build/cargo-tools/bin/cargo-fuzz
	@for target in $(FUZZ_TARGETS); do \
		mkdir -p build/fuzz/$$target && $(PYTHON) fuzz/seeds.py build/fuzz/$$target && \
		{ RUSTC_BOOTSTRAP=1 build/cargo-tools/bin/cargo-fuzz run --sanitizer none --no-trace-compares $$target build/fuzz/$$target -- \
			-max_total_time=$(SECONDS_A_TARGET) -max_len=4096 -len_control=0 -timeout=60 -print_final_stats=1 \
			> build/fuzz/$$target.log 2>&1 || { tail -n 60 build/fuzz/$$target.log; exit 1; }; } && \
		awk -v target=$$target '/number_of_executed_units/ { print target ": " $$2 " inputs" }' \
			build/fuzz/$$target.log || exit 1; \
	done

build/cargo-tools/bin/cargo-fuzz:
	cargo install --quiet --root build/cargo-tools cargo-fuzz --version 0.13.2 --locked

lint: $(BIN)/dev.stamp
	cargo fmt --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --quiet --all-targets -- -D warnings
	cargo clippy --quiet --all-targets --features python -- -D warnings
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	cd build && ../$(BIN)/python -m mypy.stubtest dskd._core

format: $(BIN)/dev.stamp
	cargo fmt
	cargo fmt --manifest-path fuzz/Cargo.toml
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(BIN)/dev.stamp
	$(BIN)/python benches/align.py

bench-limits: $(BIN)/dev.stamp
	$(BIN)/python benches/limits.py

bench-large: $(BIN)/dev.stamp
	$(BIN)/python benches/large.py

bench-projectors: $(BIN)/dev.stamp
	$(BIN)/python benches/projectors.py

bench-loss: $(BIN)/dev.stamp
	$(BIN)/python benches/loss.py

# Neither ran on a GPU yet. Peers are measured where they are installed: $(BIN)/pip install liger-kernel trl
test-gpu: $(BIN)/dev.stamp
	$(BIN)/python benches/gpu.py --test

bench-gpu: $(BIN)/dev.stamp
	$(BIN)/python benches/gpu.py --bench

study: $(BIN)/dev.stamp
	$(BIN)/python benches/study.py $(if $(FAST),--quick)

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
	$(CORE_BIN)/python -m pip install --quiet numpy $(TESTING)
	$(CORE_BIN)/python -m pip install --quiet --force-reinstall --no-deps $(WHEEL)
	touch $@

build/debug-wheel.stamp: $(SOURCES) | $(BIN)/maturin
	rm -rf build/debug-wheels
	$(BIN)/maturin build --quiet --profile checked --out build/debug-wheels
	touch $@

$(DEBUG_BIN)/core.stamp: build/debug-wheel.stamp | $(DEBUG_BIN)/python
	$(DEBUG_BIN)/python -m pip install --quiet numpy $(TESTING)
	$(DEBUG_BIN)/python -m pip install --quiet --force-reinstall --no-deps build/debug-wheels/dskd-*.whl
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

$(DEBUG_BIN)/python:
	$(PYTHON) -m venv .venv-debug

clean:
	rm -rf build target fuzz/target fuzz/artifacts .venv .venv-core .venv-debug demo python/dskd/*.so
