# make install: Python code with its pinned libraries in a private environment, units, examples. For people and packagers.
PREFIX ?= /usr/local
DESTDIR ?=
COMPONENTS ?= broker frontend gpu_worker
# 1: with what --tracing needs.
TRACING ?=
sysconfdir ?= /etc
libdir ?= $(PREFIX)/lib
bindir ?= $(PREFIX)/bin
docdir ?= $(PREFIX)/share/doc/flux-server
# What others read: Prometheus' rules, Grafana's dashboard.
datadir ?= $(PREFIX)/share/flux-server
# Of other prefixes systemd reads nothing.
systemdparent ?= $(if $(filter /usr /usr/local,$(PREFIX)),$(PREFIX)/lib,$(sysconfdir))
unitdir ?= $(systemdparent)/systemd/system
sysusersdir ?= $(systemdparent)/sysusers.d
tmpfilesdir ?= $(systemdparent)/tmpfiles.d
WHEELS ?= build/wheels

REQUIREMENTS_broker ?= requirements/broker.txt
REQUIREMENTS_frontend ?= requirements/frontend.txt
REQUIREMENTS_gpu_worker ?= requirements/torch.txt requirements/gpu_worker.txt
REQUIREMENTS_tracing := requirements/tracing.txt
UNIT_broker := flux-broker.service
UNIT_frontend := flux-frontend.service
UNIT_gpu_worker := flux-worker@.service
SETTINGS_broker := broker.env
SETTINGS_frontend := frontend.env
SETTINGS_gpu_worker := worker.env

home := $(libdir)/flux-server
staged := $(DESTDIR)$(home)
parts := $(COMPONENTS) $(if $(TRACING),tracing)
requirements := $(foreach part,$(parts),$(REQUIREMENTS_$(part)))
units := flux-server.target $(foreach component,$(COMPONENTS),$(UNIT_$(component)))
settings := $(foreach component,$(COMPONENTS),$(SETTINGS_$(component)))
all_units := flux-server.target $(UNIT_broker) $(UNIT_frontend) $(UNIT_gpu_worker)
collected := $(parts:%=$(WHEELS)/.of-%) $(WHEELS)/.own
watching := prometheus grafana
unknown := $(filter-out broker frontend gpu_worker,$(COMPONENTS))
ifneq ($(unknown),)
$(error COMPONENTS has $(unknown), expected are broker, frontend and gpu_worker)
endif
# Every path that a unit names.
relocate := sed -e 's|/usr/local/lib/flux-server/|$(home)/|g' -e 's|/usr/local/share/doc/flux-server|$(docdir)|g' \
    -e 's|/etc/flux-server|$(sysconfdir)/flux-server|g'
# A running systemd hears of what is installed for this host, not of what is staged for another.
on_this_host := test -z "$(DESTDIR)" && test -d /run/systemd/system

.PHONY: wheels install uninstall

# The only part that needs the package index.
wheels: $(collected)

.SECONDEXPANSION:

$(WHEELS)/.of-%: $$(REQUIREMENTS_$$*) | $(VENV)/.made
	@echo "collecting the wheels of $*"
	@$(VENV)/bin/python -m pip wheel --no-input -qq --wheel-dir $(WHEELS) $(^:%=-r %)
	@touch $@

$(WHEELS)/.own: pyproject.toml $(wildcard $(foreach package,proto broker frontend gpu_worker deploy,$(package)/*.py \
    $(package)/*/*.py)) $(wildcard gpu_worker/embedded_model/* gpu_worker/embedded_model/*/*) | $(VENV)/.made
	@rm -f $(WHEELS)/flux_server-*.whl
	@$(VENV)/bin/python -m pip wheel --no-input -qq --wheel-dir $(WHEELS) --no-deps .
	@touch $@

install: $(collected) | $(VENV)/.made
	@echo "installing $(parts) into $(staged)"
	@rm -rf "$(staged).new" && mkdir -p "$(DESTDIR)$(libdir)"
	@$(PYTHON) -m venv --without-pip "$(staged).new"
	@$(VENV)/bin/python -m pip --python "$(staged).new/bin/python" install --no-input -qq --no-index \
	    --find-links $(WHEELS) --no-compile $(requirements:%=-r %) flux-server
