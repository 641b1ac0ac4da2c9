"""Rules of style that no linter checks: sizes, late attributes, reasons of suppressions, documents."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from pathlib import Path

import pytest
from support import REPOSITORY

PRODUCT = ("engine", "handlers", "sandbox_image", "tasks", "tools")
SOURCES = [path for folder in (*PRODUCT, "tests") for path in sorted((REPOSITORY / folder).rglob("*.py"))]
PRODUCT_SOURCES = [path for path in SOURCES if path.relative_to(REPOSITORY).parts[0] in PRODUCT]
DOCUMENTS = [
    path
    for folder in (".", "docs", *PRODUCT, "tests")
    for path in sorted((REPOSITORY / folder).glob("*.md" if folder == "." else "**/*.md"))
    if "examples" not in path.parts
]

FILE_LINES, FUNCTION_LINES, DOCUMENT_LINES = 400, 60, 150

SUPPRESSION = re.compile(r"#\s*(?:noqa:|type: ignore|pyright: ignore|pragma:)")
SUPPRESSED = re.compile(
    r"noqa: [A-Z]+\d+(?:, [A-Z]+\d+)*|(?:type|pyright): ignore(?:\[[\w, -]+\])?|pragma: no cover"
)

# NAME stands for a file that a reader writes; ../shared is beside a checkout.
FILE = re.compile(r"(?!.*NAME|\.\./shared/)(?:[\w.-]+/)*[\w-]+\.(?:py|sh|md)")

EXAMPLES = {"my_tools.py"}
"""Files in documents that a reader writes."""


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def attributes_set_by(method: ast.AST) -> set[str]:
    found = set[str]()
    for node in ast.walk(method):
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        for target in targets:
            parts = target.elts if isinstance(target, ast.Tuple) else [target]
            found |= {
                part.attr
                for part in parts
                if isinstance(part, ast.Attribute)
                and isinstance(part.value, ast.Name)
                and part.value.id == "self"
            }
    return found


def late_attributes(node: ast.ClassDef) -> set[str]:
    """Return the attributes that no class body or constructor declares."""
    declared, late = set[str](), set[str]()
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            declared.add(statement.target.id)
        elif isinstance(statement, ast.Assign):
            declared |= {target.id for target in statement.targets if isinstance(target, ast.Name)}
        elif isinstance(statement, ast.FunctionDef) and statement.name in ("__init__", "__post_init__"):
            declared |= attributes_set_by(statement)
        else:
            late |= attributes_set_by(statement)
    return late - declared


@pytest.mark.parametrize("path", PRODUCT_SOURCES, ids=name_of)
def test_files_and_functions_are_short(path: Path) -> None:
    source = read(path)
    assert len(source.splitlines()) <= FILE_LINES
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert (node.end_lineno or 0) - node.lineno < FUNCTION_LINES, node.name


def test_attributes_are_set_first_in_the_constructor() -> None:
    found = {
        f"{name_of(path)}:{node.name}"
        for path in PRODUCT_SOURCES
        for node in ast.walk(ast.parse(read(path)))
        if isinstance(node, ast.ClassDef) and late_attributes(node)
    }
    assert found == set()


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_suppression_has_its_reason(path: Path) -> None:
    for token in tokenize.generate_tokens(io.StringIO(read(path)).readline):
        if token.type == tokenize.COMMENT and SUPPRESSION.search(token.string):
            reason = SUPPRESSED.sub("", token.string)
            assert len(re.findall(r"\w{2,}", reason)) >= 2, f"line {token.start[0]}: {token.string}"


def test_every_rule_that_ruff_leaves_out_has_its_reason() -> None:
    """On its line, or in a comment above a group of lines."""
    project = read(REPOSITORY / "pyproject.toml")
    ignored = project.partition("\nignore = [\n")[2].partition("\n]")[0]
    by_file = project.partition("[tool.ruff.lint.per-file-ignores]\n")[2].partition("\n\n")[0]
    assert all("#" in line for line in ignored.splitlines())
    assert by_file.startswith("#")


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_documents_are_short(path: Path) -> None:
    if path.name == "CONTRIBUTING.md" or (path.name == "README.md" and path.parent != REPOSITORY):
        assert len(read(path).splitlines()) <= DOCUMENT_LINES


def test_files_that_documents_name_exist() -> None:
    """A link is relative to its document; a name in code may leave out folders before it."""
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    endings = set(EXAMPLES)
    for line in listed.stdout.splitlines():
        parts = line.split("/")
        endings |= {"/".join(parts[start:]) for start in range(len(parts))}
    missing = list[str]()
    for path in DOCUMENTS:
        text = read(path)
        links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
        missing += [f"{name_of(path)}: {link}" for link in links if not (path.parent / link).exists()]
        # The left column of the changelog's table holds old names.
        code = r"\| `([^`|]+)` \|$" if path.name == "CHANGELOG.md" else r"`([^`\s]+)`"
        files = [name for name in re.findall(code, text, re.MULTILINE) if FILE.fullmatch(name)]
        missing += [f"{name_of(path)}: {file}" for file in files if file not in endings]
    assert missing == []
