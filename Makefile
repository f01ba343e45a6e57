# Needs make and Python >= 3.10; everything else goes into .venv on first use.
PYTHON ?= python3
BACKEND ?= ray
SUITES ?= jupyter_client nbclient jupyter_server jupyter_kernel_test
PYTHONS ?= $(PY)

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
LAB_READY := $(VENV)/.ready-lab
BROWSER_READY := $(VENV)/.ready-browser
DOCS_READY := $(VENV)/.ready-docs
CODE := $(wildcard *.py .ci placement scheduler launchers provisioners benchmarks tests docs)
INSTALL := $(PY) .ci/install.py
PYTEST := $(PY) -m pytest -q
LABELLED := $(PYTEST) --label-failures
BENCHMARKS := start first_kernels against_gateway bridge memory through_server output limits machine_book in_browser early_cells on_gpu on_ray on_dask on_docker on_kubernetes \
  kubernetes_scale on_yarn on_ssh ssh_peer placement readiness decision policies scale soak
ONLY ?= $(BENCHMARKS)
FIGURES ?= docs/figures
PAGE ?= docs/benchmarks.md
# Which tests run on one worker: tests/kit/machine/worker_groups.py. The long ones are collected first.
WORKERS ?= 4
FAULT_WORKERS ?= 2
SIDE_BY_SIDE := --dist loadgroup --no-loadscope-reorder
IS_BUILT := PYTHONPATH=tests $(PY) -c
MESSAGES := 100000
REST := test-clusters test-faults browser tours
SHORT := not slow and not fault_long and not soak and not browser

MAKEFLAGS += --no-print-directory
# The workers of pytest-xdist then rewrite the tests' assertions once, not in each run.
unexport PYTHONDONTWRITEBYTECODE
.DEFAULT_GOAL := help
.PHONY: help run lab test test-rest test-clusters test-faults tours lint check browser docker kubernetes yarn ssh spark conformance jupyters bench figures docs fault hostile format clean

help:
	@echo 'make run          kernels through a real Jupyter Server, on a Ray cluster of three nodes that it starts and ends:'
	@echo '                  where each went and why (BACKEND=dask, docker, kubernetes, yarn or ssh: on such a cluster; BACKEND=local: on this machine alone)'
	@echo 'make lab          the same, in JupyterLab'
	@echo 'make lint         format, lint, types'
	@echo 'make check        the same, and the unit tests'
	@echo 'make test         the tests on this machine and on a Ray cluster that they start (10 minutes on two cores)'
	@echo 'make test-rest    what CI runs besides, in parts: test-clusters (on Dask, Docker, Kubernetes, YARN and SSH hosts), test-faults,'
	@echo '                  browser, tours (make run on the other clusters)'
	@echo "make browser      roost's kernels in a real JupyterLab, in Debian's Chromium (SLOW=1: every scenario on Ray too)"
	@echo 'make fault        long fault and soak runs'
	@echo 'make hostile      messages and files of any form, 100,000 of each kind (MESSAGES=...)'
	@echo 'make kubernetes   build the Kubernetes cluster of the tests, once (10 minutes; root, Debian and Go)'
	@echo 'make docker       make the image for the Docker engine of the tests, once (root and Debian)'
	@echo 'make yarn         download the YARN cluster of the tests, once (a minute; Java and Maven)'
	@echo 'make ssh          install what the SSH hosts of the tests need, once (root and Debian)'
	@echo "make conformance  Jupyter's own suites with roost as the default provisioner (SUITES=...), and small programs on"
	@echo '                  plain and forked kernels (PYTHONS="python3.10 python3.13:6": with ipykernel 6; SUITES=: these alone)'
	@echo "make jupyters     the tests with the oldest and the newest of Jupyter's libraries that roost allows (TESTS=...)"
	@echo 'make bench        every benchmark (ONLY="start memory": just these)'
	@echo 'make figures      the same, and the figures and tables of docs/benchmarks.md from them'
	@echo 'make docs         the documentation as a site, in build/docs; a warning or a broken link is an error'
	@echo 'make format       apply formatting and safe lint fixes'
	@echo 'make clean        remove what these commands made'

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "roost needs Python 3.10 or newer: make PYTHON=...")'
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --upgrade 'pip>=23'
	@$(INSTALL) 'Installing roost and what its tests need into $(VENV), in about two minutes, 0.9 GB:' --editable '.[dev]' || { \
	  $(INSTALL) 'Installing the same without Ray:' --editable '.[bench,dask,lint,test]' && \
	  echo 'Ray cannot be installed for this Python: its tests are skipped, and make run is the tour of this machine (BACKEND=dask: of a Dask cluster).'; }
	@mkdir -p .typing && ln -sfn .. .typing/roost
	@touch $@

$(LAB_READY): $(READY)
	@$(INSTALL) 'Installing JupyterLab:' 'jupyterlab>=4.2'
	@touch $@

$(BROWSER_READY): $(READY)
	@$(INSTALL) 'Installing JupyterLab, Notebook and Playwright:' --editable '.[browser]'
	@touch $@

$(DOCS_READY): $(READY)
	@$(INSTALL) 'Installing Sphinx:' --editable '.[docs]'
	@touch $@

