# Each target but accelerator sets up .venv by itself. PYTHON, EMOJI and REGIME may be given: make grow EMOJI=🦋

PYTHON ?= python3
# Of the benchmarks: the newest there is, for this year's CAX wants 3.12.
BENCH_PYTHON ?= $(firstword $(foreach python,python3.14 python3.13 python3.12,\
	$(shell $(python) -c "print('$(python)')" 2>/dev/null)) $(PYTHON))
EMOJI ?= 🦎
REGIME ?= persistent
BIN := .venv/bin
READY := .venv/.ready
BENCH_READY := .venv-bench/.ready

.PHONY: grow test play lab site bench accelerator clean

grow: $(READY)
	NCA_PRESET=laptop NCA_EMOJI="$(EMOJI)" NCA_REGIME=$(REGIME) $(BIN)/python scripts/execute_notebook.py \
		notebooks/01_growing_with_gradients.ipynb out/01_growing_with_gradients.ipynb

test: $(READY)
	$(BIN)/python -m pytest tests
	@# Copies: a notebook writes beside itself, where a reader may have trained something.
	rm -rf out/test && mkdir -p out/test && cp notebooks/*.ipynb out/test
	NCA_PRESET=quick $(BIN)/python -m pytest --nbmake --nbmake-timeout=600 out/test

play: $(READY)
	$(BIN)/python scripts/make_gallery.py out/gallery.html
	$(BIN)/python -m webbrowser "file://$(CURDIR)/out/gallery.html"

lab: $(READY)
	$(BIN)/jupyter lab notebooks

site: $(READY)
	$(BIN)/python scripts/make_site.py out/site

bench: $(BENCH_READY)
	.venv-bench/bin/python benchmarks/speed.py
	.venv-bench/bin/python benchmarks/growth.py

accelerator:  # With the JAX of PYTHON as it is, for that one sees the accelerator.
	$(PYTHON) benchmarks/accelerator.py

$(READY): requirements.txt pyproject.toml .ci/constraints-latest.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint .ci/constraints-latest.txt \
		--requirement requirements.txt --editable .
	@touch $@

$(BENCH_READY): requirements.txt benchmarks/requirements.txt .ci/constraints-latest.txt
	$(BENCH_PYTHON) -m venv --clear .venv-bench
	.venv-bench/bin/python -m pip install --quiet --constraint .ci/constraints-latest.txt \
		--requirement requirements.txt --requirement benchmarks/requirements.txt --editable .
	@touch $@

clean:
	rm -rf .venv .venv-bench .venv-colab out notebooks/out
