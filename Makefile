# The two that everybody needs: `make run` and `make test`. A machine with Python ≥ 3.10 and make is enough for both.
PYTHON ?= python3
BIN := .venv/bin
export UV_LINK_MODE := copy
unexport PYTHONDONTWRITEBYTECODE  # a start that compiles everything anew takes three times as long

.PHONY: run test check fix bench compat cassettes fuzz dist key

run: .venv/run config.yaml key  ## start the proxy; ARGS="--port 9000" are passed on
	@exec $(BIN)/python -m main $(ARGS)

test: .venv/test check  ## in under five minutes; ALL=1 adds what takes longer, as CI does; PYTEST="-k name" takes what it names
	$(BIN)/python -m pytest $(if $(ALL)$(PYTEST),,-m "not long") $(PYTEST)

check: .venv/test  ## ruff, mypy --strict, floors and line counts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tests/floors.py

fix: .venv/test  ## what ruff can mend by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/test  ## our own part of the benchmarks, as ratios of one run
	$(BIN)/python benchmarks/bench.py $(ARGS)

compat: .venv/test  ## writes docs/compatibility.md from what real clients can do
	$(BIN)/python -m pytest tests/test_compatibility.py --compat docs/compatibility.md

cassettes: .venv/test  ## records tests/cassettes anew, from the test doubles
	$(BIN)/python tests/recording.py

fuzz: .venv/test  ## random requests through every pair of APIs; COUNT=10000 for each, PAIR=gemini-ollama for one
	$(BIN)/python -m tests.fuzz --count $(or $(COUNT),1000) $(if $(PAIR),--pair $(PAIR))

dist: .venv/dist  ## one file with everything in it: dist/mooltiproxy.pyz
	$(BIN)/python deploy/dist.py --packages .venv/dist

key:
	@[ -n "$$MOOLTIPROXY_KEY" ] || grep -qsE '^[[:space:]]*(export[[:space:]]+)?MOOLTIPROXY_KEY[[:space:]]*=[[:space:]]*[^[:space:]]' .env || { umask 077; \
	  echo "MOOLTIPROXY_KEY=$$($(BIN)/python -c 'import secrets; print(secrets.token_urlsafe(24))')" >> .env; chmod 600 .env; \
	  echo "made a master key: MOOLTIPROXY_KEY in .env"; }

config.yaml:
	cp config.template.yaml config.yaml

.venv/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	@touch $@

.venv/run: .venv/python requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/dist: .venv/python deploy/requirements-dist.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --upgrade --target $@ -r deploy/requirements-dist.txt
	@touch $@

.venv/test: .venv/run requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements-dev.txt
	@touch $@
