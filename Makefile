# make demo     one real container through agentshim: what was asked, what was granted, and why
# make test     everything; installs what it needs (apt and pip) by itself
# make fuzz     a million inputs, coverage-guided; make faults: every system call of ours fails once; make proofs: ten
#               million simulated system calls
# make install  PREFIX=/usr/local, DESTDIR=; make uninstall: FORCE=1 if an engine's file still names us
.DEFAULT_GOAL := build
.PHONY: build launcher demo test lint bench fuzz faults proofs install uninstall clean packages packages-test packages-demo

PREFIX ?= /usr/local
DESTDIR ?=
LIBDIR := $(PREFIX)/lib/agentshim
VENV := .venv
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

# The interpreter of production: the system's where it is new enough, since it starts fastest, else any python3.
NEW_ENOUGH := import sys; sys.version_info >= (3, 11) or sys.exit(1); print(sys.executable)
PYTHON ?= $(shell for p in /usr/bin/python3 python3; do \
	$$p -I -c '$(NEW_ENOUGH)' 2>/dev/null && exit; done; echo /usr/bin/python3)
RUN := $(VENV)/bin/python

DEMO_PACKAGES := runc busybox-static gcc libc6-dev musl-tools python3
# Not every release of Debian and Ubuntu has these; a test that misses one skips, loudly. The largest are Chromium (0.5
# GB on disk), clang (0.4 GB) and what is in TOOLS (1.3 GB): half a gigabyte to fetch, and a minute to install.
WANTED := criu docker-compose netavark aardvark-dns containernetworking-plugins fuse-overlayfs crun slirp4netns \
	nginx openssl bubblewrap ripgrep mksh git curl xz-utils zsh fish gdb clang libclang-rt-dev chromium-headless-shell \
	mandoc groff-base
# What workloads under our policies are written in, as PROGRAM:PACKAGE: where the program has come another way, its package
# is not asked for; NodeSource's nodejs, for one, brings npm and rules Debian's out.
TOOLS := node:nodejs npm:npm javac:default-jdk-headless go:golang-go rustc:rustc cargo:cargo
PACKAGES := $(DEMO_PACKAGES) make python3-dev python3-venv docker.io containerd podman libseccomp-dev libseccomp2 \
	nftables iptables iproute2 tini conmon uidmap strace dnsmasq-base util-linux

# $(call absent,PROGRAM PACKAGE): the package, where no directory that containers search too has the program.
absent = $(if $(wildcard $(addsuffix /$(firstword $(1)),/usr/local/bin /usr/bin)),,$(lastword $(1)))

# Packages of servers start them, unless this file forbids it: tests start engines and servers of their own.
POLICY_RC := /usr/sbin/policy-rc.d

# $(call apt,REQUIRED,WANTED): install what is missing; a no-op without root's help where nothing is. An administrator's
# own policy-rc.d stays; one that a killed make has left is taken over.
define apt
	@have=$$(dpkg-query -W -f='$${Package} $${db:Status-Status}\n' $(1) $(2) 2>/dev/null | sed -n 's/ installed$$//p' || true); \
	missing=$$(for p in $(1) $(2); do grep -qx "$$p" <<< "$$have" || echo $$p; done); \
	if [ -z "$$missing" ]; then exit 0; fi; \
	echo "installing:" $$missing; \
	if [ "$$(id -u)" != 0 ]; then echo "make: not root: run make as root, or install these packages first" >&2; exit 1; fi; \
	apt-get update -q; \
	for p in $$missing; do \
		if why=$$(apt-get install -s -qq --no-install-recommends $$p 2>&1); then found="$${found:-} $$p"; \
		elif [[ " $(2) " == *" $$p "* ]]; then echo "NOT OFFERED HERE, its tests will skip: $$p" >&2; \
		else echo "make: $$p cannot be installed: $$why" >&2; exit 1; fi; \
	done; \
	if [ -z "$${found:-}" ]; then exit 0; fi; \
	if [ ! -e $(POLICY_RC) ] || grep -q 'Makefile of agentshim' $(POLICY_RC); then \
		trap 'rm -f $(POLICY_RC)' EXIT; trap 'exit 1' HUP INT TERM; \
		printf '#!/bin/sh\n# of the Makefile of agentshim, while it installs\nexit 101\n' > $(POLICY_RC); \
		chmod 755 $(POLICY_RC); \
	fi; \
	DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$found
