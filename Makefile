# make demo   the whole product on a lab of three nodes, from nothing to a served request
# make test   everything that is checked
# LONG=1      with any of these: also what takes many minutes (a board under the playbook, a kubelet, an outage of an hour)
# make bench  every figure, or ONLY=those whose names begin so; BENCH="--rounds 5" for a shorter look
# Each target does its own set-up (tests/setup.sh: Debian packages, virtual environment, node image; all cached).

SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: unit lint bpf integration molecule sanity e2e test demo demo-down bench

PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest -q
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg

unit:
	@tests/setup.sh venv
	DEPTH=$${DEPTH:-0.25} $(PYTEST) -n auto tests/unit

lint:
	@tests/setup.sh venv
	ruff check .
	ruff format --check .
	mypy daemons/src/netstack
	PYTHONPATH=daemons/src:tests lint-imports
	tests/lint-collection.sh

bpf:
	@tests/setup.sh packages venv headers
	$(PYTEST) tests/bpf

integration:
	@tests/setup.sh packages venv headers image kernels controlplane
	$(PYTEST) tests/integration

molecule:
	@tests/setup.sh packages venv headers image
	tests/molecule.sh

sanity:
	@tests/setup.sh packages venv
	tests/sanity.sh

e2e:
	@tests/setup.sh packages venv headers image controlplane
	$(PYTEST) tests/e2e

test: export DEPTH ?= 8
test: unit lint bpf integration sanity molecule e2e

demo:
	@tests/setup.sh packages venv headers image $(if $(filter kubernetes,$(NETSTACK_SOURCE)),controlplane)
	$(PYTHON) tests/e2e/demo.py

demo-down:
	@tests/setup.sh venv
	cd tests && ../$(PYTHON) -m lab down

bench:
	@tests/setup.sh packages venv headers image controlplane bench
	cd tests && PYTHONPATH=../daemons/src:. ../$(PYTHON) -m bench $(ONLY) $(BENCH)
