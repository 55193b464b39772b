#!/bin/bash
# Weakens each ordering pair of shm/ring.h in turn (-DORDER_MUTANT) and expects the tests to notice.
# One line a mutant. Exit status 1 if a mutant lives, or if the unmutated build does not pass.
#
# A, B, D, E, G: ThreadSanitizer must report a race in test_order.
# C, F: test_wake must report a lost wake-up; on one processor they cannot be seen and are skipped.
#
# From the environment: CC, CFLAGS_MUTANTS (the flags of libck), srcdir.
set -eu

source=$(cd "$(dirname "$0")/../.." && pwd)
cc=${CC:-cc}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failed=0
read -ra more <<<"${CFLAGS_MUTANTS-}"
# gcc 12's ThreadSanitizer does not start where the kernel randomises addresses widely.
steady=()
if setarch "$(uname -m)" -R true 2>/dev/null; then steady=(setarch "$(uname -m)" -R); fi
export TSAN_OPTIONS="halt_on_error=1 exitcode=66"

build() { # PROGRAM PAIR FLAGS...: makes $scratch/PROGRAM-PAIR
	local program=$1 pair=$2
	shift 2
	# $cc may be "ccache gcc".
	# shellcheck disable=SC2086
	$cc -std=gnu11 -D_GNU_SOURCE -g -I"$source" "${more[@]}" "$@" -DORDER_MUTANT="ORDER_$pair" \
		-o "$scratch/$program-$pair" "$source/tests/unit/$program.c" "$source"/shm/*.c -lcmocka -lpthread
}

line() { # PAIR TEST VERDICT
	printf '%-6s %-58s %s\n' "$1" "$2" "$3"
}

# expect PROGRAM PAIR TEST WORD: the test must fail and say WORD; with no WORD it must pass.
expect() {
	local program=$1 pair=$2 test=$3 word=${4-} status=0 log=$scratch/log launch=()
	if [ "$program" = test_order ]; then launch=("${steady[@]}"); fi
	timeout 120 "${launch[@]}" "$scratch/$program-$pair" "$test" >"$log" 2>&1 || status=$?
	if [ -z "$word" ] && [ "$status" -eq 0 ]; then
		line "$pair" "$test" "passes"
	elif [ -n "$word" ] && [ "$status" -ne 0 ] && [ "$status" -ne 124 ] && grep -q "$word" "$log"; then
		line "$pair" "$test" "caught: $(grep -om 1 "$word.*" "$log" | sed 's/ (.*//')"
	else
		line "$pair" "$test" "NOT AS EXPECTED (status $status, wanted ${word:-a pass})"
		tail -n 30 "$log"
		failed=1
	fi
}

for pair in NONE A B D E G; do build test_order "$pair" -O1 -fsanitize=thread; done
expect test_order NONE '*'
expect test_order A sq_pairs_a_and_b 'data race'
expect test_order B sq_pairs_a_and_b 'data race'
expect test_order D cq_pairs_d_and_e 'data race'
expect test_order E cq_pairs_d_and_e 'data race'
expect test_order G pair_g_nothing_is_released_unfinished 'data race'

build test_wake NONE -O2
expect test_wake NONE '*'
if [ "$(nproc)" -lt 2 ]; then
	echo "C and F: skipped, a missing fence does not show on one processor"
	exit "$failed"
fi
for pair in C F; do build test_wake "$pair" -O2; done
expect test_wake C daemon_that_sleeps_at_once_is_woken_with_full_fences 'lost wake-up'
if "$scratch/test_wake-NONE" barrier_is_there_where_it_registers 2>&1 | grep -q SKIPPED; then
	echo "C with membarrier: skipped, this kernel has none"
else
	expect test_wake C daemon_that_sleeps_at_once_is_woken_with_membarrier 'lost wake-up'
fi
expect test_wake F client_that_sleeps_at_once_is_woken 'lost wake-up'
exit "$failed"
