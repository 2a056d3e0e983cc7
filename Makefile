# The two commands of the README, and the slow studies.
PYTHON ?= python3

.PHONY: audit demo docs newest nightly oldest slow test test-env

# A search on the digits that ship with scikit-learn: about three minutes on two cores.
demo: .venv/installed
	.venv/bin/cvt-nas search --space search_spaces/digits.yaml

test: test-env
	.venv/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder

slow: test-env
	.venv/bin/pytest -m slow

# The pages under docs/ as a site. A link that leads to nothing is an error, which --quiet would hide.
docs: test-env
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

# The suite, and a training with every augmentation, with the newest and with the oldest versions that pyproject.toml
# allows, each in an environment of its own. It takes hours and gigabytes, so CI leaves it out. `make -k nightly` goes
# on with the oldest where the newest fail.
nightly: newest oldest

newest oldest: %: .venv-%
	.venv-$*/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder
	.venv-$*/bin/pytest -m slow tests/test_augment.py

.PHONY: .venv-newest .venv-oldest # what is the newest changes from night to night
.venv-newest:
	$(PYTHON) -m venv $@
	$@/bin/pip install --quiet --upgrade pip
	$@/bin/pip install --quiet --upgrade --upgrade-strategy eager --editable '.[dev]'

.venv-oldest:
	$(PYTHON) -m venv --clear $@
	$@/bin/pip install --quiet --upgrade pip uv
	$@/bin/uv pip compile --quiet --resolution lowest-direct --all-extras --python $@/bin/python \
	    --output-file $@/lowest.txt pyproject.toml
	$@/bin/pip install --quiet --no-deps --requirement $@/lowest.txt --editable .

# Known faults of what is installed, as far as the list of them can be reached.
audit: test-env
	@found=$$(VIRTUAL_ENV= PIPAPI_PYTHON_LOCATION=$(CURDIR)/.venv/bin/python timeout 180 .venv/bin/pip-audit \
	    --progress-spinner off --skip-editable 2>&1); status=$$?; \
	unknown=$$(echo "$$found" | grep -c "could not be audited"); \
	if [ $$status -eq 124 ] || echo "$$found" | \
	    grep -qE "^torch .*could not be audited|ConnectionError|ServiceError|Max retries|HTTPError"; \
	then echo "audit: skipped, its data cannot be reached"; \
	else echo "$$found" | grep -v "could not be audited"; echo "audit: $$unknown packages could not be looked up"; \
	    exit $$status; fi

test-env: .venv/installed-dev

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --editable .
	touch $@

# An old pip takes three times as long to find the versions. Bytecode is made of what is imported, not of all.
.venv/installed-dev: pyproject.toml
	$(PYTHON) -m venv --upgrade-deps .venv
	.venv/bin/pip install --quiet --no-compile --editable '.[dev]'
	touch .venv/installed $@
