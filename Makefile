# Everything a newcomer needs: `make run` and `make test`. Python 3.11 and make are all that must be there.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
DATA   ?=
OUT    ?= .run

.PHONY: help run test stress lint space screenshots release release-offline release-check bench clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 28

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

run: $(VENV)/installed  ## the whole line, from images to a prediction: make run [DATA=folder]
	$(BIN)/python -m runs.line $(if $(DATA),--data $(DATA)) --out $(OUT)

test: $(VENV)/installed  ## all tests; those on real images where ../shared/data is there
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -m 'not stress' $(TESTS)

stress: $(VENV)/installed  ## fault injection: kills, full disks, cut connections; minutes
	$(BIN)/python -m pytest -m stress

lint: $(VENV)/installed  ## format the code and check it
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## delete what `make run` made; the virtual environment stays
	rm -rf $(OUT)
