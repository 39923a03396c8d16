# techally: PGXS makefile.
#
#   make, make install, make installcheck      as usual with PGXS
#   make prove          pgTAP and TAP tests, after make install
#   make check-meta     META.json agrees with techally.control
#   make format         clang-format over src/;  make check-format only looks
#   make bench          benchmarks, on a server of their own
#   make dist           the archive for PGXN
#
# scripts/test does all of the testing in one go, on a server of its own.

EXTENSION  = techally
EXTVERSION = $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" techally.control)

MODULE_big = techally
OBJS = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c)))
PGFILEDESC = "techally - the core of a shop inside the database"

DATA_built = sql/$(EXTENSION)--$(EXTVERSION).sql
DATA = $(filter-out $(DATA_built),$(wildcard sql/$(EXTENSION)--*--*.sql))
STORE_FILES = $(wildcard sql/store/*.sql)

# pg_regress looks for NAME.sql in sql/ before test/sql/, which is why the
# parts of the install script live in a folder of their own.
REGRESS := $(sort $(patsubst test/sql/%.sql,%,$(wildcard test/sql/*.sql)))
REGRESS_OPTS = --inputdir=test --load-extension=techally
ISOLATION := $(sort $(patsubst test/specs/%.spec,%,$(wildcard test/specs/*.spec)))
ISOLATION_OPTS = --inputdir=test --outputdir=. --load-extension=techally
PGTAP_TESTS := $(sort $(wildcard test/pgtap/*.sql))
PROVE_TESTS := $(sort $(wildcard test/t/*.pl))

PG_CFLAGS += -Wall -Wextra -Wno-unused-parameter -Wno-missing-field-initializers
EXTRA_CLEAN = src/*.d src/*.bc $(DATA_built)

# These goals need no server.
plain_goals = check-meta format check-format dist
ifneq ($(filter-out $(plain_goals),$(or $(MAKECMDGOALS),all)),)

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
ifeq ($(wildcard $(PGXS)),)
$(error '$(PG_CONFIG) --pgxs' names no makefile: install the server's development files, or set PG_CONFIG)
endif

# A server built with LLVM wants bitcode from us, too.  It only serves to
# inline our functions into JIT-compiled queries, so do without where the
# tools that the server was built with are not installed.
pgxs_setting = $(shell sed -n 's/^$(1) *= *//p' $(dir $(PGXS))../Makefile.global)
llvm_tools := $(call pgxs_setting,CLANG) $(call pgxs_setting,LLVM_BINPATH)/llvm-lto
ifneq ($(words $(foreach tool,$(llvm_tools),$(shell command -v $(tool) 2>/dev/null))),2)
override with_llvm = no
endif

# Partitions are archived to files with zlib, where the server has it, too, and
# its header is there.
ifneq ($(call pgxs_setting,with_zlib),no)
ifeq ($(shell echo '\#include <zlib.h>' | $(CC) -E - >/dev/null 2>&1 && echo yes),yes)
PG_CPPFLAGS += -DTA_HAVE_ZLIB
SHLIB_LINK += -lz
endif
endif

include $(PGXS)

# PGXS passes on the flags of the compiler that built the server; clang need
# not know all those of gcc.
ifneq ($(findstring clang,$(shell $(CC) --version 2>/dev/null)),)
override CFLAGS += -Wno-unknown-warning-option -Wno-ignored-optimization-argument \
	-Wno-unused-command-line-argument -Wno-ignored-attributes
endif

# Header dependencies, which PGXS tracks only where the server was configured
# with --enable-depend.  One file names both the object and the bitcode.
src/%.o: override CFLAGS += -MMD -MP -MT $@ -MT $(@:.o=.bc)
-include $(OBJS:.o=.d)

PARTS = $(addprefix sql/parts/,$(shell cat sql/parts/manifest))
$(DATA_built): sql/parts/manifest $(PARTS) techally.control
	cat $(PARTS) >$@.tmp
	mv $@.tmp $@

# The store's migrations are read by the server, so they lie beside the
# extension's script.
storedir = $(DESTDIR)$(datadir)/extension/techally/store

install: install-store
install-store: | installdirs
	$(MKDIR_P) '$(storedir)'
	rm -f '$(storedir)'/*.sql
	$(INSTALL_DATA) $(addprefix $(srcdir)/,$(STORE_FILES)) '$(storedir)/'
uninstall: uninstall-store
uninstall-store:
	rm -rf '$(DESTDIR)$(datadir)/extension/techally'

# Tests in TAP.  Like installcheck they take the extension that is installed;
# the pgTAP tests run in a database of the running server, the others start
# servers of their own.
PG_PROVE ?= pg_prove
PGTAP_DB = $(CONTRIB_TESTDB)_pgtap
PSQL = '$(bindir)/psql' -X -q -v ON_ERROR_STOP=1

prove: prove-pgtap prove-tap
prove-pgtap:
ifneq ($(PGTAP_TESTS),)
	$(PSQL) -d postgres -c 'SET client_min_messages = warning' \
		-c 'DROP DATABASE IF EXISTS $(PGTAP_DB)' \
		-c 'CREATE DATABASE $(PGTAP_DB)'
	$(PSQL) -d $(PGTAP_DB) -c 'CREATE EXTENSION techally' -c 'CREATE EXTENSION pgtap' \
		-c "SELECT techally.create_store('shop')" >/dev/null
	$(PG_PROVE) --psql-bin '$(bindir)/psql' -d $(PGTAP_DB) $(PROVE_FLAGS) $(PGTAP_TESTS)
endif
prove-tap:
ifneq ($(PROVE_TESTS),)
	$(prove_installcheck)
endif

bench:
	PG_CONFIG='$(PG_CONFIG)' bench/run $(BENCH_OPTS)

.PHONY: install-store uninstall-store prove prove-pgtap prove-tap bench

endif	# goals that need a server

check-meta:
	scripts/check-meta

# Layout is settled with version 14; later ones may see a few places otherwise.
CLANG_FORMAT ?= clang-format
C_FILES = $(wildcard src/*.c src/*.h)

format:
	$(CLANG_FORMAT) -i $(C_FILES)
check-format:
	$(CLANG_FORMAT) --dry-run --Werror $(C_FILES)

dist:
	git archive --format=zip --prefix=$(EXTENSION)-$(EXTVERSION)/ \
		-o $(EXTENSION)-$(EXTVERSION).zip HEAD

.PHONY: $(plain_goals)
