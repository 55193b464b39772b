#!/bin/bash
# The Debian packages in a bare Debian of their own: install, upgrade under load, remove, purge.
#
#     tests/packages.sh SCRATCH
#
# Builds two revisions with tools/package, makes a chroot with mmdebstrap and runs the rest inside it, in namespaces of
# its own. Prints `ok` or `not ok` for each step. The records of the embedded broker are compared with the lines that
# were published before, during and after the upgrade.
set -eu

lines=${TG_PACKAGE_LINES-100000}

step() { # NAME COMMAND...
	local name=$1 log=/tmp/tidegate-step.$$
	shift
	if "$@" >"$log" 2>&1; then
		echo "ok $name"
	else
		echo "not ok $name"
		tail -n 40 "$log" | sed 's/^/  /'
		failed=1
	fi
	rm -f "$log"
}

# wait_until COMMAND...: for 20 s at most.
wait_until() {
	local end=$((SECONDS + 20))
	until "$@"; do
		[ "$SECONDS" -lt "$end" ] || return 1
		sleep 0.05
	done
}

# ---- inside the chroot ----

daemon_pid() { tidegatectl --json status | sed -n 's/.*"pid": *\([0-9]*\).*/\1/p'; }
mode_is() { [ "$(stat -c '%U:%G %a' "$1")" = "$2" ]; }
records() { [ "$(wc -l </tmp/records)" -ge "$1" ]; }
same_records() { sort -u /tmp/records | cmp - <(sort /tmp/lines) && [ "$(wc -l </tmp/records)" = "$lines" ]; }
other_daemon() { [ "$(daemon_pid)" != "$old" ]; }
has_revision() { [ "$(dpkg-query -W -f '${Version}' "$1" | sed 's/.*-//')" = "$2" ]; }
is_gone() { [ ! -e "$1" ]; }
linked() { ldconfig -p | grep -q libtidegate.so; }
as_nobody() { setpriv --reuid=65534 --regid=65534 --clear-groups "$@"; }
delivers() { as_nobody tidegate-pub -p events -t packages/test -m "$1"; }

inside() {
	local old publisher sink
	export DEBIAN_FRONTEND=noninteractive
	ip link set lo up
	step "revision 1 installs" dpkg -i /packages/1/*.deb
	step "the user and group tidegate are there" id tidegate
	step "its folder is its own" mode_is /etc/tidegate "root:tidegate 750"
	step "its configuration is readable for root and the daemon" mode_is /etc/tidegate/tidegated.conf "root:tidegate 640"
	step "the library is found" linked
	step "the units are enabled" test -L /etc/systemd/system/multi-user.target.wants/tidegated.service
	step "the socket is enabled" test -L /etc/systemd/system/sockets.target.wants/tidegated.socket
	step "the installed configuration is right" setpriv --reuid=tidegate --regid=tidegate --clear-groups \
		tidegated -c /etc/tidegate/tidegated.conf --check

	# As the unit does: a folder of the daemon's user, and the daemon without any capability.
	install -d -o tidegate -g tidegate /run/tidegate
	tidegate-sink --protocol mqtt --listen 127.0.0.1:1883 --record /tmp/records --record-format body >/tmp/sink.log 2>&1 &
	sink=$!
	setpriv --reuid=tidegate --regid=tidegate --clear-groups --bounding-set=-all --no-new-privs \
		tidegated -c /etc/tidegate/tidegated.conf >/tmp/daemon.log 2>&1 &
	step "the daemon starts as tidegate" wait_until tidegatectl status
	step "another user's message is delivered" delivers first
	: >/tmp/records

	echo '# a line of the administrator' >>/etc/tidegate/tidegated.conf
	old=$(daemon_pid)
	seq -f 'message %.0f' "$lines" >/tmp/lines
	tidegate-pub -p events -t packages/test --rate $((lines / 10)) /tmp/lines >/tmp/publisher.log 2>&1 &
	publisher=$!
	step "messages flow" wait_until records $((lines / 20))
	step "revision 2 installs" dpkg --force-confdef --force-confold -i /packages/2/*.deb
	if records "$lines"; then
		echo "not ok the upgrade was under load: all lines were there before it had ended"
		failed=1
	fi
	step "revision 2 is there" has_revision tidegate 2
	step "another process serves" other_daemon
	step "the publisher saw every message delivered" wait "$publisher"
	step "the broker has every line once" same_records
	step "the administrator's line is still there" grep -q administrator /etc/tidegate/tidegated.conf
	step "its configuration has the same owner and mode" mode_is /etc/tidegate/tidegated.conf "root:tidegate 640"

	# dpkg has no systemd to ask here.
	kill "$(daemon_pid)"
	step "the daemon ends" wait_until is_gone /run/tidegate/admin.sock
	kill "$sink"
	step "the packages are removed" dpkg -r tidegate-tools libtidegate-dev tidegate "$(basename /packages/2/libtidegate[0-9]*_*.deb | sed 's/_.*//')"
	step "removing keeps the configuration" test -e /etc/tidegate/tidegated.conf
	step "the packages are purged" dpkg -P tidegate
	step "purging leaves no configuration" is_gone /etc/tidegate
	step "purging leaves no unit" is_gone /etc/systemd/system/multi-user.target.wants/tidegated.service
	step "purging leaves no socket" is_gone /run/tidegate
	return "$failed"
}

# ---- outside ----

package_names() { # those of Debian that the package needs
	dpkg-deb -f "$1" Depends Pre-Depends | tr ',' '\n' | sed 's/^[^:]*: //; s/|.*//; s/(.*//; s/ //g' |
		grep -v '^libtidegate\|^tidegate\|^systemd$\|^$' || true
}

outside() {
	local scratch=$1 root=$1/root revision file needs=()

	rm -rf "$scratch"
	mkdir -p "$scratch"
	for revision in 1 2; do
		step "revision $revision is built, and lintian finds no error" "$top/tools/package" \
			--to "$scratch/packages/$revision" --scratch "$scratch/build" --revision "$revision" lint
		rm -f "$scratch/packages/$revision"/*-dbgsym_*
	done
	mapfile -t needs < <(for file in "$scratch"/packages/1/*.deb; do package_names "$file"; done | sort -u)
	mmdebstrap --variant=minbase \
		--include="$(printf '%s,' "${needs[@]}" iproute2)systemd-standalone-sysusers" \
		bookworm "$root" >"$scratch/mmdebstrap.log" 2>&1
	mkdir -p "$root/packages"
	cp -r "$scratch/packages"/* "$root/packages/"
	cp "$top/tests/packages.sh" "$root/packages.sh"
	# shellcheck disable=SC2016  # the inner shell has $0
	unshare --net --mount --pid --fork --kill-child bash -c \
		'mount -t proc proc "$0/proc" && mount -t tmpfs tmpfs "$0/dev/shm" && exec chroot "$0" /packages.sh --inside' "$root" || failed=1
	rm -rf "$root"
	return "$failed"
}

failed=0
if [ "$1" = --inside ]; then
	inside
else
	top=$(cd "$(dirname "$0")/.." && pwd)
	outside "$1"
fi
