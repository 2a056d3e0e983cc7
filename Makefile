# The two commands of the README, and the slow studies.
PYTHON ?= python3

.PHONY: audit demo test test-env slow

# A search on the digits that ship with scikit-learn: about three minutes on two cores.
demo: .venv/installed
	.venv/bin/cvt-nas search --space search_spaces/digits.yaml

test: test-env
	.venv/bin/pytest

slow: test-env
	.venv/bin/pytest -m slow

# Known faults of what is installed; skipped, and said to be, where the list of them cannot be reached.
audit: test-env
	@found=$$(timeout 180 .venv/bin/pip-audit --progress-spinner off --skip-editable 2>&1); status=$$?; \
	if [ $$status -ne 0 ] && { [ $$status -eq 124 ] || echo "$$found" | grep -qE "ConnectionError|ServiceError|Max retries|HTTPError"; }; \
	then echo "audit: skipped, its data cannot be reached"; else echo "$$found"; exit $$status; fi

test-env: .venv/installed-dev

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --editable .
	touch $@

.venv/installed-dev: .venv/installed
	.venv/bin/pip install --quiet --editable '.[dev]'
	touch $@
