# Everything a contributor runs, one target each. `make` lists them.
.DEFAULT_GOAL := help
.PHONY: help setup requirements

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make .venv with everything, pinned by hash (nothing to do: under a second)
	@requirements/setup.sh

requirements: setup ## resolve requirements/*.in anew into requirements/*.txt (UPGRADE=1: newest versions)
	@UV="$$(ls -d $${XDG_CACHE_HOME:-$$HOME/.cache}/finetune-operator/uv/$$(sha256sum requirements/bootstrap.txt | cut -c1-12)/bin/uv)" \
		requirements/compile.sh $(if $(UPGRADE),--upgrade)
