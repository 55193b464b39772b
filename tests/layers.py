#!/usr/bin/python3
"""Holds the folders to one direction, by the symbols of the built objects and by the includes.

    layers.py [--write] [ROOT [BUILD]]

BUILD is a folder in which `make` has run (default: the working directory). MAY_CALL is the rule: a folder's files refer
to functions and data of their own folder and of those listed, and include headers only of these. A row lists rows above
it, so the folders form no cycle. A lower folder reaches
an upper one through a struct of callbacks, which leaves no symbol. No knot, a set of files of which each calls every
other directly or through others, has more than LARGEST_KNOT files.

CEILINGS and KNOT_CEILINGS hold what still breaks the rule. Change them only to lower them; a line says when one can come
down. Prints `ok` or `not ok` with the places for each folder, then the table of calls and the knots found, as
ARCHITECTURE.md shows them (--write puts them there). Fails if anything is over its ceiling, or if a source has no object to look at.
tests/layers_broken.py shows that each of these checks can fail.
"""

import collections
import pathlib
import re
import subprocess
import sys

BELOW_LINK = ("daemon/protocol", "daemon/config", "daemon/base", "shm")
BELOW_FLOW = ("daemon/lane", "daemon/link", *BELOW_LINK)
MAY_CALL = {
    "shm": (),
    "daemon/base": ("shm",),
    "daemon/config": ("daemon/base", "shm"),
    "daemon/protocol": ("daemon/config", "daemon/base", "shm"),
    "daemon/link": BELOW_LINK,
    "daemon/lane": ("daemon/link", *BELOW_LINK),
    "daemon/flow": BELOW_FLOW,
    "daemon/front": ("daemon/flow", *BELOW_FLOW),
    "daemon/admin": ("daemon/front", "daemon/flow", *BELOW_FLOW),
    "daemon/life": ("daemon/admin", "daemon/front", "daemon/flow", *BELOW_FLOW),
    "libclient": ("shm",),
    "libclient/examples": ("libclient",),
    "tools/common": (),
    "tools/pub": ("tools/common", "libclient", "shm"),
    "tools/bench": ("tools/common", "libclient", "shm"),
    "tools/sink": ("tools/common", "shm"),
    "tools/ctl": ("tools/common", "shm"),
}
LARGEST_KNOT = 4
# (folder, folder): calls, includes that MAY_CALL forbids.
CEILINGS = {
    ("daemon/link", "daemon/flow"): (0, 7),
    ("daemon/lane", "daemon/flow"): (0, 9),
    ("daemon/lane", "daemon/front"): (0, 1),
    ("daemon/flow", "daemon/front"): (1, 1),
    ("daemon/admin", "daemon/life"): (1, 1),
}
# Files in knots of more than LARGEST_KNOT, and files of the largest knot.
KNOT_CEILINGS = {}
# Sources that not every build compiles, and folders of such.
OPTIONAL = ("daemon/base/inject.c", "tools/bench")
# Users of the library include its one public header by its installed name; configure makes the other.
INSTALLED = {"tidegate.h": "libclient", "build_config.h": None}

SOURCES = (".c", ".h", ".cc", ".hpp", ".def")
# The block of ARCHITECTURE.md that shows the output begins with the table's first row.
SHOWN = re.compile(r"^```\nshm  .*?^```\n", re.M | re.S)
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.M)
DEFINED, UNDEFINED = "TDRBVWGS", "U"


def tops(may_call):
    return sorted({folder.split("/")[0] for folder in may_call})


def sources(root, may_call):
    for top in tops(may_call):
        for path in sorted((root / top).rglob("*")):
            if path.suffix in SOURCES and path.is_file():
                yield path.relative_to(root)


def included(root, source):
    """(place, folder) of each include; the folder is "?" for a file that is in none."""
    text = (root / source).read_text()
    for match in INCLUDE.finditer(text):
        name = match.group(1)
        place = f'{source}:{text.count(chr(10), 0, match.start(1)) + 1}: includes "{name}"'
        if name in INSTALLED and not (root / source).with_name(name).exists():
            if INSTALLED[name]:
                yield place, INSTALLED[name]
            continue
        found = [(base / name).resolve() for base in ((root / source).parent, root)]
        found = [path for path in found if path.is_file() and path.is_relative_to(root)]
        yield place, str(found[0].relative_to(root).parent) if found else "?"


def symbols(root, build, may_call):
    """For each source with an object: the symbols it defines and those it refers to. libtool and automake put an object
    beside its source, perhaps in .libs and with the program's name before a dash. The newest counts: an older one may
    be left from before the Makefile changed. Objects of sources that are gone do not count."""
    objects = {}
    for path in (path for top in tops(may_call) for path in (build / top).rglob("*.o")):
        folder = path.parent.parent if path.parent.name == ".libs" else path.parent
        source = folder.relative_to(build) / (path.stem.rpartition("-")[2] + ".c")
        if (root / source).is_file() and \
                (source not in objects or path.stat().st_mtime > objects[source].stat().st_mtime):
            objects[source] = path
    files = {source: (set(), set()) for source in sorted(objects)}
    names = {str(path): source for source, path in objects.items()}
    listed = subprocess.run(["nm", "-A", *names], check=True, capture_output=True, text=True).stdout if names else ""
    for line in listed.splitlines():
        name, _, words = line.rpartition(":")
        kind, symbol = words.split()[-2:]
        if kind in DEFINED:
            files[names[name]][0].add(symbol)
        elif kind == UNDEFINED:
            files[names[name]][1].add(symbol)
    return files


