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
read -ra flags <<<"$(pkg-config --cflags libconfig ck openssl)"
read -ra libs <<<"$(pkg-config --libs libconfig ck openssl)"
protocols=("$root"/daemon/protocol/*.c)
clang -std=gnu11 -D_GNU_SOURCE -O1 -g -fno-omit-frame-pointer \
	-fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
	-I"$root" -I"$build" -DTRANSCRIPTS="\"$root/tests/conformance/transcripts\"" "${flags[@]}" \
	-o "$build/fuzz_driver" \
	"$root"/tests/fuzz/fuzz_driver.c "$root"/tests/conformance/{rig,transcript,record}.c \
	"$root"/daemon/{out,config_node,config_address,config_source}.c "${protocols[@]}" "$root"/shm/error.c \
	"${libs[@]}"

seeds=("$root"/tests/fuzz/corpus/${driver:-*})
cd "$build"
TG_FUZZ_DRIVER=$driver exec ./fuzz_driver -runs="$runs" -max_len=4096 -timeout=10 -print_final_stats=1 \
	-artifact_prefix="$build/failed-" corpus "${seeds[@]}"
