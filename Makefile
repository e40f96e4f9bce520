# Everything a newcomer or a developer types. Needs Python 3.11+ and make, nothing else.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUN_READY := $(VENV)/.run-ready
DOCS_READY := $(VENV)/.docs-ready
AUDIT := build/audit/.venv
AUDIT_READY := $(AUDIT)/.ready
PYTHON := $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help demo dev docs docs-update test test-long test-cluster test-spark test-workers test-postgres combinations soak torture memory fuzz fuzz-cluster damage drift dagster-live lint types arrows check wheel fix bench bench-quick schema screenshots audit clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /make \1|/' | \
		awk -F'|' '{printf "  %-18s %s\n", $$1, $$2}'

# What the demo runs on: sqlite or postgres (a server from a wheel; nothing to install).
SOURCE ?= sqlite

demo: $(RUN_READY) ## mirror a year of real flights, prove it equal, in about a minute
	@SOURCE=$(SOURCE) $(BIN)/python -m examples.airline.demo || [ $$? = 130 ]

# By exec, so that what ends make ends it, too.
dev: $(RUN_READY) ## open the Dagster UI on the demo, with a writer going
	@exec env SOURCE=$(SOURCE) $(BIN)/python -m examples.airline.dev

# What both forms of the tests are parts of, and what each run draws of it: make test SEED=7 repeats one.
SUITE := not soak and not combination and not cluster
ifndef SEED
SEED := $(shell date +%s)
endif
DRAWN := echo "SEED=$(SEED)" && $(BIN)/python -m tests -n auto --maxprocesses 6 --dist worksteal --randomly-seed=$(SEED)

test: $(READY) ## run the tests: the short form, in less than eight minutes
	@$(DRAWN) -m "$(SUITE) and not long"

test-long: $(READY) ## run the rest of the tests: whatever 'make test' leaves out of what is drawn
	@$(DRAWN) -m "$(SUITE) and long"

# The version whose installed programs are used instead of the package's server: Debian's paths.
PG ?= 15

test-postgres: $(READY) ## run PostgreSQL's tests on an installed server: make test-postgres PG=15
	@RHEI_TEST_POSTGRES=$(PG) $(BIN)/python -m tests -n auto --maxprocesses 6 --dist worksteal \
		$(ARGS) $$(grep -rlE --include='*.py' 'dsn|PostgresWorld' tests/behaviour) tests/contract

combinations: $(READY) ## run tests in all the modes, captures and mirrors of which the suite draws some
	@$(BIN)/python -m tests -m '(each or pairs or turns) and not soak and not cluster' -n auto --maxprocesses 6 --dist worksteal

soak: $(READY) ## play thousands of random histories and crashes; then plot what a process takes
	@$(BIN)/python -m tests -m soak -o faulthandler_timeout=0
	@$(MAKE) memory

# Some cells only, or less: make torture ARGS="--minutes 10 --only 'postgres-logical temporal'"
torture: $(READY) ## play random histories, crashes and changes of the declaration for an hour
	@$(BIN)/python -m tests.torture $(ARGS)

# One pair only: make memory ARGS="3600 'SQLite, triggers' duckdb temporal"
memory: $(READY) ## plot memory, WAL and handles of each way over an hour's changes
	@$(BIN)/python -m benchmarks.memory $(ARGS)

fuzz: $(READY) ## ask both sides 51,200 generated queries, and compare
	@$(BIN)/python -m tests -m soak -o faulthandler_timeout=0 -n auto --maxprocesses 4 \
		-k many_random tests/behaviour/query/test_equal_answers.py

fuzz-cluster: $(READY) ## ask a Sail server 6,000 generated queries, and compare; installs 400 MB more
	@$(PIP) --no-compile -r requirements-cluster.lock
	@$(BIN)/python -m tests -m soak -o faulthandler_timeout=0 -k many_random \
		tests/behaviour/query/test_cluster.py tests/behaviour/query/test_cluster_by_size.py

# The scripts are not ours: make logic ARGS="select1.test select2.test --every 10"
logic: $(READY) ## ask both mirrors the queries of scripts for sqllogictest
	@$(BIN)/python -m benchmarks.sql_logic $(ARGS)

damage: $(READY) ## damage every file of every mirror in every way, and print what came of it
	@$(BIN)/python -m tests -m soak -s -o faulthandler_timeout=0 tests/behaviour/mirrors/test_damage.py

dagster-live: $(READY) ## run Dagster's processes, do to each what may happen, and measure
	@$(BIN)/python -m tests -m "soak or not soak" -s -o faulthandler_timeout=0 tests/dagster/test_live*.py $(ARGS)

# Some cells only: make drift ARGS="-k 'rename and temporal and not polling'"
drift: $(READY) ## do to tables whatever can be done to them, and print how each mirror fares
	@$(BIN)/python -m tests tests/behaviour/schema/test_drift.py -m soak -p tests.support.drift.table --tb=no \
		-n auto --maxprocesses 4 --dist worksteal -o faulthandler_timeout=0 $(ARGS)

lint: $(READY) ## check style
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(READY) ## check types
	@$(BIN)/mypy

