#!/usr/bin/python3
"""Folders are layers, and includes go one way: shm <- libclient <- tools, shm <- daemon.

Prints one line for each folder, `ok` or `not ok` with the lines that break the rule, and fails if
any does. Also refuses includes that name a file of another folder without its folder, since those
would escape the check.
"""

import pathlib
import re
import sys

MAY_INCLUDE = {
    "shm": {"shm"},
    "libclient": {"libclient", "shm"},
    "daemon": {"daemon", "shm"},
    "tools": {"tools", "libclient", "shm"},
}
# Users of the library include its one public header by its installed name.
PUBLIC = {"tidegate.h": "libclient", "build_config.h": None}
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"')


def sources(folder):
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".c", ".h", ".cc", ".hpp", ".def") and path.is_file():
            yield path


def owner(root, source, name):
    """The layer an include belongs to; None when it is generated, "?" when it belongs to none."""
    if name in PUBLIC and not (source.parent / name).exists():
        return PUBLIC[name]
    for base in (source.parent, root):
        target = (base / name).resolve()
        if target.is_file() and target.is_relative_to(root):
            return target.relative_to(root).parts[0]
    return "?"


def check(root, layer, allowed):
    wrong = []
    seen = 0
    for source in sources(root / layer):
        seen += 1
        for number, line in enumerate(source.read_text().splitlines(), 1):
            match = INCLUDE.match(line)
            if not match:
                continue
            target = owner(root, source, match.group(1))
            if target is not None and target not in allowed:
                wrong.append(f'{source.relative_to(root)}:{number}: "{match.group(1)}" is of {target}/, '
                             f"and {layer}/ may include only {', '.join(sorted(allowed))}")
    if not seen:
        wrong.append(f"{layer}/ has no sources")
    return wrong


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent).resolve()
    failed = 0
    for layer, allowed in MAY_INCLUDE.items():
        wrong = check(root, layer, allowed)
        print(f"{'not ok' if wrong else 'ok'} {layer} includes only {', '.join(sorted(allowed))}")
        for line in wrong:
            print("  " + line)
        failed += bool(wrong)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
