#!/bin/bash
# Fuzzes the parsers of foreign bytes with libFuzzer, under ASan and UBSan.
#
#   tests/fuzz/run.sh [TARGET|all] [RUNS|merge] [FUZZ-BUILD]
#
# TARGET is a protocol driver as in the configuration, "frame" (control frames of clients) or "config"
# (the configuration file); the default is all, one after the other, with RUNS executions each (default
# 1,000,000). The build goes to FUZZ-BUILD (default build-fuzz beside configure), new inputs to
# FUZZ-BUILD/corpus/TARGET; failing inputs are left in FUZZ-BUILD as failed-TARGET-*; replay them with
# TG_FUZZ_DRIVER=DRIVER FUZZ-BUILD/fuzz_driver FILE, or FUZZ-BUILD/fuzz_frame or fuzz_config.
#
# merge minimises the tree's corpus together with the new inputs, up to 4 KiB each: the fewest inputs with the
# same coverage. Inputs that failed once stay, in the target's folder found.
#
# TG_FUZZ_LEN=BYTES changes the longest input tried (1024), TG_FUZZ_SECONDS how long a run may take.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
target=${1:-all}
runs=${2:-1000000}
build=${3:-$root/build-fuzz}
command -v clang >/dev/null || { echo "clang is missing: on Debian, apt-get install clang" >&2; exit 2; }
mapfile -t drivers < <(sed -n 's/^X(\(.*\))$/\1/p' "$root/daemon/protocol/drivers.def")
seeds=("${drivers[@]/#/$build/seeds/}" "$build"/seeds/{frame,config})
targets=("$target")
[ "$target" = all ] && targets=("${drivers[@]}" frame config)

mkdir -p "${seeds[@]}"
packages=(libconfig ck openssl jansson hiredis libuv)
read -ra flags <<<"$(pkg-config --cflags "${packages[@]}")"
read -ra libs <<<"$(pkg-config --libs "${packages[@]}")"
sanitize=("-fsanitize=address,undefined" -fno-sanitize-recover=undefined)
common=(-std=gnu11 -D_GNU_SOURCE -O2 -g -fno-omit-frame-pointer "${sanitize[@]}" -I"$root" -I"$build"
	-DTRANSCRIPTS="\"$root/tests/conformance/transcripts\"" "${flags[@]}")
# Only the code under test is instrumented: the rig's branches would drown it. Comparisons are not traced:
# most are UBSan's own. Words to compare with are learned from memcmp() all the same.
cover=(-fsanitize=fuzzer-no-link -fno-sanitize-coverage=trace-cmp)
# configure's header, as far as the configuration needs it.
echo '#define TG_DEFAULT_SOCKET "/run/a"
#define TG_DEFAULT_ADMIN "/run/b"' >"$build/build_config.h"

# compile PROGRAM FLAG... -- SOURCE...
compile() {
	local program=$1 how=() source object
	shift
	while [ "$1" != -- ]; do how+=("$1"); shift; done
	shift
	for source; do
		object=$build/$program-$(basename "$(dirname "$source")")-$(basename "$source" .c).o
		clang "${common[@]}" ${how[@]+"${how[@]}"} -c -o "$object" "$source"
		objects+=("$object")
	done
}
# build TARGET: sets program.
build() {
	local daemon=("$root"/daemon/config/{config_node,config_source,config_secret}.c "$root/daemon/base/address.c")
	objects=()
	case $1 in
	frame)
		program=fuzz_frame
		compile $program "${cover[@]}" -- "$root"/shm/{frame,packet}.c
		compile $program -- "$root/tests/fuzz/fuzz_frame.c" "$root/shm/error.c"
		;;
	config)
		program=fuzz_config
		compile $program "${cover[@]}" -- "$root/daemon/life/config_load.c" "$root/daemon/config/config_keys.c" "${daemon[@]}"
		compile $program -- "$root"/daemon/protocol/*.c "$root"/daemon/base/utf8.c "$root"/daemon/link/{tls,tls_context}.c \
			"$root/tests/fuzz/fuzz_config.c" "$root/shm/error.c"
		;;
	*)
		program=fuzz_driver
		[ -n "${built:-}" ] && return
		built=yes
		compile $program "${cover[@]}" -- "$root"/daemon/protocol/*.c "$root"/daemon/base/utf8.c
		compile $program -- "$root"/tests/fuzz/fuzz_driver.c "${daemon[@]}" \
			"$root"/tests/conformance/{rig,rig_events,transcript,record}.c \
			"$root/shm/error.c"
		;;
	esac
	clang "${sanitize[@]}" -fsanitize=fuzzer -o "$build/$program" "${objects[@]}" "${libs[@]}"
}

cd "$build"
# A small quarantine and short stacks double the speed; freed memory is still watched for long enough.
export ASAN_OPTIONS="quarantine_size_mb=8:malloc_context_size=3:${ASAN_OPTIONS:-}"
export TG_FUZZ_SEEDS=$build/seeds TG_FUZZ_DRIVER
for TG_FUZZ_DRIVER in "${targets[@]}"; do
	build "$TG_FUZZ_DRIVER"
	tree=$root/tests/fuzz/corpus/$TG_FUZZ_DRIVER new=$build/corpus/$TG_FUZZ_DRIVER
	mkdir -p "$tree" "$new"
	if [ "$runs" = merge ]; then
		rm -rf merged && mkdir merged
		./$program -merge=1 -max_len=4096 merged "$tree" "$new" "seeds/$TG_FUZZ_DRIVER"
		[ -d "$tree/found" ] && mv "$tree/found" merged/
		rm -rf "$tree" && mv merged "$tree"
	else
		./$program -runs="$runs" -max_len="${TG_FUZZ_LEN:-1024}" -timeout=10 \
			-max_total_time="${TG_FUZZ_SECONDS:-0}" -entropic_scale_per_exec_time=1 \
			-print_final_stats=1 -artifact_prefix="$build/failed-$TG_FUZZ_DRIVER-" \
			"$new" "$tree" "seeds/$TG_FUZZ_DRIVER" </dev/null
	fi
done
