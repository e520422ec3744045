#!/usr/bin/env python3
"""Lines and code tokens of the project, part by part, beside their budget.

    python .ci/size.py            # exit status 1 above a budget

A code token is a name, number, string or operator; an f-string counts as one token on every Python version. Comments,
docstrings and blank lines do not count. Lines can be saved by packing more into each; tokens cannot, so tokens bind.
For comparison, tokens per code line: nanoGPT and nanochat about 9, the official ofa package and whittle 6.
"""

import ast
import io
import json
import sys
import tokenize
from pathlib import Path

COUNTED = {tokenize.NAME, tokenize.NUMBER, tokenize.STRING, tokenize.OP}
FSTRING = tuple(getattr(tokenize, name, -1) for name in ("FSTRING_START", "FSTRING_END"))
NOT_TRAINING = {f"{n}.py" for n in "errors files device progress official parallel __init__ __main__".split()}
DENSITY = 10.5  # tokens per code line, at most, in rsslib and rsstudy


def docstring_lines(tree: ast.AST) -> set[int]:
    """Line numbers that docstrings take."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node):
            lines.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return lines


def measure(text: str) -> tuple[int, int, int]:
    """Lines, code lines and code tokens of Python source."""
    skipped = docstring_lines(ast.parse(text))
    depth, tokens, code = 0, 0, set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.start[0] in skipped:
            continue
        if token.type == FSTRING[0]:
            depth += 1
            tokens += depth == 1
        elif token.type == FSTRING[1]:
            depth -= 1
        elif token.type in COUNTED:
            tokens += depth == 0
        else:
            continue
        code.add(token.start[0])
    return len(text.splitlines()), len(code), tokens


def of_files(paths) -> tuple[int, int, int]:
    rows = [measure(path.read_text(encoding="utf-8")) for path in paths]
    return tuple(map(sum, zip(*rows, strict=True))) if rows else (0, 0, 0)


def of_notebooks(folder: Path) -> tuple[int, int, int]:
    rows = []
    for path in sorted(folder.glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        rows.append(measure("\n".join(line for line in code.splitlines() if not line.startswith("%"))))
    return tuple(map(sum, zip(*rows, strict=True))) if rows else (0, 0, 0)


def main() -> int:
    library, study = sorted(Path("rsslib").rglob("*.py")), sorted(Path("rsstudy").rglob("*.py"))
    core = [path for path in library if path.parts[1] not in ("cuda", "deploy")]
    training = [path for path in core if path.parts[1] not in NOT_TRAINING]
    everything = of_files([*library, *study])
    table = [  # name, measured, lines at most, tokens at most, tokens per code line at most
        ("what trains: rsslib without ground files, cuda, deploy", of_files(training), 2_800, 20_000, DENSITY),
        ("rsslib without cuda, deploy", of_files(core), 3_600, 26_000, DENSITY),
        ("rsslib", of_files(library), None, None, DENSITY),
        ("rsstudy", of_files(study), None, None, DENSITY),
        ("rsslib and rsstudy", everything, 10_000, 74_000, DENSITY),
        ("tests", of_files(sorted(Path("tests").rglob("*.py"))), None, 3 * everything[2] // 2, 13.0),
        ("benchmarks", of_files(sorted(Path("benchmarks").rglob("*.py"))), None, None, None),
        ("notebooks", of_notebooks(Path("notebooks")), None, None, None),
    ]
    print(f"{'':56} {'lines':>7} {'budget':>7} {'tokens':>8} {'budget':>8} {'a line':>7} {'budget':>7}")
    above = 0
    for name, (lines, code, tokens), most_lines, most_tokens, most in table:
        density = tokens / max(code, 1)
        bad = (most_lines or lines) < lines or (most_tokens or tokens) < tokens or round(density, 1) > (most or density)
        above += bad
        words = [f"{value:,}" if value else "" for value in (most_lines, most_tokens)]
        counts = f"{lines:7,} {words[0]:>7} {tokens:8,} {words[1]:>8} {density:7.1f} {most or '':>7}"
        print(f"{name:56} {counts}{'  above' if bad else ''}")
    return int(above > 0)


if __name__ == "__main__":
    sys.exit(main())
