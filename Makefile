# make repro   regenerate the tables, figures and notebooks of PROFILE (digits)
# make test    check style, types, tests, the small pipeline, the committed notebooks
# make test-all   and the tests that take long besides: half an hour
# make soak   stop the smoke pipeline 200 times in every way: it must end in the same bits; some hours
# make check-fast   style, types and the quick tests, for the time between two edits: a minute
# make lab     open JupyterLab on the notebooks
# make plan    what PROFILE will cost in hours, memory and disk, and what is missing; trains nothing
# make doctor  what this machine has, and what each profile can do on it
# make verify  compare what make repro made of PROFILE, number by number, with what is committed and published
# make rounding   train and score PROFILE under other arithmetic, to see what rounding does to its numbers
# make accept   prove that a change of the source moves no result (SINCE=HEAD), so that nothing is trained or scored again
# make bench   time training, sampling and scoring of three networks (AGAINST=diffusers: and diffusers' networks)
# make check   validate the parameters of PROFILE and run nothing
# make venv    set up .venv from requirements.lock (the other targets do that when it is missing or stale)
# make lock    resolve requirements.lock again from pyproject.toml
# make site    build the study as pages, in build/site/html: open index.html
# make clean   remove what the pipeline keeps for itself (build, and work with interrupted trainings), not the results
#
# make repro PROFILE=smoke selects another profile, one of the folders in profiles/.

PYTHON ?= python3
PROFILE ?= digits
SINCE ?= HEAD
FOLDER := $(if $(filter digits,$(PROFILE)),.,profiles/$(PROFILE))

# Everything runs from .venv, with fdm from this checkout. Bytecode is kept: without it torch takes long to import.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONPATH := $(CURDIR)
export PYTHONDONTWRITEBYTECODE :=
export DVC_NO_ANALYTICS := 1

.PHONY: site help repro test quicker test-all soak check-fast style lab plan doctor verify accept rounding bench check venv lock clean

help:
	@sed -n '/^# make/s/^# //p' Makefile

.venv/ready: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, and $(PYTHON) is older; try make PYTHON=python3.12." >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "$(PYTHON) cannot make a virtual environment; on Debian install python3-venv." >&2; exit 1; }
	@sed -n '/^uv==/,/# via/p' requirements.lock > .venv/uv.txt  # uv itself, by its hashes in the lock
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.txt
	.venv/bin/uv pip sync --quiet --python .venv/bin/python --require-hashes requirements.lock
	@touch $@

venv: .venv/ready

repro: .venv/ready
	@test -f $(FOLDER)/params.yaml || { echo "There is no profile $(PROFILE); the profiles are digits $$(ls profiles | tr '\n' ' ')." >&2; exit 1; }
	@find .dvc/tmp -name rwlock -empty -delete 2>/dev/null || true  # which a DVC that was killed may leave, and not read
	@python -m fdm pipeline --params $(FOLDER)/params.yaml
	@python -m fdm repro --params $(FOLDER)/params.yaml
	@test $(PROFILE) != exact || python -m fdm readme --params $(FOLDER)/params.yaml
	@python -m fdm outcome --params $(FOLDER)/params.yaml

check: .venv/ready
	@python -m fdm check --params $(FOLDER)/params.yaml

plan: .venv/ready
	@python -m fdm plan --params $(FOLDER)/params.yaml

verify: .venv/ready
	@python -m fdm verify --params $(FOLDER)/params.yaml

bench: .venv/ready
	@python -m benchmarks $(if $(AGAINST),--against plain $(AGAINST))

doctor: .venv/ready
	@python -m fdm doctor

accept: .venv/ready
	@python -m fdm accept --revision $(SINCE)

rounding: .venv/ready
	@python -m fdm rounding --params $(FOLDER)/params.yaml

style: .venv/ready
	ruff check .
	ruff format --check .
	mypy

check-fast: style
	OMP_NUM_THREADS=1 pytest -n logical --maxprocesses 4 --dist loadfile -m "not slow and not weekly"

# Style beside tests: types are checked by one core, while others wait.
test: .venv/ready
	@$(MAKE) --no-print-directory -j2 style quicker

# A process a core, a file each, the longest first as tests/conftest.py has them. Each takes up to 2 GB.
quicker test-all: SUITE := OMP_NUM_THREADS=1 pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations=12
quicker: .venv/ready
	$(SUITE) -m "not weekly"

test-all: style
	$(SUITE)

soak: .venv/ready
	OMP_NUM_THREADS=1 python -m tests.soak

lab: .venv/ready
	jupyter lab notebooks

# What draws in the explorer's reader's browser; without npm it is left out, with a sentence.
build/site/drawn/live/ready: docs/site/live.py docs/site/explorer.py docs/site/package-lock.json \
		$(wildcard results/digits/networks/*.safetensors fdm/*.py fdm/*/*.py) | .venv/ready
	@python docs/site/live.py $(@D)

# The samples that the explorer shows: a minute of one core.
build/site/drawn/explorer/index.js: build/site/drawn/live/ready docs/site/explorer.py results/digits/measurements.csv
	@python docs/site/explorer.py $(@D)

site: .venv/ready build/site/drawn/explorer/index.js
	@python docs/site/stage.py build/site/source
	sphinx-build -q -W --keep-going -b html -c docs/site \
		-D html_extra_path=$(CURDIR)/build/site/extra,$(CURDIR)/build/site/drawn \
		build/site/source build/site/html
	@echo "The site is in build/site/html; open index.html there."

lock: .venv/ready
	uv pip compile pyproject.toml --extra study --extra site --group dev --universal --generate-hashes --no-emit-index-url --no-header \
		--python-version 3.11 --quiet --output-file requirements.lock

clean:
	rm -rf build work