def calls(files):
    """{source: {source: symbols}}. Programs have names in common: the same folder's comes first, then the same
    top-level folder's."""
    owners = collections.defaultdict(set)
    for source, (defined, _) in files.items():
        for name in defined:
            owners[name].add(source)
    graph = {source: collections.defaultdict(set) for source in files}
    for source, (_, wanted) in files.items():
        for name in wanted:
            found = owners.get(name, ())
            near = [owner for owner in found if owner.parent == source.parent] or \
                [owner for owner in found if owner.parts[0] == source.parts[0]] or found
            for owner in near:
                if owner != source:
                    graph[source][owner].add(name)
    return graph


def knots(graph):
    """The strongly connected components of more than one file, largest first (Tarjan)."""
    index, low, stack, found = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for node in graph:
        if node not in index:
            visit(node)
    return sorted(found, key=lambda knot: (-len(knot), knot))


class Report:
    def __init__(self):
        self.failed = False

    def say(self, name, wrong, notes=()):
        self.failed |= bool(wrong)
        print(f"{'not ok' if wrong else 'ok'} {name}")
        for line in (*wrong, *notes):
            print("  " + line)


def over(what, places, ceiling):
    """The lines for places of which `ceiling` are allowed: the faults, and the notes."""
    if len(places) > ceiling:
        return [f"{what}: {len(places)}, {ceiling} allowed", *("  " + place for place in places)], []
    if len(places) < ceiling:
        return [], [f"{what}: {len(places)}: the ceiling of {ceiling} can come down"]
    return [], [f"{what}: {ceiling}, to come down"] if ceiling else []


def check(root, build, may_call, ceilings, knot_ceilings, optional=()):
    """Prints the report; True when everything holds."""
    report = Report()
    graph = calls(symbols(root, build, may_call))
    every = list(sources(root, may_call))
    forbidden = collections.defaultdict(lambda: ([], []))
    table = {folder: set() for folder in may_call}
    wrong = collections.defaultdict(list)
    notes = collections.defaultdict(list)
    for source in every:
        folder = str(source.parent)
        if source.suffix == ".c" and source not in graph and folder not in optional and str(source) not in optional:
            wrong[folder].append(f"{source} has no object in {build}: build it first")
        for place, other in included(root, source):
            if other != folder and other not in may_call.get(folder, ()):
                forbidden[folder, other][1].append(place)
        for callee, names in sorted(graph.get(source, {}).items()):
            other = str(callee.parent)
            if other != folder:
                table.setdefault(folder, set()).add(other)
                if other not in may_call.get(folder, ()):
                    forbidden[folder, other][0].extend(f"{source} refers to {name} of {callee}" for name in sorted(names))
    for folder in {str(source.parent) for source in every} - set(may_call):
        wrong[folder].append(f"{folder}/ is not in the table MAY_CALL")
    for folder in set(may_call) - {str(source.parent) for source in every}:
        wrong[folder].append(f"{folder}/ has no sources")
    rows = list(may_call)
    for row, folder in enumerate(rows):
        wrong[folder] += [f"{folder} may call {other}, which is no row above its own" for other in may_call[folder]
                          if other not in rows[:row]]
    for folder, other in sorted({*forbidden, *ceilings}):
        for what, places, ceiling in zip(("calls to", "includes of"), forbidden[folder, other],
                                         ceilings.get((folder, other), (0, 0))):
            bad, fine = over(f"{what} {other}/", places, ceiling)
            wrong[folder] += bad
            notes[folder] += fine
    for folder in (*may_call, *sorted(set(wrong) - set(may_call))):
        report.say(f"{folder} calls and includes only what it may", wrong[folder], notes[folder])
    found = knots(graph)
    for top in tops(may_call):
        sizes = [len(knot) for knot in found if knot[0].parts[0] == top and len(knot) > LARGEST_KNOT]
        bad, fine = [], []
        for what, value, ceiling in zip(("files in larger knots", "files of the largest one"),
                                        (sum(sizes), max(sizes, default=0)), knot_ceilings.get(top, (0, 0))):
            if value > ceiling:
                bad.append(f"{what}: {value}, {ceiling} allowed")
            elif value < ceiling:
                fine.append(f"{what}: {value}: the ceiling of {ceiling} can come down")
        report.say(f"{top} has no knot of more than {LARGEST_KNOT} files", bad, fine)
    shown = []
    for folder in may_call:
        below = [other for other in reversed(may_call) if other in table[folder]]
        shown.append(f"{folder:<18} -> {', '.join(below) or 'nothing'}")
    for knot in found:
        shown.append(f"knot of {len(knot)}: {' '.join(str(source.with_suffix('')) for source in knot)}")
    text = "".join(line + "\n" for line in shown)
    document(report, root, text)
    print("\n" + text, end="")
    return not report.failed


def document(report, root, text):
    """ARCHITECTURE.md shows the output; --write brings it up to date."""
    path = root / "ARCHITECTURE.md"
    if not path.is_file():
        return
    before = path.read_text()
    after = SHOWN.sub(lambda _: f"```\n{text}```\n", before, count=1)
    notes = []
    if "--write" in sys.argv:
        path.write_text(after)
    elif after != before:
        notes.append("its output is out of date: run tests/layers.py --write")
    report.say("ARCHITECTURE.md shows this", [] if SHOWN.search(before) else ["it has no such block"], notes)


def main():
    arguments = [word for word in sys.argv[1:] if word != "--write"]
    root = pathlib.Path(arguments[0] if arguments else pathlib.Path(__file__).parent.parent).resolve()
    build = pathlib.Path(arguments[1] if len(arguments) > 1 else ".").resolve()
    return 0 if check(root, build, MAY_CALL, CEILINGS, KNOT_CEILINGS, OPTIONAL) else 1


if __name__ == "__main__":
    sys.exit(main())
