#!/bin/bash
# Fuzzes the protocol drivers with libFuzzer under ASan and UBSan.
#
#   tests/fuzz/run.sh [DRIVER|all] [RUNS] [FUZZ-BUILD]
#
# DRIVER as in the configuration (default: all), RUNS executions (default 1,000,000). The build goes
# to FUZZ-BUILD (default build-fuzz beside configure) and new inputs to FUZZ-BUILD/corpus; what fails
# is left there too, and replays with FUZZ-BUILD/fuzz_driver FILE.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
driver=${1:-all}
runs=${2:-1000000}
build=${3:-$root/build-fuzz}
[ "$driver" = all ] && driver=
command -v clang >/dev/null || { echo "clang is missing: on Debian, apt-get install clang" >&2; exit 2; }

mkdir -p "$build/corpus"
read -ra flags <<<"$(pkg-config --cflags libconfig ck openssl jansson hiredis)"
read -ra libs <<<"$(pkg-config --libs libconfig ck openssl jansson hiredis)"
sanitize=("-fsanitize=address,undefined" -fno-sanitize-recover=undefined)
common=(-std=gnu11 -D_GNU_SOURCE -O1 -g -fno-omit-frame-pointer "${sanitize[@]}" -I"$root" -I"$build"
	-DTRANSCRIPTS="\"$root/tests/conformance/transcripts\"" "${flags[@]}")
objects=()
# compile FLAG... -- SOURCE...
compile() {
	local how=() source object
	while [ "$1" != -- ]; do how+=("$1"); shift; done
	shift
	for source; do
		object=$build/$(basename "$(dirname "$source")")-$(basename "$source" .c).o
		clang "${common[@]}" ${how[@]+"${how[@]}"} -c -o "$object" "$source"
		objects+=("$object")
	done
}
# Only what is under test reports coverage: the rig's own branches would drown it.
compile -fsanitize=fuzzer-no-link -- "$root"/daemon/protocol/*.c
compile -- "$root"/tests/fuzz/fuzz_driver.c "$root"/tests/conformance/{rig,transcript,record}.c \
	"$root"/daemon/{out,config_node,config_address,config_source}.c "$root"/shm/error.c
clang "${sanitize[@]}" -fsanitize=fuzzer -o "$build/fuzz_driver" "${objects[@]}" "${libs[@]}"

if [ -n "$driver" ]; then seeds=("$root/tests/fuzz/corpus/$driver"); else seeds=("$root"/tests/fuzz/corpus/*); fi
cd "$build"
TG_FUZZ_DRIVER=$driver exec ./fuzz_driver -runs="$runs" -max_len=4096 -timeout=10 -print_final_stats=1 \
	-artifact_prefix="$build/failed-" corpus "${seeds[@]}"
