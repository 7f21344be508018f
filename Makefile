# Every target sets up what it needs on a machine that has only Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PROVIDER := tests/director/rest/open_id_provider
GENERATED := protos/federation_pb2.py protos/federation_pb2.pyi protos/federation_pb2_grpc.py \
  protos/secure_sum_pb2.py protos/secure_sum_pb2.pyi

.PHONY: help setup system-packages demo test check bench protos openapi
.DEFAULT_GOAL := help

help: ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | column -t -s '|'

# torch first and pinned: its CPU wheel is then taken where one is provided, and nothing after it pulls in another build.
$(STAMP): pyproject.toml constraints.txt $(PROVIDER)/package-lock.json
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch==2.13.*
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	mkdir -p $(VENV)/open-id-provider
	cp $(PROVIDER)/package.json $(PROVIDER)/package-lock.json $(VENV)/open-id-provider
	cd $(VENV)/open-id-provider && PATH="$(abspath $(BIN)):$$PATH" npm ci --silent --no-audit --no-fund \
	  || echo "npm could not install the OpenID provider of the suite: its tests are skipped"
	touch $@

setup: $(STAMP) ## the virtual environment that all other targets use

# bubblewrap and other programs that tests start: installed for root, else named.
system-packages:
	.ci/system-packages

demo: $(STAMP) ## three hospitals train a pneumonia detector together, over mutual TLS, in a minute
	$(BIN)/fedveil demo

test: $(STAMP) system-packages ## all tests
	$(BIN)/pytest

check: $(STAMP) ## lint, format, types, and protobuf stubs equal to the committed ones
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python protos/generate.py --check

bench: $(STAMP) ## a round against the floor, on this machine
	$(BIN)/fedveil bench table

protos: $(STAMP) ## regenerate the protobuf stubs
	$(BIN)/python protos/generate.py

openapi: $(STAMP) ## write down the REST API's description anew
	$(BIN)/python -m fedveil.director.rest.app director/rest/openapi.json