arrows: $(READY) ## check that imports point inwards
	@$(BIN)/lint-imports

check: test lint types arrows test-long ## all of these

wheel: $(READY) ## build the package, install it into a fresh environment, and try it there
	@$(BIN)/python -m tests.try_wheel

fix: $(READY) ## format, and mend what can be mended by itself
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

# Some chapters only: make bench ARGS="cycles copy"
bench: $(READY) ## measure: cycles, copies, idle and trigger cost; a report in build/bench
	@$(BIN)/python -m benchmarks.run $(ARGS)

# After a change that is meant to cost: make bench-quick ARGS=--write, and commit the baseline.
bench-quick: $(READY) ## compare our CPU with a hand-written loop's, and name what got slower
	@$(BIN)/python -m benchmarks.quick $(ARGS)

schema: $(READY) ## write config/pipeline.schema.json
	@$(BIN)/python -c 'from rhei_pipeline.settings.model import schema_text; print(schema_text(), end="")' \
		> config/pipeline.schema.json

test-cluster: $(READY) ## run the tests that need a Sail server or a launcher; installs 400 MB more
	@$(PIP) --no-compile -r requirements-cluster.lock
	@$(BIN)/python -m tests -m cluster -o faulthandler_timeout=0 \
		tests/behaviour/query/test_cluster.py tests/behaviour/query/test_cluster_by_size.py \
		tests/behaviour/query/test_cluster_snapshots.py tests/behaviour/query/test_cluster_streams.py \
		tests/behaviour/query/test_cluster_of_processes.py \
		tests/behaviour/mirrors/test_failing_store.py \
		tests/behaviour/copy/test_ranges_in_a_failing_store.py \
		tests/behaviour/copy/test_turns_in_a_failing_store.py tests/docs/test_several_machines.py

# Spark itself is in an environment of its own: its package and that of its client share their names.
SPARK := build/spark

test-spark: $(READY) ## ask a Spark server what a Sail server is asked: ten minutes; needs Java 17, installs 1.4 GB
	@java -version 2>/dev/null || { echo "Spark needs Java 17 or later on the PATH" >&2; exit 1; }
	@$(PIP) --no-compile -r requirements-cluster.lock
	@[ -e $(SPARK)/.ready ] || { $(BIN)/python -m venv $(SPARK) && $(SPARK)/bin/python -m pip install --quiet \
		--no-compile --disable-pip-version-check 'pyspark[connect]==4.2.0' deltalake && touch $(SPARK)/.ready; }
	@RHEI_TESTS_SPARK=$(SPARK) $(BIN)/python -m tests -m cluster -o faulthandler_timeout=0 -p no:xdist \
		tests/behaviour/query/test_cluster.py tests/behaviour/query/test_cluster_by_size.py \
		tests/behaviour/query/test_cluster_streams.py

test-workers: $(READY) ## kill a worker of Celery, and its brokers, within copies: eleven minutes; installs 400 MB more
	@$(PIP) --no-compile -r requirements-cluster.lock
	@$(BIN)/python -m tests -m soak -o faulthandler_timeout=0 tests/dagster/test_several_workers.py

docs: $(DOCS_READY) ## build the documentation as a site, in build/site
	@NO_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict
	@echo "Open build/site/index.html"

docs-update: $(READY) ## write the reference and the answers of commands into the pages
	@PYTHONPATH=. $(BIN)/python docs/reference_pages.py
	@$(BIN)/python -m tests.docs.transcripts README.md docs/*.md

screenshots: $(RUN_READY) ## take the README's pictures of the Dagster UI; needs Chromium
	@SOURCE=$(SOURCE) $(BIN)/python -m examples.airline.screenshots

# The last step asks PyPI, and fails where it cannot ask: what it did not look up is not called safe.
audit: $(RUN_READY) $(AUDIT_READY) ## licences, an SBOM and known vulnerabilities of what is locked, in build/audit
	@$(AUDIT)/bin/pip-licenses --python=$(BIN)/python --order=license --format=markdown \
		--output-file=build/audit/licences.md
	@$(AUDIT)/bin/cyclonedx-py requirements requirements-run.lock --output-format JSON \
		--output-file build/audit/sbom.json
	@$(AUDIT)/bin/pip-audit --strict --no-deps --disable-pip --requirement requirements-run.lock

clean: ## remove the environment and the demo's data
	rm -rf $(VENV) data .dagster

# What running needs, without the developer's tools. Bytecode is made of what is imported only.
$(RUN_READY): requirements-run.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, and was not found."; exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --no-deps --no-compile -r requirements-run.lock
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(READY): $(RUN_READY) requirements.lock
	@echo "Adding the developer's tools ..."
	@$(PIP) --no-compile -r requirements.lock
	@touch $@

$(DOCS_READY): $(READY) requirements-docs.lock
	@$(PIP) --no-compile -r requirements-docs.lock
	@touch $@

$(AUDIT_READY): requirements-audit.lock
	@$(PYTHON) -m venv $(AUDIT)
	@$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		-r requirements-audit.lock
	@touch $@
