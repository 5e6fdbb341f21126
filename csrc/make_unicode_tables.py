"""Writes csrc/unicode_tables.inc: what the tokenizer needs of the Unicode Character Database.

CLIP's reference tokenizer mixes three Unicode versions, one for each of its libraries, and identical ids need the same
mix: normalisation form C follows 9.0, the classes \\p{L}, \\p{N} and \\s follow 16.0, lower case follows 17.0.

Each argument is a command that starts a Python interpreter whose ``unicodedata2`` (PyPI), or else whose own
``unicodedata``, has that version, for example::

    pip install --target ucd16 unicodedata2==16.0.0
    pip install --target ucd17 unicodedata2==17.0.1
    python make_unicode_tables.py python3.6 "env PYTHONPATH=ucd16 python3" "env PYTHONPATH=ucd17 python3" \\
        > unicode_tables.inc

CPython 3.6 carries 9.0. Versions are checked, so the result does not depend on the machine.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

# Runs inside the interpreters, Python 3.6 too. Lower case of letters that are newer than that Python comes from their
# names: unicodedata2 has no case mappings, and every such letter is called "... CAPITAL ..." beside "... SMALL ...".
PROBE = r"""
import json, unicodedata
try:
    import unicodedata2 as ucd
except ImportError:
    ucd = unicodedata

def lower(character):
    result = character.lower()
    if unicodedata.category(character) == "Cn" and ucd.category(character) == "Lu":
        result = ucd.lookup(ucd.name(character).replace("CAPITAL", "SMALL"))
    return [ord(c) for c in result]

rows = []
for code in range(0x110000):
    if 0xD800 <= code < 0xE000:
        continue
    character = chr(code)
    decomposition = ucd.decomposition(character)
    canonical = [] if decomposition.startswith("<") else [int(part, 16) for part in decomposition.split()]
    composes = len(canonical) == 2 and ucd.normalize("NFC", character) == character
    row = [code, ucd.category(character), ucd.combining(character), canonical, composes, lower(character)]
    if row[1:] != ["Cn", 0, [], False, [code]]:
        rows.append(row)
print(json.dumps({"version": ucd.unidata_version, "rows": rows}))
"""


def load(command: str, version: str) -> list[list[Any]]:
    """Rows [code, category, combining class, decomposition, composes, lower case] of every assigned character."""
    output = subprocess.run([*shlex.split(command), "-c", PROBE], check=True, stdout=subprocess.PIPE).stdout
    data = json.loads(output)
    if data["version"] != version:
        sys.exit(f"{command} has Unicode {data['version']}; give one with {version}")
    rows: list[list[Any]] = data["rows"]
    return rows


def ranges(codes: Iterable[int]) -> list[tuple[int, int]]:
    """Maximal runs (first, last) of sorted code points."""
    runs: list[tuple[int, int]] = []
    for code in codes:
        if runs and code == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], code)
        else:
            runs.append((code, code))
    return runs


def lower_runs(mapping: dict[int, int]) -> list[tuple[int, int, int, int]]:
    """Runs (first, last, step, distance): every step-th code point of the run lies `distance` below its lower case."""
    runs: list[tuple[int, int, int, int]] = []
    for code, low in sorted(mapping.items()):
        first, last, step, distance = runs[-1] if runs else (0, 0, 0, 0)
        gap = code - last
        if runs and low - code == distance and gap <= 2 and (first == last or gap == step):
            runs[-1] = (first, code, gap, distance)
        else:
            runs.append((code, code, 1, low - code))
    return runs


def table(declaration: str, comment: str, rows: Iterable[tuple[int, ...]]) -> str:
    """One C++ array, lines filled to 120 columns."""
    lines = ["", f"// {comment}", f"constexpr {declaration}[] = {{", "   "]
    for row in rows:
        text = " {" + ", ".join(str(value) if value < 0 else hex(value) for value in row) + "},"
        if len(lines[-1]) + len(text) > 120:
            lines.append("   ")
        lines[-1] += text
    return "\n".join([*lines, "};", ""])


def main() -> None:
    """Reads the three databases named on the command line and prints the tables."""
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    normalization = load(sys.argv[1], "9.0.0")
    classes = load(sys.argv[2], "16.0.0")
    cases = load(sys.argv[3], "17.0.0")

    emit = sys.stdout.write
    emit("// Written by make_unicode_tables.py; do not edit.\n")
    emit("// Unicode versions: normalisation 9.0.0, classes 16.0.0, lower case 17.0.0.\n")
    emit(table("CodeRange letter_ranges", "Category L*: first, last.", ranges(r[0] for r in classes if r[1][0] == "L")))
    emit(table("CodeRange number_ranges", "Category N*: first, last.", ranges(r[0] for r in classes if r[1][0] == "N")))
    controls = [*range(0x09, 0x0E), 0x85]
    spaces = sorted([*controls, *(r[0] for r in classes if r[1][0] == "Z")])
    emit(table("CodeRange space_ranges", "White_Space: categories Z* and six control characters.", ranges(spaces)))

    lower = {r[0]: r[5][0] for r in cases if len(r[5]) == 1 and r[5][0] != r[0]}
    longer = [r[0] for r in cases if len(r[5]) != 1]
    if longer != [0x130]:
        sys.exit(f"unicode.cc knows one letter with a longer lower case, U+0130; here: {longer}")
    emit(table("LowerRange lower_ranges", "Lower case: first, last, step, distance.", lower_runs(lower)))

    combining: list[tuple[int, int, int]] = []
    for value in sorted({r[2] for r in normalization} - {0}):
        combining += [(*run, value) for run in ranges(r[0] for r in normalization if r[2] == value)]
    emit(table("CombiningRange combining_ranges", "Combining class, not 0: first, last, class.", sorted(combining)))
    parts = [(r[0], *r[3], *[0] * (2 - len(r[3]))) for r in normalization if r[3]]
    emit(table("Decomposition decompositions", "Decomposition, one level: code, first, second or 0.", parts))
    pairs = sorted((r[3][0], r[3][1], r[0]) for r in normalization if r[4])
    emit(table("Composition compositions", "Primary composites: first, second, code.", pairs))


if __name__ == "__main__":
    main()
