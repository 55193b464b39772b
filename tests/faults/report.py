#!/usr/bin/python3
"""Tables of the fault suite's figures.

    report.py [--json] [--into FILE] [FIGURES...]

FIGURES are the files of JSON lines that the suite leaves (default: build/faults.jsonl beside the sources,
or $TG_FAULTS_FIGURES); of a story that is in several files the last counts. Prints Markdown: one table of the
stories, and one of detection times beside the kernel's own. With --json, the same as one JSON document.
With --into, the tables replace those of a document, between its two marks."""

import argparse
import json
import os
import pathlib
import platform
import subprocess
import sys
import time

COLUMNS = (
    ("left_s", "broker left after", "s"),
    ("elsewhere_s", "traffic elsewhere after", "s"),
    ("resolved_s", "in flight resolved after", "s"),
    ("worst_wait_s", "longest wait of a message", "s"),
    ("delivered", "delivered", ""),
    ("lost", "lost", ""),
    ("duplicated", "duplicated", ""),
    ("false_deaths", "false deaths", ""),
    ("connects", "connects", ""),
    ("daemon_peak_kib", "daemon's peak memory", "MiB"),
    ("load", "load average", ""),
)
BEGIN, END = "<!-- figures: tests/faults/report.py --into writes what follows -->\n", "<!-- end of the figures -->\n"
KERNEL = "kernel"


def parse(line):
    return json.loads(line)


def shown(value, unit):
    if value is None:
        return "–"
    if unit == "s":
        return f"{value:.2f} s"
    if unit == "MiB":
        return f"{value / 1024:.1f} MiB"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def in_words(record):
    """One record as a line for people."""
    if KERNEL in record:
        return f"{record['test']}: " + "; ".join(f"{who}: {what}" for who, what in record[KERNEL].items())
    verdict = {True: "ok", False: "FAILED", None: "no verdict"}[record.get("passed")]
    known = {key for key, _, _ in COLUMNS}
    words = [f"{title} {shown(record[key], unit)}" for key, title, unit in COLUMNS if record.get(key) is not None]
    words += [f"{key} {value}" for key, value in record.items()
              if key not in known and key not in ("test", "full", "passed") and value is not None]
    return f"{record['test']}: {verdict}: " + ", ".join(words)


def title(record):
    name = record["test"].removeprefix("test_")
    story, _, rest = name.partition("[")
    return story.replace("_", " "), rest.rstrip("]").replace("-", ", ")


def stories_table(records):
    lines = ["| story | with | " + " | ".join(column for _, column, _ in COLUMNS) + " | other figures |",
             "|---|---|" + "---|" * (len(COLUMNS) + 1)]
    known = {key for key, _, _ in COLUMNS} | {"test", "full", "passed"}
    for record in records:
        story, parameters = title(record)
        if record.get("passed") is False:
            story += " (**failed**)"
        others = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in record.items()
                           if key not in known and value not in (None, 0))
        lines.append(f"| {story} | {parameters} | "
                     + " | ".join(shown(record.get(key), unit) for key, _, unit in COLUMNS) + f" | {others} |")
    return lines


def kernel_table(records):
    whom = list(dict.fromkeys(who for record in records for who in record[KERNEL]))
    lines = ["| fault of the peer | " + " | ".join(whom) + " |", "|---|" + "---|" * len(whom)]
    for record in records:
        lines.append(f"| {record['case']} | " + " | ".join(record[KERNEL].get(who, "–") for who in whom) + " |")
    return lines


def conditions():
    """The properties of this machine that the figures depend on."""
    said = subprocess.run(["mosquitto", "-h"], capture_output=True, text=True).stdout.split("\n")[0]
    return f"Linux {platform.release()}, {os.cpu_count()} processors, {said or 'no mosquitto'}"


def tables(records):
    stories = [record for record in records if KERNEL not in record]
    kernel = [record for record in records if KERNEL in record]
    short = sum(not record.get("full") for record in records)
    length = "full form" if not short else "short form" if short == len(records) else f"full form, {short} of them short"
    lines = [f"{len(records)} stories, {length}, {time.strftime('%Y-%m-%d')}: {conditions()}.", ""]
    lines += stories_table(stories)
    if kernel:
        lines += ["", "The same faults, left to the kernel and left to tidegate:", "", *kernel_table(kernel)]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(usage="report.py [--json] [--into FILE] [FIGURES...]")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--into", type=pathlib.Path)
    parser.add_argument("figures", nargs="*", type=pathlib.Path)
    options = parser.parse_args()
    root = pathlib.Path(__file__).resolve().parent.parent.parent
    default = pathlib.Path(os.environ.get("TG_FAULTS_FIGURES", root / "build" / "faults.jsonl"))
    records = {}
    for path in options.figures or [default]:
        if not path.exists():
            sys.exit(f"report.py: {path} is not there: run the fault suite first")
        records.update((record["test"], record) for record in map(parse, path.read_text().splitlines()))
    records = sorted(records.values(), key=lambda record: record["test"])
    if options.json:
        print(json.dumps({"stories": [record for record in records if KERNEL not in record],
                          "kernel": [record for record in records if KERNEL in record]}, indent=2))
    elif options.into:
        before, _, rest = options.into.read_text().partition(BEGIN)
        _, end, after = rest.partition(END)
        if not end:
            sys.exit(f"report.py: {options.into} has no place for the tables: {BEGIN.strip()} … {END.strip()}")
        options.into.write_text(f"{before}{BEGIN}\n{tables(records)}\n{END}{after}")
    else:
        print(tables(records), end="")


if __name__ == "__main__":
    main()