run: $(READY)
	$(PY) docs/examples/tour.py --backend $(BACKEND)

lab: $(LAB_READY)
	$(PY) docs/examples/tour.py --backend $(BACKEND) --lab

lint: $(READY)
	$(PY) -m ruff format --check $(CODE)
	$(PY) -m ruff check $(CODE)
	MYPYPATH=.typing $(PY) -m mypy -m roost -p roost.placement -p roost.scheduler -p roost.launchers -p roost.provisioners

# Unit tests hardly wait: with more workers than CPUs, they would only be collected more often.
check: lint
	$(PYTEST) tests/unit -m 'not slow' $(SIDE_BY_SIDE) -n logical --maxprocesses $(WORKERS)

# tests/kit/machine/run_parts.py has the rule that says what is left to `make test-rest`.
test: $(READY)
	$(LABELLED) tests -m '$(SHORT) and not rest' $(SIDE_BY_SIDE) -n $(WORKERS)

test-rest:
	$(MAKE) -j1 $(REST)

test-clusters: $(READY)
	$(LABELLED) tests --ignore tests/fault -m '$(SHORT) and rest' $(SIDE_BY_SIDE) -n $(WORKERS)

# With fewer workers: they kill parts of the clusters that they share with no other test.
test-faults: $(READY)
	$(LABELLED) tests/fault -m '$(SHORT)' $(SIDE_BY_SIDE) -n $(FAULT_WORKERS)

tours: $(READY)
	$(MAKE) run BACKEND=dask
	if $(IS_BUILT) 'from kit.clusters.docker_engine import why_not; exit(why_not())'; then $(MAKE) run BACKEND=docker; fi
	if $(IS_BUILT) 'from kit.clusters.kubelets import why_not; exit(why_not())'; then $(MAKE) run BACKEND=kubernetes; fi
	if $(IS_BUILT) 'from kit.clusters.hadoop_nodes import why_not; exit(why_not())'; then $(MAKE) run BACKEND=yarn; fi
	if $(IS_BUILT) 'from kit.clusters.ssh_hosts import why_not; exit(why_not(3))'; then $(MAKE) run BACKEND=ssh; fi

browser: $(BROWSER_READY)
	PYTHONPATH=tests:docs/examples $(PY) -m kit.jupyter.browser || echo 'Chromium cannot be installed here: its tests are skipped.'
	$(LABELLED) tests/browser $(if $(SLOW),,-m 'not slow')

fault: $(READY)
	$(PYTEST) tests -m 'fault or fault_long or soak' --timeout 1800 $(SIDE_BY_SIDE) -n $(FAULT_WORKERS)

hostile: $(READY)
	ROOST_MESSAGES=$(MESSAGES) $(PYTEST) tests/*/test_hostile_*.py -m 'not soak' --timeout 14400

docker: $(READY)
	PYTHONPATH=tests $(PY) -m kit.clusters.docker_engine build

kubernetes: $(READY)
	PYTHONPATH=tests $(PY) -m kit.clusters.kubelets build

yarn: $(READY)
	PYTHONPATH=tests $(PY) -m kit.clusters.hadoop_nodes build

ssh: $(READY)
	PYTHONPATH=tests $(PY) -m kit.clusters.ssh_hosts install

spark: $(READY)
	PYTHONPATH=tests $(PY) -m kit.clusters.spark

conformance: $(READY)
	@failed=; \
	[ -z "$(strip $(SUITES))" ] || $(PY) tests/conformance/run.py $(SUITES) || failed=1; \
	[ -z "$(strip $(PYTHONS))" ] || $(PY) tests/conformance/pythons.py $(PYTHONS) || failed=1; \
	[ -z "$$failed" ]

jupyters: $(READY)
	$(PY) tests/conformance/jupyters.py $(TESTS)

bench: $(READY)
	@for name in $(ONLY); do echo "== $$name"; $(PY) benchmarks/$$name.py || [ $$? -eq 77 ] || exit 1; done

# A benchmark that fails keeps its earlier figures. The others go on, and the page is written.
figures: $(READY)
	@failed=; for name in $(ONLY); do \
	  echo "== $$name"; \
	  $(PY) benchmarks/$$name.py --json $(FIGURES)/$$name.json --plot $(FIGURES)/$$name.png $(OPTIONS); \
	  case $$? in \
	    0) ;; \
	    77) echo "$$name is skipped: the line above says what is missing here." ;; \
	    130) exit 130 ;; \
	    *) failed="$$failed $$name" ;; \
	  esac; \
	done; \
	$(PY) benchmarks/write_page.py --figures $(FIGURES) --page $(PAGE) || exit 1; \
	[ -z "$$failed" ] || { echo "These benchmarks failed:$$failed."; exit 1; }

docs: $(DOCS_READY)
	$(PY) -m sphinx -W --keep-going -q -b html docs build/docs
	@echo 'The site is at build/docs/index.html.'

format: $(READY)
	$(PY) -m ruff format $(CODE)
	$(PY) -m ruff check --fix $(CODE)

clean:
	rm -rf $(VENV) .typing .conformance .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
