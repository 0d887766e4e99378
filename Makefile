# Every habit by name. `make` alone lists them.
# Needs python3 (3.11 or later) with venv, and git; everything else is set up here.

PY ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := edge,serving,partitioner,operator
PACKAGES := dovetail dovetail_partitioner dovetail_edge dovetail_serving dovetail_operator dovetail_cli
STAMP := $(VENV)/.installed
CRD := charts/dovetail/files/crds/hybriddeployments.dovetail.dev.yaml

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-cluster bench lint verify generate crds kube kube-cluster images constraints clean

help:  ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

setup: $(STAMP)  ## make .venv with everything the other targets use

$(BIN)/uv:
	@test -x $(BIN)/python || $(PY) -m venv $(VENV) || { \
	  echo "error: '$(PY) -m venv' failed; on Debian: apt-get install python3-venv" >&2; exit 3; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip -q
	$(BIN)/python -m pip install -q --disable-pip-version-check uv

$(STAMP): pyproject.toml constraints.txt | $(BIN)/uv
	$(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[$(EXTRAS)]' --group dev
	@touch $@

demo: setup  ## the main job: a real network, a slow device, a link that collapses; the cut moves
	$(BIN)/python examples/page_orientation/demo.py

test: setup  ## the default suite, under 12 minutes on 2 cores
	@$(BIN)/python -m tests.kube.binaries || \
	  echo "note: tests that need what is missing will be skipped, and say so" >&2
	$(BIN)/python -m pytest -q -m "not slow" -n 2

test-slow: setup  ## the rest of the suite: minutes each
	$(BIN)/python -m pytest -q -m slow

test-cluster: setup $(if $(KUBECONFIG),kube,kube-cluster images)  ## two real nodes on this machine (root), or the cluster of KUBECONFIG: install, answers, moves, failures
	$(BIN)/python -m pytest -q tests/cluster

bench: setup  ## measure what is promised; prints tables, writes bench/out/*.json
	$(BIN)/python -m bench

lint: setup  ## style, types, and the arrows between rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(addprefix -p ,$(PACKAGES))
	$(BIN)/lint-imports

crds: setup  ## write the CustomResourceDefinition from the types
	@mkdir -p $(dir $(CRD))
	@$(BIN)/python -m dovetail.crd > $(CRD).new && mv $(CRD).new $(CRD) || { rm -f $(CRD).new; exit 1; }

kube: setup  ## find, build or download the API server, kubectl, helm and DNS that tests use (Go; minutes when cold)
	@$(BIN)/python -m tests.kube.binaries
	@$(BIN)/python -m tests.kube.kuberay
	@$(BIN)/python -m tests.kube.definitions

kube-cluster: setup kube  ## find or build every program of a cluster (Go; 20 minutes when cold)
	@$(BIN)/python -c 'import sys; from tests.kube.binaries import CLUSTER, main; sys.exit(main(CLUSTER))'

images: setup  ## build the images of the rooms with podman, docker or buildah; print their sizes
	@$(BIN)/python -m tests.cluster.images

generate: setup crds  ## write what is generated from the code
	$(BIN)/python docs/generate.py

verify: generate  ## fail if anything generated differs from what is committed
	@git diff --exit-code -- docs charts || { echo "error: generated files differ; commit them" >&2; exit 1; }

constraints: | $(BIN)/uv  ## pin every dependency anew
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --upgrade --no-header --no-annotate \
	  --extra edge --extra serving --extra partitioner --extra operator --group dev \
	  -o constraints.txt pyproject.toml

clean:  ## remove what the targets made
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache bench/out
