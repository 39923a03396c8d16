# techally: PGXS makefile.  make, make install, make installcheck as usual.
EXTENSION  = techally
EXTVERSION = $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" techally.control)

MODULE_big = techally
OBJS = $(patsubst %.c,%.o,$(wildcard src/*.c))
PGFILEDESC = "techally - the core of a shop inside the database"

DATA_built = sql/$(EXTENSION)--$(EXTVERSION).sql
DATA = $(filter-out $(DATA_built),$(wildcard sql/$(EXTENSION)--*--*.sql))
STORE_FILES = $(wildcard sql/store/*.sql)

TESTS = $(wildcard test/sql/*.sql)
REGRESS = $(sort $(patsubst test/sql/%.sql,%,$(TESTS)))
REGRESS_OPTS = --inputdir=test --load-extension=techally
ISOLATION = $(sort $(patsubst test/specs/%.spec,%,$(wildcard test/specs/*.spec)))
ISOLATION_OPTS = --inputdir=test --outputdir=. --load-extension=techally

PG_CFLAGS += -Wall -Wextra -Wno-unused-parameter -Wno-missing-field-initializers
EXTRA_CLEAN = src/*.d sql/$(EXTENSION)--$(EXTVERSION).sql

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

# header dependencies, which PGXS leaves to --enable-depend builds
src/%.o: override CFLAGS += -MMD -MP
-include $(OBJS:.o=.d)

PARTS = $(addprefix sql/parts/,$(shell cat sql/parts/manifest))
sql/$(EXTENSION)--$(EXTVERSION).sql: sql/parts/manifest $(PARTS) techally.control
	cat $(PARTS) >$@

storedir = $(DESTDIR)$(datadir)/extension/techally/store

install: install-store
install-store: | installdirs
	$(MKDIR_P) '$(storedir)'
	rm -f '$(storedir)'/*.sql
	$(INSTALL_DATA) $(addprefix $(srcdir)/,$(STORE_FILES)) '$(storedir)/'
uninstall: uninstall-store
uninstall-store:
	rm -rf '$(DESTDIR)$(datadir)/extension/techally'
.PHONY: install-store uninstall-store
