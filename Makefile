# Everything a contributor types. `make setup` is quick the second time: it runs again only when its inputs change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LS_VENV := .venv-label-studio
WORKSPACE ?= demo-workspace

.PHONY: setup demo test check check-long bench bench-peers review label-studio label-studio-install system clean

setup: $(STAMP)

# torch comes first and exactly pinned: a range would pull gigabytes of CUDA packages onto a machine without a GPU.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else f"Tilth needs Python 3.11 to 3.13, and $(PYTHON) is {v[0]}.{v[1]}. Run: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (about two minutes the first time)"
	@$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

# A browser and a PostgreSQL server for the tests that use them: installed where apt runs as root, used where present.
system:
	@sh tests/system.sh

demo: setup
	@$(BIN)/tilth demo

# Two workers, a file each at a time: most tests wait for processes, servers and disks.
test: setup system label-studio-install
	@$(BIN)/python -m pytest -n 2 --dist loadfile

check: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/python -m pytest tests/test_architecture.py tests/curation -m 'not slow and not gpu and not server and not browser'

check-long: setup system label-studio-install
	@$(BIN)/python -m pytest -m 'slow and not gpu' --timeout 7200

bench: setup
	@$(BIN)/python -m tests.bench

# The tools that tests/bench/dedup.py is measured beside have an environment of their own.
bench-peers: .venv-bench/.installed

.venv-bench/.installed:
	@test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	@.venv-bench/bin/pip install --quiet --disable-pip-version-check rensa==0.5.0 daft==0.7.26 text-dedup==0.4.0
	@touch $@

review: setup
	@$(BIN)/tilth --workspace $(WORKSPACE) review

label-studio: setup label-studio-install
	@$(BIN)/python -m apps.label_studio_server

label-studio-install: $(LS_VENV)/.installed

# The server has an environment of its own: its pins would hold ours down.
$(LS_VENV)/.installed:
	@test -x $(LS_VENV)/bin/python || $(PYTHON) -m venv $(LS_VENV)
	@echo "Installing Label Studio into $(LS_VENV) (about a minute)"
	@$(LS_VENV)/bin/pip install --quiet --disable-pip-version-check label-studio==1.23.2
	@touch $@

clean:
	rm -rf $(VENV) $(LS_VENV) .venv-bench demo-workspace
