# Two commands: `make demo` shows the tool at work, `make test` runs every test. Both set up their own environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test docs schema clean

$(VENV)/%-ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[$*]'
	touch $@

demo: $(VENV)/torch-ready
	@mkdir -p build/demo && cp examples/digits.py build/demo/digits.py
	@echo '— What the source and a run of the models show:'
	@$(BIN)/auditor audit build/demo/digits.py --config pyproject.toml --exit-zero
	@echo '— The fixes, each proven by running the models before and after:'
	@$(BIN)/auditor audit build/demo/digits.py --config pyproject.toml --fix --unsafe-fixes --exit-zero \
		--certificate build/demo/certificates.json
	@echo '— What was changed (the certificates are in build/demo/certificates.json):'
	@diff -u examples/digits.py build/demo/digits.py || true

test: $(VENV)/torch-ready $(VENV)/dev-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

docs: $(VENV)/dev-ready
	$(BIN)/python -m mkdocs build --strict --quiet
	@echo 'The documentation is in build/site; open build/site/index.html.'

schema: $(VENV)/dev-ready
	$(BIN)/python -m auditor.schema
	$(BIN)/python -m auditor.fix.certificate

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
