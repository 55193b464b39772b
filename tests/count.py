#!/usr/bin/python3
"""Counts test cases in the runners' reports.

    count.py FILE-OR-FOLDER...

A folder is searched for automake's .trs files, a .xml file is pytest's JUnit report, any other file
has lines `ok …`, `not ok …` and `skip …`. A cmocka program counts as its test functions, read from
the log beside its .trs; a program that automake reports as failed counts at least one failure, whatever it
printed. Failed and skipped cases are listed on stderr; the last line on stdout is
`PASSED FAILED SKIPPED`.
"""

import pathlib
import re
import sys
import xml.etree.ElementTree

CMOCKA_RUN = re.compile(r"^\[==========\]\s+(?:.*:\s+)?(\d+) test\(s\) run\.", re.M)
CMOCKA_PASSED = re.compile(r"^\[  PASSED  \]\s+(\d+) test\(s\)\.", re.M)
CMOCKA_SKIPPED = re.compile(r"^\[  SKIPPED \]\s+(\d+) test\(s\)", re.M)
CMOCKA_FAILED = re.compile(r"^\[  FAILED  \]\s+(\d+) test\(s\)", re.M)
CMOCKA_NAME = re.compile(r"^\[  (FAILED |SKIPPED) \]\s+(?!\d+ test\(s\))(\S.*)$", re.M)
LINE = re.compile(r"^(ok|not ok|skip)\b[ -]*(.*)$")


class Counts:
    def __init__(self):
        self.passed = self.failed = self.skipped = 0

    def fail(self, name):
        self.failed += 1
        print(f"  failed: {name}", file=sys.stderr)

    def skip(self, name):
        self.skipped += 1
        print(f"  skipped: {name}", file=sys.stderr)


def total(pattern, text):
    return sum(int(number) for number in pattern.findall(text))


def count_program(counts, trs):
    """One program of automake's: a .trs with its verdict, a .log with its output."""
    results = re.findall(r"^:test-result:\s*(\S+)\s*(.*)$", trs.read_text(), re.M)
    log = trs.with_suffix(".log")
    text = log.read_text(errors="replace") if log.exists() else ""
    run = total(CMOCKA_RUN, text)
    if run:
        passed, skipped, failed = total(CMOCKA_PASSED, text), total(CMOCKA_SKIPPED, text), total(CMOCKA_FAILED, text)
        for verdict, name in sorted(set(CMOCKA_NAME.findall(text))):
            print(f"  {verdict.strip().lower()}: {trs.stem}: {name}", file=sys.stderr)
        counts.passed += passed
        counts.failed += failed
        counts.skipped += skipped
        verdicts = {verdict for verdict, _ in results}
        if not failed and verdicts & {"FAIL", "ERROR", "XPASS"}:
            counts.fail(f"{trs.stem} (ended badly after {passed} tests passed)")
        return
    if not results:
        counts.fail(f"{trs.stem} (no verdict)")
    for verdict, name in results:
        label = f"{trs.stem} {name}".strip()
        if verdict in ("PASS", "XFAIL"):
            counts.passed += 1
        elif verdict == "SKIP":
            counts.skip(label)
        else:
            counts.fail(label)


def count_junit(counts, file):
    for case in xml.etree.ElementTree.parse(file).getroot().iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        if case.find("failure") is not None or case.find("error") is not None:
            counts.fail(name)
        elif case.find("skipped") is not None:
            counts.skip(f"{name}: {case.find('skipped').get('message')}")
        else:
            counts.passed += 1


def count_lines(counts, file):
    for line in file.read_text(errors="replace").splitlines():
        match = LINE.match(line)
        if not match:
            continue
        if match.group(1) == "ok":
            counts.passed += 1
        elif match.group(1) == "skip":
            counts.skip(match.group(2))
        else:
            counts.fail(match.group(2))


def main():
    counts = Counts()
    for argument in sys.argv[1:]:
        path = pathlib.Path(argument)
        if path.is_dir():
            for trs in sorted(path.rglob("*.trs")):
                count_program(counts, trs)
        elif not path.exists():
            counts.fail(f"{path} was never written")
        elif path.suffix == ".xml":
            count_junit(counts, path)
        else:
            count_lines(counts, path)
    print(counts.passed, counts.failed, counts.skipped)


if __name__ == "__main__":
    main()
