#!/bin/sh
# The library's names agree: the header declares what the map exports and the library has, every
# function has a manual page, and the manual's tables are the lists' words.
set -eu
src=${srcdir-.}
lib=libclient/.libs/libtidegate.so
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
status=0

same() { # NAME FILE FILE
	if diff "$scratch/$2" "$scratch/$3" >"$scratch/diff"; then
		echo "ok $1"
	else
		echo "not ok $1"
		cat "$scratch/diff"
		status=1
	fi
}

sed -n 's/^\t\(tg_[a-z_]*\);$/\1/p' "$src/libclient/libtidegate.map" | sort >"$scratch/map"
tr '\n' ' ' <"$src/libclient/tidegate.h" | grep -oE 'TG_API [a-z0-9_ ]*[ *]tg_[a-z_]*\(' |
	sed 's/.*[ *]\(tg_[a-z_]*\)($/\1/' | sort >"$scratch/header"
nm -D --defined-only "$lib" | sed -n 's/.* T \([^@]*\).*/\1/p' | sort >"$scratch/library"
for page in "$src"/libclient/man/tg_*.3 libclient/alias/tg_*.3; do
	basename "$page" .3
done | sort >"$scratch/pages"
[ -s "$scratch/map" ]
same "the header declares what the map exports" map header
same "the library has what the map exports" map library
same "each function has a manual page" map pages

sed -n 's/^X(\([A-Z]*\), *[0-9]*, "\(.*\)")$/TG_E\1 \2/p' "$src/shm/error.def" >"$scratch/errors"
sed -n 's/^X(\([A-Z]*\), *[0-9]*, *"[a-z]*", *"\(.*\)")$/TG_\1 \2/p' "$src/shm/outcome.def" >"$scratch/outcomes"
[ -s "$scratch/errors" ] && [ -s "$scratch/outcomes" ]
# Each .It Dv of the tables with the line below it.
awk '/^\.It Dv TG_/ { name = $3; getline; print name " " $0 }' "$src/libclient/man/tidegate.3" >"$scratch/manual"
grep '^TG_E[A-Z]* ' "$scratch/manual" | grep -v '^TG_EXPIRED ' >"$scratch/manual-errors"
grep -E '^TG_([^E]|EXPIRED )' "$scratch/manual" >"$scratch/manual-outcomes"
same "the manual has the errors of error.def" errors manual-errors
same "the manual has the outcomes of outcome.def" outcomes manual-outcomes
exit $status
