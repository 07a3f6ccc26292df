# Two commands for a newcomer: `make demo` and `make test`. Nothing outside this folder is touched, except that
# uv is installed with pip when it is missing (into .venv-uv, here).

VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null || echo .venv-uv/bin/uv)
PYTHON ?= python3
STAMP := $(VENV)/.installed
SOURCES := pyproject.toml constraints.txt

.PHONY: demo test install lint types clean

$(STAMP): $(SOURCES)
	@command -v uv >/dev/null 2>&1 || [ -x .venv-uv/bin/uv ] || { \
	  echo "+ installing uv into .venv-uv"; $(PYTHON) -m venv .venv-uv && .venv-uv/bin/python -m pip install -q uv; }
	@[ -x $(BIN)/python ] || $(UV) venv -q --python '>=3.11' $(VENV)
	$(UV) pip install -q --compile-bytecode --python $(BIN)/python -c constraints.txt -e . --group dev
	$(UV) pip install -q --compile-bytecode --python $(BIN)/python -c constraints.txt --no-deps -e plugins/example
	@touch $@

install: $(STAMP)

DEMO := runs/demo_phantom

demo: $(STAMP)
	@bash -c 'set -e; run() { printf "\n$$ %s\n" "$$*"; "$$@"; }; export PATH="$(CURDIR)/$(BIN):$$PATH"; \
	  run cxrlt prepare phantom data/phantom --count 4000 --size 96; \
	  run cxrlt train recipes/demo_phantom.yaml; \
	  run cxrlt evaluate $(DEMO) --split dev; \
	  run cxrlt predict $(DEMO) docs/images/samples -o $(DEMO)/samples.csv'

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .venv-uv .pytest_cache .mypy_cache .ruff_cache
