# Shared by the scripts here; sourced by bash, not run.
#
# A script that uses it runs twice.  Outside, as whoever called it: ta_need
# finds a PostgreSQL server and installs the packages that are missing, then
# ta_outside makes a private temporary directory with a copy of the source
# tree and one of the server's files, and runs the script again in there with
# --inside, without privileges and in a process group of its own.  Inside,
# ta_build and ta_start build, install into the private copy and start a
# cluster that listens on nothing but a Unix socket in that directory.
#
# So nothing is installed into the system's PostgreSQL, no cluster of the
# machine is touched, the tree stays as it was, and to clean up is to stop
# what still runs in the directory and to remove it.

ta_top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
ta_preferred=15
ta_supported="18 17 16 15 14"

ta_say() { printf '%s\n' "$*"; }
ta_die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# --- Outside: what the machine must have -----------------------------------

ta_as_root() {
	if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# A pg_config that belongs to a whole server with its development files.
ta_usable() {
	local bindir
	bindir=$("$1" --bindir 2>/dev/null) &&
		[ -x "$bindir/postgres" ] && [ -x "$bindir/initdb" ] &&
		[ -f "$("$1" --pgxs)" ] && [ -f "$("$1" --includedir-server)/postgres.h" ]
}

ta_find_server() {
	local version candidate
	for version in $ta_preferred $ta_supported; do
		candidate=/usr/lib/postgresql/$version/bin/pg_config
		if ta_usable "$candidate"; then PG_CONFIG=$candidate; return 0; fi
	done
	candidate=$(command -v pg_config) && ta_usable "$candidate" && PG_CONFIG=$candidate
}

ta_has_candidate() {
	[ -n "$(apt-cache madison "$1" 2>/dev/null)" ]
}

# The version to install: that of a server whose development files are
# missing, else 15, else the distribution's own.
ta_choose_version() {
	local version
	for version in $ta_preferred $ta_supported; do
		if [ -x "/usr/lib/postgresql/$version/bin/postgres" ]; then echo "$version"; return; fi
	done
	if ta_has_candidate "postgresql-$ta_preferred"; then echo "$ta_preferred"; return; fi
	apt-cache depends postgresql 2>/dev/null | sed -n 's/.*Depends: postgresql-\([0-9][0-9]*\)$/\1/p' | head -n 1
}

ta_explain_platform() {
	cat >&2 <<-EOF
	${0##*/}: not everything it needs is here: $*
	This machine has no apt-get to install it with.  Please install
	  - PostgreSQL 14 to 18 with its server development files (pg_config, PGXS),
	  - make and a C compiler,
	  - for scripts/test: Perl with prove and IPC::Run, pgTAP and pg_prove,
	and say PG_CONFIG=/path/to/pg_config where pg_config is not in the PATH.
	EOF
	exit 1
}

ta_createcluster=/etc/postgresql-common/createcluster.d
ta_createcluster_made=

# Debian creates and starts a cluster with the server's package.  Nobody asked
# for one: we bring our own.
ta_suppress_cluster() {
	[ ! -d "$ta_createcluster" ] && ta_createcluster_made=yes
	ta_as_root mkdir -p "$ta_createcluster"
	echo 'create_main_cluster = false' | ta_as_root tee "$ta_createcluster/techally.conf" >/dev/null
}

ta_unsuppress_cluster() {
	[ -e "$ta_createcluster/techally.conf" ] || return 0
	ta_as_root rm -f "$ta_createcluster/techally.conf"
	[ -z "$ta_createcluster_made" ] || ta_as_root rmdir "$ta_createcluster" 2>/dev/null || true
}

ta_apt() {
	ta_as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=120 "$@"
}

ta_install() {
	local log status=0
	if ! command -v apt-get >/dev/null; then ta_explain_platform "$@"; fi
	if [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then
		ta_die "please have an administrator install: $*"
	fi
	ta_say "installing: $*"
	log=$(mktemp)
	trap 'ta_unsuppress_cluster; rm -f "$log"; exit 130' INT TERM HUP
	case " $* " in *" postgresql-"*) ta_suppress_cluster ;; esac
	ta_apt install -y --no-install-recommends "$@" >"$log" 2>&1 </dev/null || status=$?
	ta_unsuppress_cluster
	[ "$status" = 0 ] || tail -n 20 "$log" >&2
	rm -f "$log"
	trap - INT TERM HUP
	[ "$status" = 0 ] || ta_die "apt-get could not install: $*"
}

# ta_need FEATURE ...
# Sees to it that what the features need is here.  Features: build, tests.
ta_need() {
	local packages="" feature version=""

	if [ -n "${PG_CONFIG:-}" ]; then
		command -v "$PG_CONFIG" >/dev/null || ta_die "PG_CONFIG=$PG_CONFIG: no such program"
		PG_CONFIG=$(command -v "$PG_CONFIG")
		ta_usable "$PG_CONFIG" ||
			ta_die "PG_CONFIG=$PG_CONFIG does not belong to a server with its development files (postgres, initdb, PGXS)"
	else
		ta_find_server || true
	fi
	command -v make >/dev/null || packages+=" make"
	command -v gcc >/dev/null || command -v cc >/dev/null || packages+=" gcc"
	[ -e /usr/include/stdio.h ] || packages+=" libc6-dev"
	[ -e /usr/include/zlib.h ] || packages+=" zlib1g-dev"
	for feature; do
		[ "$feature" = tests ] || continue
		command -v prove >/dev/null || packages+=" perl"
		command -v xz >/dev/null || packages+=" xz-utils"
		perl -MIPC::Run -e 1 2>/dev/null || packages+=" libipc-run-perl"
		command -v pg_prove >/dev/null || packages+=" libtap-parser-sourcehandler-pgtap-perl"
	done

	# Everything here on a machine that is set up: no network, no root.
	if [ -n "${PG_CONFIG:-}" ] && [ -z "$packages" ] && ta_has_pgtap "$@"; then return; fi

	if ! command -v apt-get >/dev/null; then
		[ -n "${PG_CONFIG:-}" ] || packages+=" postgresql"
		[ -z "$packages" ] || ta_explain_platform $packages
		return
	fi
	ta_say "looking for packages"
	ta_apt update >/dev/null 2>&1 || true
	if [ -z "${PG_CONFIG:-}" ]; then
		version=$(ta_choose_version)
		[ -n "$version" ] || ta_die "apt-get knows of no PostgreSQL server"
		packages+=" postgresql-$version postgresql-server-dev-$version"
	elif [[ $PG_CONFIG == /usr/lib/postgresql/*/bin/pg_config ]]; then
		version=$(basename "$(dirname "$(dirname "$PG_CONFIG")")")
	fi
	if [ -n "$version" ] && ! ta_has_pgtap "$@" && ta_has_candidate "postgresql-$version-pgtap"; then
		packages+=" postgresql-$version-pgtap"
	fi
	[ -z "$packages" ] || ta_install $packages
	[ -n "${PG_CONFIG:-}" ] || PG_CONFIG=/usr/lib/postgresql/$version/bin/pg_config
	ta_usable "$PG_CONFIG" || ta_die "$PG_CONFIG is not usable after the installation"
}

ta_has_pgtap() {
	[[ " $* " != *" tests "* ]] ||
		{ [ -n "${PG_CONFIG:-}" ] && [ -e "$("$PG_CONFIG" --sharedir)/extension/pgtap.control" ]; }
}

# --- Outside: the private directory ------------------------------------------

ta_dir=
ta_child=
ta_user=

# initdb refuses root, so root borrows a user that owns nothing of ours.
ta_choose_user() {
	[ "$(id -u)" = 0 ] || return 0
	for ta_user in postgres nobody; do
		! id -u "$ta_user" >/dev/null 2>&1 || return 0
	done
	ta_die "neither of the users postgres and nobody exists; please call it as an unprivileged user"
}

# Replaces this process, so it is meant for a subshell.
ta_exec_unprivileged() {
	if [ -z "$ta_user" ]; then
		exec "$@"
	elif command -v setpriv >/dev/null; then
		exec setpriv --reuid="$ta_user" --regid="$(id -g "$ta_user")" --init-groups "$@"
	else
		exec runuser -u "$ta_user" -- "$@"
	fi
}

# A directory where the unprivileged user may run programs, with a path short
# enough for a Unix socket.
ta_make_dir() {
	local base dir
	for base in "${TMPDIR:-/tmp}" /tmp /var/tmp; do
		[ "${#base}" -le 40 ] || continue
		dir=$(mktemp -d "$base/techally.XXXXXX" 2>/dev/null) || continue
		ta_dir=$(cd "$dir" && pwd -P)
		printf '#!/bin/sh\nexit 0\n' >"$ta_dir/probe"
		chmod 755 "$ta_dir/probe"
		[ -z "$ta_user" ] || chown "$ta_user" "$ta_dir"
		if (ta_exec_unprivileged "$ta_dir/probe") 2>/dev/null; then
			rm -f "$ta_dir/probe"
			return
		fi
		rm -rf "$ta_dir"
	done
	ta_die "found no directory to work in; set TMPDIR to one where programs may run"
}

ta_copy_tree() {
	mkdir "$ta_dir/techally"
	tar -C "$ta_top" --exclude=./.git --exclude='./tmp_check*' --exclude='*.o' --exclude='*.bc' --exclude='*.so' \
		--exclude='./src/*.d' -cf - . | tar -C "$ta_dir/techally" -xf -
	# tests look for optional data beside the tree
	[ ! -d "$ta_top/../shared" ] || ln -s "$(cd "$ta_top/../shared" && pwd -P)" "$ta_dir/shared"
}

# PostgreSQL finds its files relative to its programs, so a copy of them in
# another place is a server of its own.  Headers are only read: link to them.
ta_copy_server() {
	local server=$ta_dir/server bindir dir program option
	bindir=$("$PG_CONFIG" --bindir)
	mkdir -p "$server$bindir"
	for program in postgres initdb psql pgbench createdb dropdb pg_config pg_ctl pg_isready pg_dump pg_dumpall \
		pg_restore vacuumdb pg_basebackup pg_controldata pg_waldump pg_resetwal pg_amcheck pg_upgrade; do
		[ ! -e "$bindir/$program" ] || cp -pL "$bindir/$program" "$server$bindir/"
	done
	for option in --pkglibdir --sharedir; do
		dir=$("$PG_CONFIG" "$option")
		mkdir -p "$server$dir"
		cp -pR --reflink=auto "$dir/." "$server$dir/" 2>/dev/null || cp -pR "$dir/." "$server$dir/"
	done
	for option in --includedir --pkgincludedir --includedir-server; do
		dir=$("$PG_CONFIG" "$option")
		[ ! -e "$server$dir" ] || continue
		mkdir -p "$(dirname "$server$dir")"
		ln -s "$dir" "$server$dir"
	done
	[ "$("$server$bindir/pg_config" --sharedir)" = "$server$("$PG_CONFIG" --sharedir)" ] ||
		ta_die "the server of $PG_CONFIG cannot be copied: it does not find its files relative to its programs"
	PG_CONFIG=$server$bindir/pg_config
}

# The processes that we started and what they started: they run a program of
# our directory, or were born with its name in their environment.
ta_ours() {
	local process
	for process in /proc/[0-9]*; do
		if [[ $(readlink "$process/exe" 2>/dev/null) == "$ta_dir"/* ]] ||
			grep -qzxF "TA_DIR=$ta_dir" "$process/environ" 2>/dev/null; then
			echo "${process#/proc/}"
		fi
	done
}

# Ends what still runs.  A server that is starting up when it is told to end
# leaves its shared memory behind, so take note of that first, while nothing
# moves.
ta_stop_all() {
	local pid segments signal
	[ -n "$(ta_ours)" ] || return 0
	kill -STOP -- "-$ta_child" 2>/dev/null || true
	segments=$(for pid in $(ta_ours); do
		# posix segments by name, those of System V by the number in the column of the inode
		awk '$6 ~ "^/dev/shm/PostgreSQL" { print $6 } $6 ~ "^/SYSV" { print $5 }' "/proc/$pid/maps" 2>/dev/null
	done | sort -u)
	kill -TERM -- "-$ta_child" 2>/dev/null || true
	kill -CONT -- "-$ta_child" 2>/dev/null || true
	for signal in 0 0 0 0 0 QUIT 0 0 0 0 0 0 0 0 0 0 KILL 0 0 KILL 0 0; do
		pid=$(ta_ours)
		[ -n "$pid" ] || break
		kill "-$signal" $pid 2>/dev/null || true
		sleep 0.3
	done
	for pid in $segments; do
		case "$pid" in
			/*) rm -f "$pid" ;;
			*) ipcrm -m "$pid" 2>/dev/null || true ;;
		esac
	done
}

ta_cleanup() {
	trap '' INT TERM HUP PIPE
	[ -n "$ta_dir" ] || return 0
	ta_stop_all
	rm -rf "$ta_dir" 2>/dev/null || { sleep 1; rm -rf "$ta_dir"; }
	ta_dir=
}

# ta_outside SCRIPT [ARG ...]
# Runs scripts/SCRIPT --inside in a private directory and exits as it does.
ta_outside() {
	local script=$1 status=0 pg_config
	shift
	ta_choose_user
	trap ta_cleanup EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM HUP PIPE
	ta_make_dir
	ta_copy_tree
	ta_copy_server
	mkdir "$ta_dir/tmp"
	[ -z "$ta_user" ] || chown -R "$ta_user" "$ta_dir"
	cd "$ta_dir/techally"
	pg_config=$PG_CONFIG
	set -m
	(
		unset "${!PG@}"
		export PG_CONFIG=$pg_config PATH=${pg_config%/*}:$PATH
		export TA_DIR=$ta_dir HOME=$ta_dir TMPDIR=$ta_dir/tmp LC_ALL=C.UTF-8
		ta_exec_unprivileged bash "scripts/$script" --inside "$@"
	) </dev/null &
	ta_child=$!
	set +m
	wait "$ta_child" || status=$?
	exit "$status"
}

# --- Inside -----------------------------------------------------------------

# ta_build [VARIABLE=VALUE ...]
# Builds and installs into the private copy; shows the compiler's words only
# where it had any to complain.
ta_build() {
	make clean PG_CONFIG="$PG_CONFIG" >"$TA_DIR/build.log" 2>&1 &&
		make -j2 all PG_CONFIG="$PG_CONFIG" "$@" >"$TA_DIR/build.log" 2>&1 &&
		make install PG_CONFIG="$PG_CONFIG" "$@" >>"$TA_DIR/build.log" 2>&1 ||
		{ cat "$TA_DIR/build.log"; return 1; }
}

# In a session of its own, so that it ends by itself when we are interrupted:
# killed, it would leave shared memory behind.
ta_initdb() {
	setsid --wait initdb -D "$TA_DIR/data" -U postgres -A trust -E UTF8 --no-sync "$@" >"$TA_DIR/initdb.log" 2>&1
}

# ta_start [SETTING=VALUE ...]
# Starts the cluster and points libpq's environment at it.
ta_start() {
	local setting
	export PGHOST=$TA_DIR PGPORT=5432 PGUSER=postgres PGDATABASE=postgres
	ta_initdb --locale=C.UTF-8 || { rm -rf "$TA_DIR/data" && ta_initdb --locale=C; } ||
		{ cat "$TA_DIR/initdb.log"; return 1; }
	for setting in "listen_addresses=''" "unix_socket_directories='$TA_DIR'" "port=$PGPORT" "$@"; do
		printf '%s\n' "$setting" >>"$TA_DIR/data/postgresql.conf"
	done
	pg_ctl -D "$TA_DIR/data" -l "$TA_DIR/server.log" -w start >/dev/null || { tail -n 20 "$TA_DIR/server.log"; return 1; }
}

ta_stop() {
	pg_ctl -D "$TA_DIR/data" -m fast -w stop >/dev/null 2>&1 || true
}
