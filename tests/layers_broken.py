#!/usr/bin/python3
"""Shows that each check of tests/layers.py can fail: builds a small tree that keeps the rules, breaks one rule at a
time by adding a line to a file, and expects the report to name what was broken.

From the environment: CC.
"""

import contextlib
import io
import os
import pathlib
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
import layers  # noqa: E402

MAY_CALL = {"low": (), "high/front": ("low",), "high/side": ("low",)}
TREE = {
    "low/base.h": "int base(void);\n",
    "low/base.c": '#include "low/base.h"\nint base(void) { return 1; }\n',
    "high/front/front.c": '#include "low/base.h"\nint front(void) { return base(); }\n',
    "high/side/side.h": "extern int side_table;\nint side(void);\n",
    "high/side/side.c": '#include "low/base.h"\n#include "high/side/side.h"\nint side_table;\n'
                        "int side(void) { return base(); }\n",
    # A ring of four files: the largest knot that is allowed.
    **{f"high/side/r{n}.c": f"int r{(n + 1) % 4}(void);\nint r{n}(void) {{ return r{(n + 1) % 4}(); }}\n"
       for n in range(4)},
}
FRONT = ("high/front", "high/side")

# name: lines to add to files, ceilings, knot ceilings, what the report says, whether it passes.
CASES = {
    "the tree as it is": ({}, {}, {}, "ok low calls", True),
    "a call upward": ({"low/base.c": "int side(void);\nint up(void) { return side(); }\n"}, {}, {},
                      "low/base.c refers to side of high/side/side.c", False),
    "a call sideways": ({"high/front/front.c": "int side(void);\nint across(void) { return side(); }\n"}, {}, {},
                        "high/front/front.c refers to side of high/side/side.c", False),
    "a reference to data": ({"low/base.c": "extern int side_table;\nint *up(void) { return &side_table; }\n"}, {}, {},
                            "low/base.c refers to side_table of high/side/side.c", False),
    "an include upward": ({"low/base.c": '#include "high/side/side.h"\n'}, {}, {},
                          'low/base.c:3: includes "high/side/side.h"', False),
    "an include without its folder": ({"high/front/front.c": '#include "base.h"\n'}, {}, {},
                                      "includes of ?/: 1, 0 allowed", False),
    "a fifth file in a knot": ({"high/side/side.c": "int r0(void);\nint in(void) { return r0(); }\n",
                                "high/side/r3.c": "int side(void);\nint out(void) { return side(); }\n"}, {}, {},
                               "files of the largest one: 5, 0 allowed", False),
    "a knot within its ceiling": ({"high/side/side.c": "int r0(void);\nint in(void) { return r0(); }\n",
                                   "high/side/r3.c": "int side(void);\nint out(void) { return side(); }\n"},
                                  {}, {"high": (5, 5)}, "ok high has no knot", True),
    "as many calls as the ceiling": ({"high/front/front.c": "int side(void);\nint across(void) { return side(); }\n"},
                                     {FRONT: (1, 0)}, {}, "calls to high/side/: 1, to come down", True),
    "one call more than the ceiling": ({"high/front/front.c": "int side(void);\nextern int side_table;\n"
                                        "int across(void) { return side() + side_table; }\n"}, {FRONT: (1, 0)}, {},
                                       "calls to high/side/: 2, 1 allowed", False),
    "a ceiling that is too high": ({}, {FRONT: (2, 0)}, {}, "calls to high/side/: 0: the ceiling of 2 can come down", True),
    "a knot's ceiling that is too high": ({}, {}, {"high": (9, 9)}, "the ceiling of 9 can come down", True),
    "a table with a cycle": ({}, {}, {}, "low may call high/front, which is no row above its own", False),
    "a folder without a row": ({"high/new/new.c": "int new_one(void) { return 1; }\n"}, {}, {},
                               "high/new/ is not in the table MAY_CALL", False),
    "a source without an object": ({"low/more.c": None}, {}, {}, "low/more.c has no object", False),
}


def write(root, build, added):
    for name in {**TREE, **added}:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(TREE.get(name, "") + (added.get(name) or ""))
    for name in {**TREE, **added}:
        path = root / name
        if path.suffix == ".c" and added.get(name, "") is not None:
            # As libtool and automake do: in .libs, with the library's name before the file's.
            target = build / path.parent.relative_to(root) / ".libs" / f"lib_la-{path.stem}.o"
            target.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run([*os.environ.get("CC", "cc").split(), "-O0", "-I", root, "-I", root / "low", "-c", path,
                            "-o", target], check=True)


def report(name):
    added, ceilings, knot_ceilings = CASES[name][:3]
    table = {**MAY_CALL, "low": ("high/front",)} if name == "a table with a cycle" else MAY_CALL
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()) as out:
        root, build = pathlib.Path(scratch).resolve() / "source", pathlib.Path(scratch).resolve() / "build"
        write(root, build, added)
        passed = layers.check(root, build, table, ceilings, knot_ceilings)
    return passed, out.getvalue()


def main():
    failed = 0
    for name, (*_, words, passes) in CASES.items():
        passed, text = report(name)
        good = passed == passes and words in text
        print(f"{'ok' if good else 'not ok'} {name}: layers.py {'passes' if passed else 'fails'}")
        if not good:
            print(f"  expected \"{words}\" in\n{text}")
        failed += not good
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
