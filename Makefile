# make demo, make test: on a fresh machine both do all the set-up in .venv first. `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
# What pip installs where PYTHON has no torch of its own: any recent one with a GPU, a fixed one without.
TORCH ?= $(if $(shell command -v nvidia-smi 2>/dev/null),torch>=2.10,torch==2.13.0)
PYTEST_ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?=
GPU_RUN_ARGS ?=
REPORT_ARGS ?=

RUN := $(VENV)/bin/python
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.cu' -o -name '*.h') motarfuse/_build.py motarfuse/_toolchain.py
CHECKED := motarfuse kernels tools tests benchmarks setup.py

.PHONY: help demo test lint format types wheel kernel-report bench gpu-run build doctor clean

help:
	@echo "make demo        draw people, train, evaluate and report (about four minutes on two cores)"
	@echo "make test        the tests; PYTEST_ARGS='-k part_moments' for some of them"
	@echo "make lint        ruff: rules and format        make format      apply the format"
	@echo "make types       mypy"
	@echo "make wheel       build a wheel, install it in a clean environment and call it there"
	@echo "make kernel-report  compile every kernel without a GPU and fail on regressions;"
	@echo "                 REPORT_ARGS='--only part_moments --arch 90', REPORT_ARGS=--update writes the table"
	@echo "make bench       the benchmarks; BENCH_ARGS='-k motion_attention --device cuda' for some of them"
	@echo "make gpu-run     with an NVIDIA GPU: build, GPU tests, compute-sanitizer and benchmarks in nine minutes, no network;"
	@echo "                 GPU_RUN_ARGS='--only motion_attention --limit 5', GPU_RUN_ARGS=--dry-run shows the plan"
	@echo "make build       compile the native parts      make doctor      what works here"
	@echo "make clean       remove $(VENV) and everything built"
	@echo
	@echo "variables: PYTHON=$(PYTHON)  TORCH='$(TORCH)'  VENV=$(VENV)"

# One environment; each stamp says that an extra of pyproject.toml is installed in it.
$(VENV)/.ready-%: pyproject.toml setup.py tools/bootstrap.py $(SOURCES)
	"$(PYTHON)" tools/bootstrap.py --venv "$(VENV)" --extra "$*" --torch "$(TORCH)"
	@touch "$@"
.PRECIOUS: $(VENV)/.ready-%

demo: $(VENV)/.ready-tensorboard
	"$(RUN)" -m motarfuse demo $(DEMO_ARGS)

test: $(VENV)/.ready-test
	"$(RUN)" -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.ready-dev
	"$(RUN)" -m ruff check $(CHECKED)
	"$(RUN)" -m ruff format --check $(CHECKED)

format: $(VENV)/.ready-dev
	"$(RUN)" -m ruff check --fix $(CHECKED)
	"$(RUN)" -m ruff format $(CHECKED)

types: $(VENV)/.ready-dev
	"$(RUN)" -m mypy $(CHECKED)

wheel: $(VENV)/.ready-test
	"$(RUN)" tools/check_wheel.py --out dist

kernel-report: $(VENV)/.ready-test
	"$(RUN)" -m tools.kernel_report $(REPORT_ARGS)

bench: $(VENV)/.ready-bench
	"$(RUN)" -m pytest benchmarks/ --benchmark-only $(BENCH_ARGS)

# With the Python at hand and nothing installed: a machine with a GPU may have no network.
gpu-run:
	"$(PYTHON)" -m tools.gpu_run $(GPU_RUN_ARGS)

build: $(VENV)/.ready-tensorboard
	"$(RUN)" -m motarfuse build

doctor: $(VENV)/.ready-tensorboard
	"$(RUN)" -m motarfuse doctor

clean:
	rm -rf "$(VENV)" build dist *.egg-info motarfuse/*.so .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
