# The two commands of the README, and the slow studies.
PYTHON ?= python3

.PHONY: demo test test-env slow

# A search on the digits that ship with scikit-learn: about three minutes on two cores.
demo: .venv/installed
	.venv/bin/cvt-nas search --space search_spaces/digits.yaml

test: test-env
	.venv/bin/pytest

slow: test-env
	.venv/bin/pytest -m slow

test-env: .venv/installed-dev

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --editable .
	touch $@

.venv/installed-dev: .venv/installed
	.venv/bin/pip install --quiet --editable '.[dev]'
	touch $@
