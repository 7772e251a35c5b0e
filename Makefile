# Duet's front door. `make help` lists the targets.
#
# cargo runs as whoever owns the tree, also under sudo, so that no file of root's is left in target/ or ~/.cargo.
# What it built runs as root where it has to: the scripts in daemon/packaging and tests say where.

PREFIX  ?= /usr/local
DESTDIR ?=
BINDIR   = $(PREFIX)/bin
UNITDIR ?= $(if $(filter /usr,$(PREFIX)),/usr/lib/systemd/system,/etc/systemd/system)
# Where sysctl.d, sysusers.d and tmpfiles.d are.
CONFDIR ?= $(if $(filter /usr,$(PREFIX)),/usr/lib,/etc)

PACKAGING = daemon/packaging
RELEASE   = $(or $(CARGO_TARGET_DIR),target)/release
PROGRAMS  = duet duetd duet-monitor duet-vm-monitor duet-vmm
UNITS     = duetd.service duetd.socket duet-instances.service
CONFIGS   = sysctl sysusers tmpfiles

.DEFAULT_GOAL := help
.PHONY: help quickstart build deb test test-host test-vm host-shell fuzz lint bench install uninstall clean

help: ## say what each target does
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

quickstart: ## from a fresh Debian 12 or 13 to a running system container (as root)
	@$(PACKAGING)/quickstart.sh

build: ## build the programs in release mode
	@$(PACKAGING)/build.sh

deb: build ## make a package of what was built that apt installs on Debian 12 and 13
	@$(PACKAGING)/deb.sh

test: ## install what the tests need and run every test (as root)
	@tests/run.sh

test-host: ## check the built programs on a whole Debian machine in software, T=name for one file of checks (as root)
	@tests/host/run.sh

test-vm: ## boot virtual machines with our initramfs and agent in software, ARGS=name for one test (as root)
	@tests/vm.sh $(ARGS)

host-shell: ## a root shell on such a machine, which is gone when it is left (as root)
	@tests/host/shell.sh

fuzz: ## fuzz what strangers feed Duet, T=name for one target, SECONDS=60 for each
	@FUZZ_SECONDS=$(SECONDS) tests/fuzz.sh $(T)

lint: ## formatting, clippy with warnings as errors, shellcheck where it is installed
	@$(PACKAGING)/lint.sh

bench: ## measure launch, exec, list and the rest, beside Incus where it is installed, ARGS=--help (as root)
	@tests/bench.sh $(ARGS)

install: ## install programs, unit, completions and man pages under PREFIX (/usr/local) and DESTDIR
	@for program in $(PROGRAMS) duet-agent.static; do test -x $(RELEASE)/$$program || { \
		echo "$(RELEASE)/$$program is not built yet: run 'make build' first." >&2; exit 1; }; done
	install -d "$(DESTDIR)$(BINDIR)" "$(DESTDIR)$(UNITDIR)" "$(DESTDIR)$(PREFIX)/share/man/man1" \
		"$(DESTDIR)$(PREFIX)/share/bash-completion/completions" \
		"$(DESTDIR)$(PREFIX)/share/zsh/site-functions" \
		"$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d"
	install -m 0755 $(addprefix $(RELEASE)/,$(PROGRAMS)) "$(DESTDIR)$(BINDIR)"
	install -m 0755 $(RELEASE)/duet-agent.static "$(DESTDIR)$(BINDIR)/duet-agent"
	for unit in $(UNITS); do \
		sed 's|@BINDIR@|$(BINDIR)|g' $(PACKAGING)/$$unit > "$(DESTDIR)$(UNITDIR)/$$unit" || exit; \
		chmod 0644 "$(DESTDIR)$(UNITDIR)/$$unit"; done
	for name in $(CONFIGS); do \
		install -D -m 0644 $(PACKAGING)/$$name.conf "$(DESTDIR)$(CONFDIR)/$$name.d/duet.conf" || exit; done
	$(RELEASE)/duet completion bash > "$(DESTDIR)$(PREFIX)/share/bash-completion/completions/duet"
	$(RELEASE)/duet completion zsh > "$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_duet"
	$(RELEASE)/duet completion fish > "$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/duet.fish"
	$(RELEASE)/duet __man "$(DESTDIR)$(PREFIX)/share/man/man1"

uninstall: ## remove what install put there; instances and images in /var/lib/duet stay
	rm -f $(addprefix "$(DESTDIR)$(BINDIR)"/,$(PROGRAMS) duet-agent) $(addprefix "$(DESTDIR)$(UNITDIR)"/,$(UNITS)) \
		$(foreach name,$(CONFIGS),"$(DESTDIR)$(CONFDIR)/$(name).d/duet.conf") \
		"$(DESTDIR)$(PREFIX)/share/bash-completion/completions/duet" \
		"$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_duet" \
		"$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/duet.fish"
	rm -f "$(DESTDIR)$(PREFIX)/share/man/man1/duet.1" "$(DESTDIR)$(PREFIX)/share/man/man1/"duet-*.1

clean: ## remove what was built
	rm -rf "$(or $(CARGO_TARGET_DIR),target)"