# Nothing keeps the path where it was made. What does not compile belongs to a library's templates.
	@find "$(staged).new/bin" -type f -exec sed -i 's|$(staged)\.new|$(home)|g' {} +
	@sed -i '/^command = /d' "$(staged).new/pyvenv.cfg"
	@"$(staged).new/bin/python" -m compileall -qq -j 0 -s "$(staged).new" -p "$(home)" "$(staged).new/lib" || :
# As a whole or not at all: what runs goes on with the files that it has open.
	@rm -rf "$(staged).old"
	@if test -e "$(staged)"; then mv "$(staged)" "$(staged).old"; fi
	@mv "$(staged).new" "$(staged)" && rm -rf "$(staged).old"
	@install -d "$(DESTDIR)$(unitdir)" "$(DESTDIR)$(sysusersdir)" "$(DESTDIR)$(tmpfilesdir)" \
	    "$(DESTDIR)$(docdir)/examples" "$(DESTDIR)$(sysconfdir)/flux-server"
	@for unit in $(units); do \
	    $(relocate) "deploy/systemd/$$unit" > "$(DESTDIR)$(unitdir)/$$unit" \
	    && chmod 0644 "$(DESTDIR)$(unitdir)/$$unit" || exit 1; \
	done
	@install -m 0644 deploy/systemd/flux-server.sysusers "$(DESTDIR)$(sysusersdir)/flux-server.conf"
	@$(relocate) deploy/systemd/flux-server.tmpfiles > "$(DESTDIR)$(tmpfilesdir)/flux-server.conf"
	@chmod 0644 "$(DESTDIR)$(tmpfilesdir)/flux-server.conf"
	@install -m 0644 README.md LICENSE $(wildcard docs/*.md) "$(DESTDIR)$(docdir)"
	@install -m 0644 $(wildcard deploy/systemd/examples/*) "$(DESTDIR)$(docdir)/examples"
	@for folder in $(watching); do \
	    install -d "$(DESTDIR)$(datadir)/$$folder" \
	    && install -m 0644 "deploy/$$folder"/* "$(DESTDIR)$(datadir)/$$folder" || exit 1; \
	done
	@if test -e "$(staged)/bin/flux-keys"; then \
	    install -d "$(DESTDIR)$(bindir)" && ln -sfn "$(home)/bin/flux-keys" "$(DESTDIR)$(bindir)/flux-keys"; fi
# What somebody has changed stays. It may hold a key: not for everybody.
	@for file in $(settings); do \
	    test -e "$(DESTDIR)$(sysconfdir)/flux-server/$$file" || install -m 0640 \
	        "deploy/systemd/examples/$$file" "$(DESTDIR)$(sysconfdir)/flux-server/$$file" || exit 1; \
	done
	@if $(on_this_host); then \
	    systemd-sysusers "$(sysusersdir)/flux-server.conf" \
	    && systemd-tmpfiles --create "$(tmpfilesdir)/flux-server.conf" && systemctl daemon-reload; fi

# Settings, keys, models and users stay: nobody can bring them back.
uninstall:
	@if $(on_this_host); then \
	    systemctl disable --quiet $(filter-out %@.service,$(all_units)) 2>/dev/null; \
	    rm -rf /etc/systemd/system/flux-server.target.wants; \
	    systemctl stop $(filter-out %@.service,$(all_units)) 'flux-worker@*.service' 2>/dev/null; :; fi
	rm -rf "$(staged)" "$(staged).new" "$(staged).old"
	rm -f $(foreach file,README.md LICENSE $(notdir $(wildcard docs/*.md)) \
	    $(addprefix examples/,$(notdir $(wildcard deploy/systemd/examples/*))),"$(DESTDIR)$(docdir)/$(file)")
	-@rmdir "$(DESTDIR)$(docdir)/examples" "$(DESTDIR)$(docdir)" 2>/dev/null || :
	rm -f $(foreach file,$(wildcard $(watching:%=deploy/%/*)),"$(DESTDIR)$(datadir)/$(file:deploy/%=%)")
	-@rmdir $(watching:%="$(DESTDIR)$(datadir)/%") "$(DESTDIR)$(datadir)" 2>/dev/null || :
	rm -f $(foreach unit,$(all_units),"$(DESTDIR)$(unitdir)/$(unit)") "$(DESTDIR)$(bindir)/flux-keys" \
	    "$(DESTDIR)$(sysusersdir)/flux-server.conf" "$(DESTDIR)$(tmpfilesdir)/flux-server.conf"
	@if $(on_this_host); then systemctl daemon-reload; fi
