# shellcheck shell=bash
# Shared by tools/check and tools/quickstart: packages, a copy of the sources, a build.
# Sourced with `set -eu`; the caller sets $root, the source tree.

# The packages that building tidegate needs, from a checkout or a tarball.
# shellcheck disable=SC2034  # used by the scripts that source this
build_packages=(
	autoconf automake build-essential ca-certificates libc-ares-dev libck-dev libcmocka-dev libconfig-dev libhiredis-dev
	libjansson-dev libjemalloc-dev libssl-dev libtool libuv1-dev pkg-config
)

# Libraries that configure uses where they are installed: tidegate's Debian packages are built with them.
package_uses=(libmosquitto-dev libnats-dev librabbitmq-dev libsystemd-dev)
# The packages that tools/package needs in addition.
# shellcheck disable=SC2034
package_packages=("${package_uses[@]}" debhelper dpkg-dev fakeroot xz-utils)

note() { printf '%s\n' "$*" >&2; }

# missing_packages PACKAGE...: those that are not installed, one a line.
missing_packages() {
	local package
	for package in "$@"; do
		dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || printf '%s\n' "$package"
	done
}

# Debian starts a server as soon as its package is unpacked; policy-rc.d is the way to say no. One
# that is there already is the administrator's and stays. The caller's exit trap calls allow_services.
policy_file=/usr/sbin/policy-rc.d
policy_ours=0

forbid_services() {
	[ ! -e "$policy_file" ] || return 0
	printf '#!/bin/sh\nexit 101\n' >"$policy_file"
	chmod 755 "$policy_file"
	policy_ours=1
}

allow_services() {
	[ "$policy_ours" = 1 ] || return 0
	rm -f "$policy_file"
	policy_ours=0
}

# install_packages PACKAGE...: makes sure that they are there. No network is used when they are.
install_packages() {
	local missing
	mapfile -t missing < <(missing_packages "$@")
	[ "${#missing[@]}" -gt 0 ] || return 0
	if [ "$(id -u)" != 0 ]; then
		note "missing packages: as root, apt-get install ${missing[*]}"
		return 1
	fi
	local status=0
	forbid_services
	export DEBIAN_FRONTEND=noninteractive
	{
		apt-get -q -o Acquire::Retries=3 update &&
			apt-get -q -y -o Acquire::Retries=3 --no-install-recommends install "${missing[@]}"
	} </dev/null || status=$?
	allow_services
	return "$status"
}

# copy_sources FOLDER: the tree as it is now, without what builds left in it. Keeps times, so that
# make sees what changed when the copy is refreshed.
copy_sources() {
	: "${root:?}"
	mkdir -p "$1"
	if [ -e "$root/.git" ] && command -v git >/dev/null; then
		git -c safe.directory='*' -C "$root" ls-files -z --cached --others --exclude-standard |
			(cd "$root" && while IFS= read -r -d '' entry; do
				if [ -e "$entry" ]; then printf '%s\0' "$entry"; fi
			done) |
			tar -C "$root" --null --no-recursion -T - -cf - | tar -C "$1" -xf -
	else
		tar -C "$root" --exclude=./build --exclude='./build-[!a]*' --exclude=./.git --exclude=./config.status --exclude=./config.log \
			--exclude=./Makefile --exclude=./libtool --exclude=./build_config.h --exclude='*.o' \
			--exclude='*.lo' --exclude='*.la' --exclude=.libs --exclude=.deps --exclude=autom4te.cache \
			--exclude=__pycache__ -cf - . | tar -C "$1" -xf -
	fi
}

# make_configure FOLDER: autoreconf where the sources came without configure.
make_configure() {
	[ -x "$1/configure" ] || (cd "$1" && autoreconf -fi)
}

# duration SECONDS: "75 s" up to two minutes, then "2 min 5 s".
duration() {
	if [ "$1" -lt 120 ]; then printf '%d s' "$1"; else printf '%d min %d s' $(($1 / 60)) $(($1 % 60)); fi
}
