#!/usr/bin/python3
"""Tables of what the fault suite measured.

    report.py [--json] [FIGURES]

FIGURES is the file of JSON lines that the suite leaves (default: build/faults.jsonl beside the sources,
or $TG_FAULTS_FIGURES). Prints Markdown: one table of the stories, and one of detection times beside the
kernel's own. With --json, the same as one JSON document."""

import json
import os
import pathlib
import sys

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
)
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
    lines = ["| what happens to the peer | " + " | ".join(whom) + " |", "|---|" + "---|" * len(whom)]
    for record in records:
        lines.append(f"| {record['case']} | " + " | ".join(record[KERNEL].get(who, "–") for who in whom) + " |")
    return lines


def main():
    arguments = [word for word in sys.argv[1:] if word != "--json"]
    root = pathlib.Path(__file__).resolve().parent.parent.parent
    default = os.environ.get("TG_FAULTS_FIGURES", root / "build" / "faults.jsonl")
    path = pathlib.Path(arguments[0] if arguments else default)
    if not path.exists():
        sys.exit(f"report.py: {path} is not there: run the fault suite first")
    records = [parse(line) for line in path.read_text().splitlines()]
    stories = [record for record in records if KERNEL not in record]
    kernel = [record for record in records if KERNEL in record]
    if "--json" in sys.argv:
        print(json.dumps({"stories": stories, "kernel": kernel}, indent=2))
        return
    length = "full" if records and records[0].get("full") else "shortened"
    print(f"Faults made ({length} form):\n")
    print("\n".join(stories_table(stories)))
    if kernel:
        print("\nThe same faults, left to the kernel and left to tidegate:\n")
        print("\n".join(kernel_table(kernel)))


if __name__ == "__main__":
    main()
