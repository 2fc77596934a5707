# Every target sets itself up in .venv. Needs Python 3.10 or newer.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: pretrain demo test test-all benchmark cuda upstream-tests docs figures lint diff clean

# The main job on handwritten digits that ship inside scikit-learn: MAE, from nothing to pictures and a probe.
pretrain: $(INSTALLED)
	$(BIN)/python train.py -c recipes/mae_sample_digits.yaml

# Digits with few labels, from scratch and after pre-training by each method: a table, and a plot in output/demo.
demo: $(INSTALLED)
	$(BIN)/python examples/digits.py $(ARGS)

# The whole suite. ARGS='tests/mim -x' for a part of it.
test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses auto --dist loadgroup $(ARGS)

# The same with every listed pair of model and method, and every large model: hours on two cores.
# ARGS=tests/mim/test_every_model.py measures that masked pixels are not seen, for all listed models of up to 100M parameters.
test-all: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses auto --dist loadgroup --all-models $(ARGS)

# Side by side with transformers, lightly and stock timm, about half an hour: table, plot and numbers in benchmarks/results.
# ARGS='--only mae --rounds 40' for a part of it.
benchmark: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --editable '.[benchmark]'
	$(BIN)/python -m patchset build
	$(BIN)/python -m benchmarks $(ARGS)

# On a GPU, in slices that go on where the last one stopped: Proof 3, mixed precision, compiled steps, throughput against the
# peers. ARGS='--minutes 60'; ARGS='--device cpu' tries it without a GPU; ARGS=--help tells how to run it elsewhere.
cuda: $(INSTALLED)
	$(BIN)/python -m patchset build
	$(BIN)/python -m benchmarks.gpu $(ARGS)

# Upstream's own tests against the fork, for the models that it changes; hours on two cores. ARGS='-m torchscript' for a part,
# SMALLEST_OF_CLASS=1 for one model of each class, LARGEST=300e6 for larger ones than 100e6 parameters.
upstream-tests: $(INSTALLED)
	$(BIN)/python -m patchset build
	$(BIN)/python tests/upstream/run.py $(ARGS)

# The figures of the pages: models, lines, tests, and what commands wrote to benchmarks/results.
figures: $(INSTALLED)
	$(BIN)/python -m patchset build
	$(BIN)/python docs/figures.py $(ARGS)

# The documentation as a site: build/site/index.html.
docs: $(INSTALLED)
	$(BIN)/python -m patchset build
	$(BIN)/python docs/site.py

# Style, then undefined names: an overlay is a fragment, so names are checked where it was woven in.
lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/python -m patchset check
	$(BIN)/python -m patchset build
	@for tree in build build/stock; do (cd $$tree && $(CURDIR)/$(BIN)/ruff check --no-cache --isolated --exit-zero \
		--select F821,F822,F823 --output-format concise timm | sed 's/:[0-9]*:[0-9]*:/:/' | grep ^timm | sort -u > names.txt); done
	@! comm -23 build/names.txt build/stock/names.txt | grep .

# The patch between the pinned release of timm and this fork.
diff: $(INSTALLED)
	$(BIN)/python -m patchset diff

$(INSTALLED): pyproject.toml requirements.txt hatch_build.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --requirement requirements.txt --editable '.[samples,test,lint]'
	touch $@

clean:
	rm -rf .venv build
