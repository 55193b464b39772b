#!/bin/bash
# Checks the models with spin: the good ones completely and without an error, and that each mistake
# (-D) is found. One line a run. Exit status 77 where spin is not installed.
#
# From the environment: CC.
set -eu

if ! command -v spin >/dev/null; then
	echo "spin is not installed (on Debian: apt-get install spin)"
	exit 77
fi
source=$(cd "$(dirname "$0")" && pwd)
cc=${CC:-cc}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
failed=0

# run good|bad MODEL FLAG...
run() {
	local want=$1 model=$2 optimise=-O0 verdict
	if [ "$want" = good ]; then optimise=-O2; fi
	shift 2
	spin -a "$@" "$source/$model.pml" >spin.log 2>&1 || {
		cat spin.log
		exit 1
	}
	# shellcheck disable=SC2086
	$cc "$optimise" -w -DSAFETY -DCOLLAPSE -DMEMLIM=2048 -o pan pan.c
	timeout 300 ./pan -m2000000 -w22 -n >pan.log 2>&1 || true
	local found states seconds
	found=$(sed -n 's/.*errors: \([0-9]*\).*/\1/p' pan.log)
	states=$(sed -n 's/ *\([0-9.e+]*\) states, stored.*/\1/p' pan.log)
	seconds=$(sed -n 's/pan: elapsed time \([0-9.e-]*\) seconds.*/\1/p' pan.log)
	if [ "$want" = good ]; then
		verdict="verified"
		if [ "${found:-1}" != 0 ] || grep -q 'Search not completed\|search depth too small' pan.log; then
			verdict="NOT VERIFIED"
		fi
	else
		verdict="found: $(sed -n 's/^pan:[0-9]*: \([a-z ]*\).*/\1/p' pan.log)"
		if [ "${found:-0}" = 0 ]; then verdict="NOT FOUND"; fi
	fi
	printf '%-8s %-28s %-32s %9s states %6s s\n' "$model" "$*" "$verdict" "${states:-?}" "${seconds:-?}"
	case $verdict in NOT*)
		cat pan.log
		failed=1
		;;
	esac
}

run good wake
run good wake -DR=1
run good wake -DEXPEDITED
run good wake -DRESTART -DN=2
run good wake -DEXPEDITED -DRESTART -DN=2
for mistake in NO_C_CLIENT NO_C_DAEMON NO_F_CLIENT NO_F_DAEMON NO_RECHECK SAME_WORD DRAIN_LATE; do
	run bad wake "-D$mistake"
done
for mistake in NO_C_DAEMON HALF_BARRIER NO_F_CLIENT NO_F_DAEMON NO_RECHECK SAME_WORD DRAIN_LATE; do
	run bad wake -DEXPEDITED "-D$mistake"
done
run bad wake -DR=1 -DRING_FIRST
run bad wake -DRESTART -DN=2 -DWORD_ANEW
run bad wake -DRESTART -DN=2 -DNO_FIRST_RING

run good doorbell
for way in EXPEDITED MISSED; do
	run good doorbell "-D$way" -DN=1
	run good doorbell "-D$way" -DM=0
done
for mistake in NO_NEW_SLEEP NO_LOOK ONE_WORD READ_LATE; do
	run bad doorbell "-D$mistake"
done
for mistake in NO_NEW_SLEEP NO_LOOK; do
	run bad doorbell -DEXPEDITED "-D$mistake"
done
run bad doorbell -DMISSED -DN=1 -DNO_SECOND_LOOK

run good ring
run good ring -DCARELESS
for mistake in RELEASE_FIRST COMMIT_FIRST WHOLE_RING NO_FLOOR NO_SLOT NO_RECOVERY; do
	run bad ring "-D$mistake"
done
exit "$failed"
