"""House rules that a machine can check: sizes, docstrings, no paths of one machine, light packages, one folder."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedpref.errors
import privacy.errors
import reward.errors
from fedpref.doctor import PACKAGES
from fedpref.errors import CODED_ERRORS, WARNINGS

ROOT = Path(__file__).parent.parent
SOURCES = sorted(p for package in (*PACKAGES, "benchmarks") for p in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MAX_FILE, MAX_FUNCTION = 400, 80  # lines
MACHINE_PATH = re.compile(r"(?<![\w.])/(work|root|tmp|home|Users|mnt|var/folders)/")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_is_something_to_check() -> None:
    assert len(SOURCES) > 60
    assert {p.relative_to(ROOT).parts[0] for p in SOURCES} >= set(PACKAGES)


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=name)
def test_no_file_is_longer_than_400_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=name)
def test_no_function_is_longer_than_80_lines(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert (node.end_lineno or 0) - node.lineno + 1 <= MAX_FUNCTION, node.name


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_every_module_says_what_it_is(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring
    assert len(docstring) > 10


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=name)
def test_every_line_parses_on_the_oldest_python(path: Path) -> None:
    """3.11 reads f-strings as one token: a quote of the same kind inside one is an error there, and only there."""
    source = path.read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 11))
    for text in f_strings(source):
        assert same_quote_inside(text) is False, text


def f_strings(source: str) -> Iterator[str]:
    """Every f-string of a source, from its prefix to its last quote."""
    if sys.version_info < (3, 12):
        return  # this interpreter is the oldest one: ast.parse has judged
    starts: list[tuple[int, int]] = []
    lines = source.splitlines(keepends=True)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = tokenize.tok_name[token.type]
        if kind == "FSTRING_START":
            starts.append(token.start)
        elif kind == "FSTRING_END":
            (row, column), (last, end) = starts.pop(), token.end
            text = "".join(lines[row - 1 : last])
            yield text[column : len(text) - (len(lines[last - 1]) - end)]


def same_quote_inside(text: str) -> bool:
    quote = re.match(r"[a-zA-Z]*(\"\"\"|'''|\"|')", text)
    return bool(quote) and quote[1] in text[quote.end() : len(text) - len(quote[1])].replace("\\" + quote[1], "")


def tracked_text_files() -> Iterator[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S607
    names = listed.stdout.splitlines() if listed.returncode == 0 else [name(p) for p in SOURCES]
    for path in (ROOT / n for n in names):
        if path.is_file() and path.suffix in {".py", ".toml", ".yaml", ".yml", ".md", ".txt", ".sh", ""}:
            yield path


def test_no_path_of_one_machine_is_written_down() -> None:
    found = []
    for path in tracked_text_files():
        if path.is_relative_to(ROOT / "tests") or path.name == "LICENSE":
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if MACHINE_PATH.search(line):
                found.append(f"{name(path)}:{number}: {line.strip()[:80]}")
    assert found == []


def test_the_search_for_machine_paths_can_find_one() -> None:
    for line in ('"/work/main/x"', "cd /root/", "at /tmp/x", "(/home/me/)"):
        assert MACHINE_PATH.search(line)
    for line in ("s/tmp/x", "https://a/work/x", "framework/", "roots", "docs/root/x"):
        assert not MACHINE_PATH.search(line) or line.startswith("https")


@pytest.mark.parametrize("package", ["fedpref", "fedpref.config", "fedpref.errors", "reward", "policy"])
def test_packages_open_without_torch(package: str) -> None:
    """The command line and `privacy` have tests of their own (fedpref/test_cli.py, privacy/test_standalone.py)."""
    heavy = "{'torch', 'transformers', 'datasets', 'pyarrow', 'trl', 'peft', 'wandb'}"
    code = f"import sys, {package}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def coded_classes() -> Iterator[tuple[str, str, Path]]:
    """(code, class, file) of every class in the sources that has a code, seen without importing anything."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for line in node.body if isinstance(node, ast.ClassDef) else ():
                target = line.target if isinstance(line, ast.AnnAssign) else getattr(line, "targets", [None])[0]
                value = getattr(line, "value", None)
                if (
                    isinstance(target, ast.Name)
                    and target.id == "code"
                    and isinstance(value, ast.Constant)
                    and value.value
                ):
                    assert isinstance(node, ast.ClassDef)
                    yield str(value.value), node.name, path


def test_every_error_code_means_one_thing_and_is_told_in_an_errors_module() -> None:
    codes = dict.fromkeys(WARNINGS, "a warning")
    for code, kind, path in coded_classes():
        assert re.fullmatch(r"FP\d{3}", code), kind
        assert codes.setdefault(code, kind) == kind, code
        assert path.name == "errors.py" or path.is_relative_to(ROOT / "privacy" / "gradients"), (
            f"{kind} in {name(path)}"
        )
    assert len(codes) > 30


def test_every_code_that_is_printed_anywhere_is_one_of_them() -> None:
    known = {*WARNINGS, *(code for code, _, _ in coded_classes())}
    for path in [*SOURCES, ROOT / "Makefile", ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        assert set(re.findall(r"FP\d{3}", path.read_text(encoding="utf-8"))) <= known, name(path)


def test_every_error_of_an_errors_module_is_caught_by_whoever_prints_them() -> None:
    for module in (fedpref.errors, privacy.errors, reward.errors):
        classes = {c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Exception)}
        assert classes
        for kind in classes:
            assert issubclass(kind, CODED_ERRORS)
            assert kind.__doc__


def test_no_module_reads_pickles_or_runs_code_from_a_file() -> None:
    """Wire and disk formats are safetensors, canonical JSON, YAML (safe), Parquet; nothing else is ever loaded."""
    forbidden = re.compile(
        r"\bpickle\b|torch\.load\(|(?<!\.)\b(eval|exec)\(|yaml\.load\(|import_module\(|__import__\(|shelve"
    )
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom, ast.Call)):
                assert not forbidden.search(ast.unparse(node)[:200]), f"{name(path)}:{node.lineno}"
