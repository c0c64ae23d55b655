# `make run` and `make test` are all a newcomer needs. Requires Python 3.11+.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3.14 python3,$(shell \
	$(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
DATA   ?=
OUT    ?= .run
OWNER  ?=
FOLDERS = $(if $(DATA),--data '$(DATA)') --out '$(OUT)'

.PHONY: help run space publish test stress bench screenshots release release-check lint lock clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 28

$(VENV)/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: Python 3.11+ is required and none was found: install it, or name it with make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[dev]'
	@touch $@

run: $(VENV)/installed  ## the full pipeline on synthetic cells, from images to a prediction; DATA=folder for your own
	@$(BIN)/python -m runs.pipeline $(FOLDERS)

space: $(VENV)/installed  ## the Space on http://127.0.0.1:7860; MODEL=.run/model shows the model of `make run`
	@$(BIN)/python -m runs.space $(FOLDERS) $(if $(MODEL),--model '$(MODEL)')

publish: $(VENV)/installed  ## dataset, model, Space and collection: make publish OWNER=name [DATA=folder] [ARGS=--dry-run]
	@test -n '$(OWNER)' || { echo "error: whose repos? make publish OWNER=name"; exit 1; }
	@$(BIN)/python -m runs.publish $(FOLDERS) $(ARGS) -- '$(OWNER)'

test: $(VENV)/installed  ## lint and all tests but `make stress`; BROWSER=no leaves out those in a real Chromium
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
ifneq ($(BROWSER),no)
	@$(BIN)/python -m runs.chromium
endif
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not stress$(if $(filter no,$(BROWSER)), and not browser)' \
		--numprocesses auto --maxprocesses 4 --dist loadfile $(TESTS)

stress: $(VENV)/installed  ## kills, full disks, cut connections, damaged files, load: about an hour
	$(BIN)/python -m pytest -m stress

bench: $(VENV)/installed  ## measure against the baselines and fill the tables: make bench [DATA=folder]
	$(PIP) --editable '.[bench]'
	$(BIN)/python -m bench $(if $(DATA),--data '$(DATA)')
	$(BIN)/python -m runs.readme

screenshots: $(VENV)/installed  ## every tab of the Space and a session of work into screenshots/, one into docs/
	$(BIN)/python -m tests.space.screenshots screenshots
	$(BIN)/python -m tests.space.session screenshots/session

release: $(VENV)/installed  ## train the released model again: make release DATA=folder NAMES=file [MINUTES=240]
	PYTHON=$(BIN)/python runs/release.sh $(DATA) $(OUT)/release $(NAMES)

release-check: $(VENV)/installed  ## recompute what follows from the release's weights, logits and history; check the README
	$(BIN)/python -m hub_model check hub_model/release
	$(BIN)/python -m runs.readme --check

lint: $(VENV)/installed  ## format and fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(VENV)/installed  ## write constraints.txt from what is installed
	$(BIN)/pip install --quiet --editable '.[bench,dev,kaggle,tensorboard]'
	@{ head -1 constraints.txt; $(BIN)/pip freeze --all --exclude-editable | grep -viE '^(nvidia-|cuda-|triton|pip==)'; } > $(VENV)/lock
	@mv $(VENV)/lock constraints.txt

clean:  ## delete the output of `make run`
	rm -rf '$(OUT)'
