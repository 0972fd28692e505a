# flipcluster: `make serve` and `make test` need nothing but Python >= 3.11, git and make.

PYTHON ?= python3
IMAGES ?= 300000
JPEGS ?= 1000000
SEED ?= $(shell date +%Y%m%d)
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
BIN := .venv/bin
SERVE := .venv/.serve-$(VERSION)
BENCHMARK := .venv/.benchmark-$(VERSION)
DEV := .venv/.dev-$(VERSION)
COMPILED := .venv/.compiled-$(VERSION)

.DEFAULT_GOAL := help
.PHONY: again help install serve test jailed fuzz lint check format benchmark ratios peers machines methods queues corpus chaos attacks chaos-jobs soak soak-jobs lock clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18

install: $(DEV) $(COMPILED) ## install everything into .venv

# What `make serve` needs, what `make benchmark` needs in addition, and everything.
$(SERVE): requirements/serve.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "flipcluster needs Python 3.11 or newer; $(PYTHON) is $(or $(VERSION),not there). Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(PIP_INSTALL)

$(BENCHMARK): requirements/benchmark.txt | $(SERVE)
	$(PIP_INSTALL)

$(DEV): requirements/dev.txt | $(SERVE)
	$(PIP_INSTALL)

# What cannot be compiled is a template or a test.
define PIP_INSTALL
$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --require-hashes -r $<
@$(BIN)/python -m compileall -q -j 0 .venv/lib >/dev/null || true
@touch $@
endef

# Without a C compiler, or with one that fails, the service still runs; its log says what is missing.
# A missing module is compiled again.
$(COMPILED): $(SERVE) setup.py server/imaging/jpeg/entropy.py $(if $(wildcard server/imaging/jpeg/entropy.*.so),,again)
	@rm -f server/imaging/jpeg/entropy.*.so
	@$(BIN)/python setup.py -q build_ext --inplace --force >.venv/compile.log 2>&1; ls server/imaging/jpeg/entropy.*.so >/dev/null 2>&1 && touch $@ || echo "not compiled, see .venv/compile.log: JPEGs are decoded instead of turned without loss"

again:

serve: $(SERVE) $(COMPILED) ## start the cluster on 127.0.0.1:8000
	@exec $(BIN)/gunicorn

# One process more than cores, because live tests mostly wait; these come first, so that no long file is last.
test: install ## run the tests
	$(BIN)/pytest -n $$(($$(nproc) + 1)) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

jailed: install ## run the tests of images with each in the jail of an engine
	FLIP_TESTS_JAILED=1 $(BIN)/pytest -n $$(nproc) tests/unit/imaging

fuzz: install ## send odd images and requests for about 20 minutes (IMAGES=100000 JPEGS=100000 SEED=7)
	FUZZ_IMAGES=$(IMAGES) FUZZ_JPEGS=$(JPEGS) FUZZ_SEED=$(SEED) $(BIN)/pytest tests/fuzz -o log_cli=true --log-cli-level=INFO --log-disable=httpx

lint: install ## format, lint, types, import contracts
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

check: lint test ## what CI runs

format: install ## write the code in the project's format
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

PROFILE ?= quick
benchmark: $(BENCHMARK) $(COMPILED) ## compare cluster and single process, with a report (under 4 minutes; PROFILE=article or full)
	$(BIN)/python -m benchmarks --profile $(PROFILE)

ratios: install ## measure what the service costs over the bare function (about 5 minutes)
	$(BIN)/python -m benchmarks.cost.ratios

PYTHON_PEERS := .venv-peers/.installed
$(PYTHON_PEERS): requirements/peers.txt
	$(PYTHON) -m venv --clear .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/peers.txt
	@touch $@

NODE_PEERS := benchmarks/peers/node_modules/.installed
$(NODE_PEERS): benchmarks/peers/package-lock.json
	npm ci --prefix benchmarks/peers --no-audit --no-fund --loglevel=error
	@touch $@

peers: $(PYTHON_PEERS) ## install the peers of the comparison into .venv-peers and, with Node.js, node_modules
	@if command -v npm >/dev/null; then $(MAKE) -s $(NODE_PEERS); else echo "no npm, so no peers with Koa, Jimp or sharp: install Node.js 20.9 or newer"; fi

machines: $(BENCHMARK) $(COMPILED) ## simulate several machines on this one: two behind nginx, locust apart (2 minutes; needs root and nginx)
	$(BIN)/python -m benchmarks.comparison.machines

methods: install peers ## compare ways to flip a JPEG on one core, with libvips and sharp (about 5 minutes)
	$(BIN)/python -m benchmarks.cost.methods

queues: install $(PYTHON_PEERS) ## compare our job queue with RQ, Celery, BullMQ, beanstalkd, gearmand and a table in MariaDB (about 20 minutes)
	$(BIN)/python -m benchmarks.queues $(if $(INTO),--into $(INTO))

CORPUS = $(BIN)/python -m benchmarks.corpus
corpus: install ## judge the answers to every file of DIR=DIRECTORY by programs that are not ours (OPTIONS="--every 10")
	@test -n "$(DIR)" || { echo "make corpus DIR=DIRECTORY; it needs: apt-get install $$($(CORPUS) --packages)"; echo "$(CORPUS).matrix DIRECTORY makes files with all encoders that are installed; for all of them: apt-get install $$($(CORPUS).matrix --packages)"; exit 2; }
	$(CORPUS) $(DIR) $(OPTIONS)

chaos: install ## check the promises under kills, overload and slow clients (about 20 minutes)
	$(BIN)/python -m benchmarks.survival.chaos

attacks: install ## check what polite clients notice of attacks (about 20 minutes; BEFORE=REVISION compares)
	$(BIN)/python -m benchmarks.survival.attacks $(if $(BEFORE),--before $(BEFORE))

chaos-jobs: install ## check the promises to jobs under kills, restarts and full disks (5 to 12 minutes; SEED=7)
	$(BIN)/python -m benchmarks.survival.jobs --seed $(SEED)

soak: MINUTES ?= 30
soak: install ## run everything at once for MINUTES=30: does memory grow, does anything fail
	$(BIN)/python -m benchmarks.survival.soak --minutes $(MINUTES)

soak-jobs: MINUTES ?= 20
soak-jobs: install ## run jobs of all kinds for MINUTES=20, with kills: does anything grow, is anything lost
	$(BIN)/python -m benchmarks.survival.soak_jobs --minutes $(MINUTES) --seed $(SEED)

LOCK = uv pip compile -q --universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock"
lock: ## pin the requirements again, with hashes (needs uv)
	$(LOCK) requirements/dev.in -o requirements/dev.txt
	$(LOCK) requirements/serve.in -c requirements/dev.txt -o requirements/serve.txt
	$(LOCK) requirements/benchmark.in -c requirements/dev.txt -o requirements/benchmark.txt
	$(LOCK) requirements/peers.in -o requirements/peers.txt

clean: ## remove everything that was installed or generated
	rm -rf .venv .venv-peers benchmarks/peers/node_modules build server/imaging/jpeg/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache images/benchmark-*.jpg
	rm -f flipped.jpg flipped.zip mirrored.jpg turned.webp
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
