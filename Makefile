# Needs make and Python >= 3.10; everything else goes into .venv on first use.
PYTHON ?= python3
BACKEND ?= ray

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
LAB_READY := $(VENV)/.ready-lab
BROWSER_READY := $(VENV)/.ready-browser
DOCS_READY := $(VENV)/.ready-docs
CODE := $(wildcard *.py .ci placement scheduler launchers provisioners benchmarks tests docs)
INSTALL := $(PY) .ci/install.py
PYTEST := $(PY) -m pytest -q
RESULTS = --junitxml build/results/$@.xml -o junit_family=xunit1
BENCHMARKS := start against_gateway many_people bridge memory through_server output limits machine_book in_browser early_cells on_gpu on_ray on_dask on_kubernetes \
  kubernetes_scale on_yarn on_ssh ssh_peer placement decision policies scale soak
ONLY ?= $(BENCHMARKS)
FIGURES ?= docs/figures
PAGE ?= docs/benchmarks.md
WORKERS ?= 2
SIDE_BY_SIDE := --dist loadgroup --no-loadscope-reorder
PART = $(PYTEST) --durations 30 -m 'not long' $(RESULTS) $(SIDE_BY_SIDE) -n $(WORKERS)
CLUSTERS := dask docker kubernetes yarn ssh
SAMPLE := tests/suites/test_kernel_lifecycle.py
SLICE ?= 1/1

MAKEFLAGS += --no-print-directory
# The workers of pytest-xdist then rewrite the tests' assertions once, not in each run.
unexport PYTHONDONTWRITEBYTECODE
.DEFAULT_GOAL := help
.PHONY: help run lab lint check test machine servers forks browser ray $(CLUSTERS) long gate flaky build-dask build-docker build-kubernetes build-yarn build-ssh build-spark bench figures docs format clean

help:
	@echo 'make run          kernels through a real Jupyter Server, on a Ray cluster of three nodes that it starts and ends:'
	@echo '                  where each went and why (BACKEND=dask, docker, kubernetes, yarn or ssh: on such a cluster; BACKEND=local: on this machine alone)'
	@echo 'make lab          the same, in JupyterLab'
	@echo 'make lint         format, lint, types'
	@echo 'make check        the same, and the unit tests'
	@echo 'make test         the tests without processes, and a sample of those on this machine and on a Ray cluster (6 minutes on two cores)'
	@echo 'make machine      the other tests on this machine'
	@echo 'make servers      Jupyter Server, its console, nbconvert and the gateway on this machine'
	@echo 'make forks        forked kernels against fresh ones: programs, spoilt forks'
	@echo 'make browser      notebooks in a real JupyterLab, in Chromium'
	@echo 'make ray, dask, docker, kubernetes, yarn, ssh'
	@echo '                  the tests on such a cluster, and its tour'
	@echo 'make gate         what a change has to pass: all above that every landing has, the parts that the change touches, and one by turn'
	@echo 'make flaky        one test thirty times beside busy loops (TEST=tests/...)'
	@echo 'make long         everything else: before a release (SLICE=3/8: the third of eight parts)'
	@echo 'make build-kubernetes, build-yarn, build-docker, build-ssh, build-spark'
	@echo '                  what the tests on these clusters need, once (Kubernetes: 10 minutes; root, Debian and Go)'
	@echo 'make bench        every benchmark (ONLY="start memory": just these)'
	@echo 'make figures      the same, and the figures and tables of docs/benchmarks.md from them'
	@echo 'make docs         the documentation as a site, in build/docs; a warning or a broken link is an error'
	@echo 'make format       apply formatting and safe lint fixes'
	@echo 'make clean        remove what these commands made'

# An editable installation has no data files, and Jupyter Server loads only the extensions that a file names.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "roost needs Python 3.10 or newer: make PYTHON=...")'
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --upgrade 'pip>=23'
	@$(INSTALL) 'Installing roost and what its tests need into $(VENV), in about two minutes, 0.9 GB:' --editable '.[dev]' || { \
	  $(INSTALL) 'Installing the same without Ray:' --editable '.[bench,dask,lint,test]' && \
	  echo 'Ray cannot be installed for this Python: its tests are skipped, and make run is the tour of this machine (BACKEND=dask: of a Dask cluster).'; }
	@mkdir -p $(VENV)/etc/jupyter/jupyter_server_config.d
	@cp provisioners/server_extension/jupyter_config/roost.json $(VENV)/etc/jupyter/jupyter_server_config.d
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
	$(PYTEST) tests/unit -m 'not long' $(SIDE_BY_SIDE) -n logical --maxprocesses 4

test: $(READY)
	$(PART) tests/unit tests/property tests/packaging $(SAMPLE) --backend local --backend ray

machine: $(READY)
	$(PART) tests/machine tests/suites --ignore=$(SAMPLE) --backend local

servers: $(READY)
	$(PART) tests/servers --backend local

forks: $(READY)
	$(PART) tests/forks

# `make gate` forgives flaky tests alone. This file tells it that something else has failed.
BROKEN = { mkdir -p build/results; touch build/results/$@.broken; exit 1; }

ray: $(READY)
	$(PART) tests/clusters/ray tests/suites --ignore=$(SAMPLE) --backend ray

# One at a time: a page and a kernel need both processors of a small machine.
browser: $(BROWSER_READY)
	PYTHONPATH=tests:docs/examples $(PY) -m kit.jupyter.browser || $(CANNOT_INSTALL)
	$(PYTEST) --durations 30 -m 'not long' $(RESULTS) tests/browser

# A cluster whose build fails although its tools are there is an error. Without the tools, its tests are skipped.
CANNOT_INSTALL = { test "$$(id -u)" != 0 || ! command -v apt-get > /dev/null; }
$(CLUSTERS): $(READY)
	$(MAKE) build-$@ || $(CANNOT_INSTALL) || { test $@ = kubernetes && ! command -v go > /dev/null; }
	$(PART) tests/clusters/$@ tests/suites --backend $@; rc=$$?; $(MAKE) run BACKEND=$@ || $(BROKEN); exit $$rc

# Everything else. A slice that was killed goes on where it stopped.
long: $(BROWSER_READY)
	PYTHONPATH=tests:docs/examples $(PY) -m kit.jupyter.browser || $(CANNOT_INSTALL)
	for name in docker kubernetes yarn ssh spark; do $(MAKE) build-$$name || echo "The tests that need build-$$name are skipped."; done
	PYTHONPATH=tests $(PY) -m kit.gate.long $(SLICE)

gate: $(READY)
	PYTHONPATH=tests $(PY) -m kit.gate

flaky: $(READY)
	PYTHONPATH=tests $(PY) -m kit.gate.flaky '$(TEST)'

build-dask:

build-docker: $(READY)
	PYTHONPATH=tests $(PY) -m kit.clusters.docker_engine build

build-kubernetes: $(READY)
	PYTHONPATH=tests $(PY) -m kit.clusters.kubelets build

build-yarn: $(READY)
	PYTHONPATH=tests $(PY) -m kit.clusters.hadoop_nodes build

build-ssh: $(READY)
	PYTHONPATH=tests $(PY) -m kit.clusters.ssh_hosts install

build-spark: $(READY)
	PYTHONPATH=tests $(PY) -m kit.clusters.spark

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
