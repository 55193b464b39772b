#!/usr/bin/python3
"""Checks that the files which the documents mention exist.

A mention is a path in backticks that begins with a top-level folder, or the target of a relative
Markdown link. `*` and `{a,b}` are expanded. A path with a word in capitals (NAME, TARGET) is a
placeholder and is skipped. Prints one line for each document, `ok` or `not ok` with the missing
paths, and fails if a path is missing or if a document mentions none.
"""

import pathlib
import re
import sys

DOCUMENTS = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "tests/README.md", "tests/fuzz/README.md",
             "tools/bench/performance.md", "daemon/doc/faults.md", "daemon/doc/neighbours.md",
             "daemon/doc/reconnect.md"]
FOLDERS = ("shm", "libclient", "daemon", "tools", "tests")
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)#\s]+)")
PATH = re.compile(rf"^(?:{'|'.join(FOLDERS)})/[\w./*{{}},-]*$")
PLACEHOLDER = re.compile(r"(?:^|[/_.])[A-Z]{2,}(?:[/_.*-]|$)")
BRACES = re.compile(r"\{([^{}]*)\}")


def expand(path):
    """`a_{b,c}.py` as `a_b.py` and `a_c.py`."""
    match = BRACES.search(path)
    if not match:
        return [path]
    return [whole for choice in match.group(1).split(",")
            for whole in expand(path[:match.start()] + choice + path[match.end():])]


def is_placeholder(path):
    return bool(PLACEHOLDER.search(path)) and not path.endswith(("README.md", "NEWS"))


def mentioned(text):
    """Paths relative to the root, and targets of links relative to the document."""
    paths, links = set(), set()
    for code in CODE.findall(text):
        paths.update(word for word in code.split() if PATH.match(word) and not is_placeholder(word))
    links.update(link for link in LINK.findall(text) if "://" not in link)
    return paths, links


def exists(root, pattern):
    """A program is there when its source is."""
    return any(root.glob(pattern)) or (root / (pattern + ".c")).is_file()


def missing(root, document):
    text = (root / document).read_text()
    paths, links = mentioned(text)
    wrong = [path for path in sorted(paths) if not all(exists(root, one.rstrip("/")) for one in expand(path))]
    wrong += [link for link in sorted(links) if not ((root / document).parent / link).exists()]
    if not paths and not links:
        wrong.append("it mentions no file: the check is blind")
    return wrong


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent).resolve()
    failed = 0
    for document in DOCUMENTS:
        wrong = missing(root, document) if (root / document).is_file() else ["it does not exist"]
        print(f"{'not ok' if wrong else 'ok'} files that {document} mentions")
        for line in wrong:
            print("  " + line)
        failed += bool(wrong)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