endef

packages:
	$(call apt,$(PACKAGES),)

packages-test: packages
	$(call apt,,$(WANTED) $(foreach tool,$(TOOLS),$(call absent,$(subst :, ,$(tool)))))

packages-demo:
	$(call apt,$(DEMO_PACKAGES),)

# The stamp names what the environment was made for: another interpreter or another pyproject.toml makes it again.
STAMP = $(VENV)/made-for-$(shell { $(PYTHON) -VV; cat pyproject.toml; } 2>/dev/null | sha256sum | cut -c1-16)
.PHONY: venv
venv: packages
	@if [ -e "$(STAMP)" ]; then exit 0; fi; \
	rm -rf $(VENV); \
	$(PYTHON) -m venv $(VENV); \
	$(RUN) -c 'import tomllib; o = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
	print("\n".join(o["cold"] + o["test"]))' > $(VENV)/requirements; \
	$(RUN) -m pip install -qq --disable-pip-version-check -r $(VENV)/requirements; \
	touch "$(STAMP)"

NATIVE := $(wildcard native/*.c native/*.cdef native/*.py)

build: venv
	@$(MAKE) -s native/build/.whole
	$(bytecode)

native/build/.whole: $(NATIVE) $(STAMP)
	$(RUN) -B native/build.py --python $(PYTHON)
	@touch $@

# The launcher passes -B: byte code is made here, or every start of the development tree would compile 30 modules.
define bytecode
	@$(PYTHON) -I -m compileall -q shim hooks
	@$(PYTHON) -I -S -X no_debug_ranges shim/cold/hotfile.py
endef

launcher: packages-demo
	@$(MAKE) -s native/build/agentshim
	$(bytecode)

native/build/agentshim: $(NATIVE)
	$(PYTHON) -B native/build.py --launcher --python $(PYTHON)

demo: launcher
	@$(PYTHON) -B -m conformance.demo

test: packages-test build
	$(RUN) -B -m pytest $(TESTS)

lint: packages-test build
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy
	$(RUN) -B native/build.py --analyze

bench: packages-test build
	@$(RUN) -B -m conformance.bench

# The long runs, about 20, 30 and 3 minutes on one core; `make test` has a small one of each.
fuzz: packages-test build
	@nice -n 10 $(RUN) -B -m tests.fuzz $(FUZZ)

faults: packages-test build
	@nice -n 10 $(RUN) -B -m conformance.faults $(FAULTS)

PROBES ?= 10000000
proofs: build
	@AGENTSHIM_PROBES=$(PROBES) nice -n 10 $(RUN) -B -m pytest -q -s tests/laws/test_seccomp_proof.py -k ten_million

# Byte code is compiled here, once, never at a container's start (the launcher passes -B). unchecked-hash: a copy or a
# package that moves modification times must not make it stale and every start slow without a word. The new tree is
# made beside the old one and swapped: an engine may call at any time. Where a crash has come between the two moves, the
# old one is the only whole one, and goes back first.
NEW := $(DESTDIR)$(LIBDIR).new
# Where each shell looks by itself, below PREFIX=/usr and /usr/local.
BASH_COMPLETION := share/bash-completion/completions/agentshim
ZSH_COMPLETION := share/zsh/site-functions/_agentshim
FISH_COMPLETION := share/fish/vendor_completions.d/agentshim.fish
install: build
	if [ -e $(DESTDIR)$(LIBDIR).old ] && [ ! -e $(DESTDIR)$(LIBDIR) ]; then mv $(DESTDIR)$(LIBDIR).old $(DESTDIR)$(LIBDIR); fi
	rm -rf $(NEW) $(DESTDIR)$(LIBDIR).old
	install -d -m 755 $(DESTDIR)$(PREFIX)/bin $(NEW)
	$(RUN) -B native/build.py --payload | tar -c -T - | tar -x -C $(NEW) --no-same-owner --no-same-permissions
	install -m 755 native/build/agentshim-net $(NEW)/agentshim-net
	$(RUN) -m pip install -qq --disable-pip-version-check --no-compile --target $(NEW)/site-packages \
		$$($(RUN) -c 'import tomllib; \
		print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["cold"])')
	cd $(NEW) && $(PYTHON) -I -m compileall -q --invalidation-mode unchecked-hash \
		-s $(NEW) -p $(LIBDIR) .
	$(PYTHON) -I -S -X no_debug_ranges $(NEW)/shim/cold/hotfile.py
	echo $(PYTHON) > $(NEW)/python
	echo $(LIBDIR)/site-packages > $(NEW)/site
	chmod -R u=rwX,go=rX $(NEW)
	if [ -e $(DESTDIR)$(LIBDIR) ]; then mv $(DESTDIR)$(LIBDIR) $(DESTDIR)$(LIBDIR).old; fi
	mv $(NEW) $(DESTDIR)$(LIBDIR)
	rm -rf $(DESTDIR)$(LIBDIR).old
	install -d -m 755 $(DESTDIR)$(PREFIX)/share/man/man5 $(DESTDIR)$(PREFIX)/share/man/man8
	install -m 644 shim/man/*.5 $(DESTDIR)$(PREFIX)/share/man/man5
	install -m 644 shim/man/*.8 $(DESTDIR)$(PREFIX)/share/man/man8
	install -D -m 644 shim/completions/agentshim.bash $(DESTDIR)$(PREFIX)/$(BASH_COMPLETION)
	install -D -m 644 shim/completions/_agentshim $(DESTDIR)$(PREFIX)/$(ZSH_COMPLETION)
	install -D -m 644 shim/completions/agentshim.fish $(DESTDIR)$(PREFIX)/$(FISH_COMPLETION)
	install -m 755 native/build/agentshim $(DESTDIR)$(PREFIX)/bin/.agentshim.new
	mv -f $(DESTDIR)$(PREFIX)/bin/.agentshim.new $(DESTDIR)$(PREFIX)/bin/agentshim

# Files and directories of engines in which `agentshim install` writes. An engine that names a runtime that is gone
# starts no container, and cannot stop those that run.
ENGINE_FILES := $(addprefix $(DESTDIR)/etc/,docker/daemon.json containerd containers/containers.conf \
	containers/containers.conf.d crio)
FORCE ?=
uninstall:
	@named=$$(grep -rlsF --exclude='*.before-agentshim' -- '$(PREFIX)/bin/agentshim' $(ENGINE_FILES) || true); \
	if [ -n "$$named" ]; then \
		echo "make: agentshim is still named in:" $$named >&2; \
		if [ "$(FORCE)" != 1 ]; then \
			echo "make: first: agentshim uninstall ENGINE (or FORCE=1, and those engines run no container)" >&2; exit 1; \
		fi; \
	fi
	rm -rf $(DESTDIR)$(LIBDIR) $(NEW) $(DESTDIR)$(LIBDIR).old $(DESTDIR)$(PREFIX)/bin/.agentshim.new
	find $(DESTDIR)$(PREFIX)/bin -maxdepth 1 -name 'agentshim-*' -lname agentshim -delete
	rm -f $(DESTDIR)$(PREFIX)/bin/agentshim $(DESTDIR)$(PREFIX)/share/man/man[58]/agentshim*.[58]
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/,$(BASH_COMPLETION) $(ZSH_COMPLETION) $(FISH_COMPLETION))

clean:
	rm -rf native/build dist shim/_sys.abi3.so $(VENV)
	find shim hooks native tests conformance -name __pycache__ -prune -exec rm -rf {} +
