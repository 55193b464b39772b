#!/usr/bin/python3
"""Counts words and openings of sentences that usually make a text hard to follow.

    words.py [--list] [ROOT]

    people   nobody, everybody, whoever and the like, where a process, a packet or an object is meant
    who      a sentence that begins with "Who": its subject is not named
    what     a sentence that begins with "What" and is no question: its subject is not named either
    he       he, him, his, she, her, where a process is meant

The text is comments and docstrings of sources, messages (strings of several words in C), manual pages and
documents. It is counted by area, and each figure is hits per 10,000 words. CEILINGS has the highest
figure that is allowed; change a ceiling only to lower it. Prints one line for each area, `ok` or `not ok`
with the places, and fails if any is over a ceiling. --list prints every place.
"""

import io
import pathlib
import re
import sys
import tokenize

KINDS = {
    "people": re.compile(r"\b(?:nobody|everybody|everyone|somebody|someone|anybody|anyone|whoever|whomever)\b", re.I),
    "who": None,
    "what": None,
    "he": re.compile(r"\b(?:he|him|his|himself|she|her|hers|herself)\b", re.I),
}
# Hits per 10,000 words: people, who, what, he. The first row is the level of six well-kept projects.
GOOD = (1.2, 0.0, 0.4, 0.0)
CEILINGS = {
    "documents": GOOD,
    "manuals": GOOD,
    "build": GOOD,
    "tests": GOOD,
    "tools": GOOD,
    "libclient": (1.2, 0.0, 2.2, 0.0),
    "daemon": (5.8, 0.9, 12.5, 0.0),
    "shm": GOOD,
}
SKIPPED = ("tests/fuzz/corpus", "tests/words.py", "COPYING")

C_TEXT = re.compile(r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|/\*.*?\*/|//[^\n]*', re.S)
C_MARGIN = re.compile(r"^[ \t]*/?\*+/?|\*+/[ \t]*$", re.M)
WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")
# A sentence begins at the start of a text, after a blank line, or after the end of another.
OPENER = re.compile(r"(?:\A|\n[^\w\n]*\n|[.:;!?|]['\")]*\s)[^\w\n]*(?:\n[^\w\n]*)?(Who|What)\b([^.;!?]*[.;!?]?)", re.I)


def blank(text):
    """The text's newlines alone, so that later places keep their line numbers."""
    return "\n" * text.count("\n")


def pieces_of_c(source, messages):
    """(line, text) of each comment or message."""
    for match in C_TEXT.finditer(source):
        piece = match.group()
        line = source.count("\n", 0, match.start()) + 1
        if piece.startswith("/*") or piece.startswith("//"):
            yield line, C_MARGIN.sub(lambda m: " " * len(m.group()), piece).replace("//", "  ")
        elif messages and piece.startswith('"') and piece.count(" ") >= 2:
            yield line, piece.strip('"')


def pieces_of_python(source):
    comments = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if comments and comments[-1][0] + comments[-1][1].count("\n") + 1 == token.start[0]:
                comments[-1] = (comments[-1][0], comments[-1][1] + "\n" + token.string.lstrip("#"))
            else:
                comments.append((token.start[0], token.string.lstrip("#")))
        elif token.type == tokenize.STRING and token.string.startswith('"""'):
            yield token.start[0], token.string.strip('"')
    yield from comments


def pieces_of_lines(source, mark):
    """Runs of comment lines: `mark` is where a comment begins."""
    run, start = [], 0
    for number, line in enumerate(source.splitlines() + [""], 1):
        match = mark.search(line)
        if match:
            start = start if run else number
            run.append(line[match.end():])
        elif run:
            yield start, "\n".join(run)
            run = []


def pieces_of_manual(source):
    """Macro lines end a sentence when they begin a paragraph; within one they are words."""
    text = re.sub(r"^\.\\\".*$", "", source, flags=re.M)
    text = re.sub(r"^\.(Sh|Ss|Pp|It|Bl|El|Bd|Ed|Nd|Dd|Dt|Os)\b.*$", lambda m: "" if m.group(1) != "Nd" else m.group(), text, flags=re.M)
    yield 1, re.sub(r"^\.[A-Z][a-z]\b", "   ", text, flags=re.M)


def area_and_pieces(path, text):
    """The area a file belongs to and its texts; (None, ()) for a file without any."""
    name, top = str(path), path.parts[0]
    if path.suffix in (".c", ".h", ".cc", ".def"):
        return top, pieces_of_c(text, messages=top != "tests")
    if path.suffix == ".py":
        return top, pieces_of_python(text)
    if path.suffix == ".md" or name == "NEWS":
        return "documents", [(1, re.sub(r"```.*?```", lambda m: blank(m.group()), text, flags=re.S))]
    if re.fullmatch(r"\.[1-8]", path.suffix):
        return "manuals", pieces_of_manual(text)
    if path.suffix in (".am", ".ac", ".sh", ".example") or name in ("tools/check", "tools/quickstart", ".ci/run") or \
            path.parent.name == "completion":
        return "build", pieces_of_lines(text, re.compile(r"(?:^|\s)(?:#|dnl)(?!!)"))
    if path.suffix == ".txt":
        return top, pieces_of_lines(text, re.compile(r"^#"))
    if path.suffix == ".pml":
        return top, pieces_of_c(text, messages=False)
    return None, ()


def hits(piece):
    """(kind, offset) of each word or opening that counts."""
    for kind, pattern in KINDS.items():
        for match in pattern.finditer(piece) if pattern else ():
            yield kind, match.start()
    for match in OPENER.finditer(piece):
        if not match.group(2).endswith("?"):
            yield match.group(1).lower(), match.start(1)


def files(root):
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        if path.is_file() and not any(part.startswith(("build", ".git", "autom4te")) for part in name.parts[:1]) and \
                not str(name).startswith(SKIPPED) and not any(part in (".libs", "__pycache__") for part in name.parts):
            yield path, name


def main():
    arguments = [word for word in sys.argv[1:] if word != "--list"]
    root = pathlib.Path(arguments[0] if arguments else pathlib.Path(__file__).parent.parent).resolve()
    words = dict.fromkeys(CEILINGS, 0)
    places = {area: {kind: [] for kind in KINDS} for area in CEILINGS}
    for path, name in files(root):
        try:
            area, pieces = area_and_pieces(name, path.read_text())
        except UnicodeDecodeError:
            continue
        if area not in CEILINGS:
            continue
        for line, piece in pieces:
            words[area] += len(WORD.findall(piece))
            for kind, offset in hits(piece):
                excerpt = " ".join(piece[offset:offset + 60].split())
                places[area][kind].append(f"{name}:{line + piece.count(chr(10), 0, offset)}: {excerpt}")
    failed = 0
    for area, ceilings in CEILINGS.items():
        figures = [10000 * len(places[area][kind]) / max(words[area], 1) for kind in KINDS]
        over = [kind for kind, figure, ceiling in zip(KINDS, figures, ceilings) if figure > ceiling]
        if words[area] == 0:
            over.append("no text found")
        print(f"{'not ok' if over else 'ok'} words of {area}: {words[area]}; per 10,000:",
              ", ".join(f"{kind} {figure:.1f} of {ceiling}" for kind, figure, ceiling in zip(KINDS, figures, ceilings)))
        for kind in KINDS if "--list" in sys.argv else [kind for kind in over if kind in KINDS]:
            for place in places[area][kind]:
                print(f"  {kind}: {place}")
        failed += bool(over)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
