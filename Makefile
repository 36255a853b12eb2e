# Everything a contributor runs, one target each. `make` lists them.
.DEFAULT_GOAL := help
.PHONY: help release setup servers requirements generate check test test-slow test-numeric matrix support e2e e2e-matrix demo cluster-up cluster-down bench bench-methods
SHELL := /bin/bash
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export HF_HUB_DISABLE_TELEMETRY := 1
export DO_NOT_TRACK := 1
# Without bytecode each of hundreds of processes would compile torch and transformers anew: 20 s of CPU each.
unexport PYTHONDONTWRITEBYTECODE

CRD := charts/finetune-operator/files/finetunejobs.yaml

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make .venv with everything, pinned by hash (nothing to do: under a second)
	@requirements/setup.sh

requirements: setup ## resolve requirements/*.in anew into requirements/*.txt (UPGRADE=1: newest versions)
	@UV="$$(ls -d $${XDG_CACHE_HOME:-$$HOME/.cache}/finetune-operator/uv/$$(sha256sum requirements/bootstrap.txt | cut -c1-12)/bin/uv)" \
		requirements/compile.sh $(if $(UPGRADE),--upgrade)

generate: setup ## write the CRD, the chart's copy of it and its values' types, docs/api.md, the README's table and the picture of rooms
	python -m finetune_api.crd > crds/finetunejobs.yaml
	cp crds/finetunejobs.yaml $(CRD)
	python -m finetune_api.values charts/finetune-operator/values.schema.json
	python -m finetune_api.reference > docs/api.md
	python benchmarks/methods_table.py
	python tests/contract/rooms.py

check: setup ## form: lint, types, layers, generated files, chart
	ruff check .
	ruff format --check .
	mypy
	lint-imports --no-cache
	cmp crds/finetunejobs.yaml <(python -m finetune_api.crd)
	cmp crds/finetunejobs.yaml $(CRD)
	python -m finetune_api.values charts/finetune-operator/values.schema.json --check
	cmp docs/api.md <(python -m finetune_api.reference)
	python benchmarks/methods_table.py --check
	python tests/contract/rooms.py --check
	$$(python tests/cluster binaries helm) lint --strict --quiet charts/finetune-operator

# A machine that has none builds the API server for minutes: longer than any one test may take.
servers: setup
	-@python tests/cluster binaries etcd kube-apiserver kube-controller-manager kubectl helm >/dev/null

test: servers ## every test that is not slow and needs no cluster, on a real API server
	pytest -m "not slow and not e2e and not real and not matrix" --numprocesses 3 --dist loadfile

test-slow: servers ## those that `make test` leaves out: processes that load torch, clusters of their own, more models
	pytest -m "slow and not e2e and not real and not matrix" --numprocesses 3 --dist loadfile

test-numeric: setup ## what compares by a tolerance, on the kernels of other processors and with other roundings
	tests/numeric.sh

matrix: setup ## every method with every objective on every model family, beyond the pairs that `make test` runs
	pytest -m matrix --numprocesses 2 --dist loadscope tests/smoke/test_train_pairs.py

support: setup ## all of these, and note for the README what passed
	pytest -p support --numprocesses 2 --dist loadscope tests/smoke/test_train_pairs.py

e2e: setup ## every example on a real cluster (CLUSTER=current: the current kubectl context)
	pytest -m "e2e and not matrix" -v tests/e2e

e2e-matrix: setup ## the examples of all methods too, in half an hour more
	pytest -m "e2e and matrix" -v tests/e2e

demo: setup ## a real fine-tune on a real cluster, from nothing to a verified adapter
	@examples/demo.sh

cluster-up: ## a local Kubernetes: kind where Docker runs, else a node in its own namespaces (root)
	python3 tests/cluster up

cluster-down: ## remove it, and all that it made
	python3 tests/cluster down

release: setup ## raise the version everywhere: make release VERSION=0.2.0 (RELEASE.md)
	python tests/contract/versions.py "$(VERSION)"

bench: setup ## print the tables of docs/benchmarks.md again
	benchmarks/run.sh

bench-methods: setup ## measure every method, and write the table and the picture of docs/methods.md
	python examples/assets.py "$${XDG_CACHE_HOME:-$$HOME/.cache}/finetune-operator/assets/out"
	python benchmarks/methods.py --write
