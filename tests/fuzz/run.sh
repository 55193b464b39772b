#!/bin/bash
# Fuzzes the protocol drivers with libFuzzer under ASan and UBSan.
#
#   tests/fuzz/run.sh [DRIVER|all] [RUNS|merge] [FUZZ-BUILD]
#
# DRIVER as in the configuration (default: all of them, one after the other), RUNS executions of each
# (default 1,000,000). The build goes to FUZZ-BUILD (default build-fuzz beside configure), new inputs to
# FUZZ-BUILD/corpus/DRIVER; what fails is left there too, and replays with FUZZ-BUILD/fuzz_driver FILE.
#
# merge makes the tree's corpus anew: the fewest of its inputs and the new ones, up to 4 KiB each, that
# reach all they reach together.
#
# TG_FUZZ_LEN=BYTES changes the longest input tried (1024), TG_FUZZ_SECONDS how long a run may take.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
driver=${1:-all}
runs=${2:-1000000}
build=${3:-$root/build-fuzz}
command -v clang >/dev/null || { echo "clang is missing: on Debian, apt-get install clang" >&2; exit 2; }
mapfile -t drivers < <(sed -n 's/^X(\(.*\))$/\1/p' "$root/daemon/protocol/drivers.def")
seeds=("${drivers[@]/#/$build/seeds/}")
[ "$driver" = all ] || drivers=("$driver")

mkdir -p "${seeds[@]}"
read -ra flags <<<"$(pkg-config --cflags libconfig ck openssl jansson hiredis)"
read -ra libs <<<"$(pkg-config --libs libconfig ck openssl jansson hiredis)"
sanitize=("-fsanitize=address,undefined" -fno-sanitize-recover=undefined)
common=(-std=gnu11 -D_GNU_SOURCE -O2 -g -fno-omit-frame-pointer "${sanitize[@]}" -I"$root" -I"$build"
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
# Only what is under test reports coverage: the rig's own branches would drown it. Comparisons are not
# traced: most are UBSan's own. Words to compare with are learned from memcmp() all the same.
compile -fsanitize=fuzzer-no-link -fno-sanitize-coverage=trace-cmp -- "$root"/daemon/protocol/*.c
compile -- "$root"/tests/fuzz/fuzz_driver.c "$root"/tests/conformance/{rig,transcript,record}.c \
	"$root"/daemon/{out,config_node,config_address,config_source}.c "$root"/shm/error.c
clang "${sanitize[@]}" -fsanitize=fuzzer -o "$build/fuzz_driver" "${objects[@]}" "${libs[@]}"

cd "$build"
# A small quarantine and short stacks double the speed; what is freed is watched for long enough.
export ASAN_OPTIONS="quarantine_size_mb=8:malloc_context_size=3:${ASAN_OPTIONS:-}"
export TG_FUZZ_SEEDS=$build/seeds TG_FUZZ_DRIVER
for TG_FUZZ_DRIVER in "${drivers[@]}"; do
	tree=$root/tests/fuzz/corpus/$TG_FUZZ_DRIVER new=$build/corpus/$TG_FUZZ_DRIVER
	mkdir -p "$tree" "$new"
	if [ "$runs" = merge ]; then
		rm -rf merged && mkdir merged
		./fuzz_driver -merge=1 -max_len=4096 merged "$tree" "$new" "seeds/$TG_FUZZ_DRIVER"
		rm -rf "$tree" && mv merged "$tree"
	else
		./fuzz_driver -runs="$runs" -max_len="${TG_FUZZ_LEN:-1024}" -timeout=10 \
			-max_total_time="${TG_FUZZ_SECONDS:-0}" -entropic_scale_per_exec_time=1 \
			-print_final_stats=1 -artifact_prefix="$build/failed-" \
			"$new" "$tree" "seeds/$TG_FUZZ_DRIVER"
	fi
done
