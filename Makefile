# Everything is installed into .venv/; a second run installs nothing again unless a file below changed.
PYTHON ?= python3.11
VENV := .venv
PIP := $(VENV)/bin/python -m pip install --no-input -qq
# Only these are copied by the editable install; all other modules are used where they lie.
COPIED := $(wildcard proto/image_gen_pb2*)

.DEFAULT_GOAL := help
.PHONY: help venv demo serve tox test clean

help:
	@echo "make demo    draw one image with the whole service on this machine, to demo.png"
	@echo "make serve   run the service in the foreground until Ctrl-C; API_KEYS=key1,key2 sets the keys"
	@echo "make venv    only install, into .venv/"
	@echo "make test    all checks and tests"
	@echo "make tox     only install tox, which runs one of them: .venv/bin/tox run -e unit"
	@echo "make install for a host with systemd: PREFIX=/usr/local, DESTDIR=, COMPONENTS=\"broker frontend gpu_worker\", TRACING=1"
	@echo "make clean   remove all that demo, serve and test have made"
	@echo "PYTHON=...   another Python than python3.11, at least 3.11"

venv: $(VENV)/.installed

demo: $(VENV)/.installed
	@$(VENV)/bin/python -m deploy.demo

serve: $(VENV)/.installed
	@exec $(VENV)/bin/python -m deploy

tox: $(VENV)/.tox-installed

test: $(VENV)/.tox-installed
	@$(VENV)/bin/python -m tox run

clean:
	rm -rf $(VENV) .tox build dist demo.png output.png .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "make: $(PYTHON) is missing or older than 3.11; name another: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "making $(VENV)/"
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.tox-installed: $(VENV)/.made requirements/tox.txt
	@echo "installing tox"
	@$(PIP) -r requirements/tox.txt
	@touch $@

# torch goes first, asked for exactly: a range could replace it by another build.
$(VENV)/.installed: $(VENV)/.made requirements/torch.txt requirements/deploy.txt pyproject.toml $(COPIED)
	@echo "installing torch and what the components need (a minute or more)"
	@$(PIP) -r requirements/torch.txt -r requirements/deploy.txt
	@$(PIP) --no-deps -e .
	@touch $@

include deploy/install.mk
