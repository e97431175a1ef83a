"""The documentation is correct: its code runs, and its output and numbers match the code's.

`WRITE_DOCS=1 pytest tests/test_docs.py` updates the failures that the rule pages show.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from math import isclose
from pathlib import Path

import pytest
import torch
import torch._dynamo  # an optimizer imports it, and a second inner run cannot import it again

from benchmarks import harm
from pytest_evalmode import __version__
from pytest_evalmode.rules import RULES, Rule
from tests import suites
from tests.pages import DOCS, ROOT, RULE_PAGES, blocks

HEADINGS = ["What it means", "Why it matters", "How it looks", "How to fix it", "When to exempt"]
EACH_RULE = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)


def page_of(rule: Rule) -> Path:
    return RULE_PAGES / f"{rule.name}.md"


def run_page(pytester: pytest.Pytester, code: Sequence[str], *options: str) -> tuple[set[str], list[str]]:
    """Run the code blocks of a page as one file; return the broken rules and the output.

    Later blocks redefine names of earlier ones.
    """
    pytester.makepyfile(test_accuracy="\n\n".join(code))
    report = pytester.path / "report.json"
    result = suites.run(pytester, f"--evalmode-report={report}", *options)
    torch.set_grad_enabled(True)  # the page about leaks changes it
    tests = json.loads(report.read_text(encoding="utf-8"))["tests"]
    assert "ERROR" not in result.stdout.str(), result.stdout.str()
    return {v["rule"] for test in tests for v in test["violations"]}, result.outlines


def failure(lines: list[str]) -> str:
    """Return the text of the first failure in the output."""
    begin = next(number for number, line in enumerate(lines) if re.match(r"_+ test_\w+ _+$", line)) + 1
    end = next(number for number, line in enumerate(lines[begin:], begin) if re.match(r"[=_-]+( |$)", line))
    return "\n".join(lines[begin:end]).strip() + "\n"


@EACH_RULE
def test_rule_page_has_five_headings(rule: Rule) -> None:
    assert page_of(rule).exists(), "copy the page of a similar rule and adapt it"
    text = page_of(rule).read_text(encoding="utf-8")
    assert text.startswith(f"# {rule.name}\n")
    assert re.findall(r"^## (.+)$", text, re.M) == HEADINGS
    assert re.search(rf"^{harm.PREFIX}", text, re.M), "run python -m benchmarks.harm --write"


def test_every_rule_is_listed_in_the_index_and_the_navigation() -> None:
    names = {rule.name for rule in RULES}
    for file, line, expected in (
        (RULE_PAGES / "index.md", r"^\| \[`([\w-]+)`\]\(\1\.md\) \|", names),
        (ROOT / "mkdocs.yml", r"^ +- rules/([\w-]+)\.md$", {"index", *names}),
        (ROOT / "README.md", r"^\| `([\w-]+)` \|", {rule.name for rule in RULES if rule.level == "default"}),
    ):
        named = re.findall(line, file.read_text(encoding="utf-8"), re.M)
        assert sorted(named) == sorted(expected), f"{file.relative_to(ROOT)} must list each rule once"


@EACH_RULE
def test_code_of_a_rule_page_breaks_and_fixes_the_rule(pytester: pytest.Pytester, rule: Rule) -> None:
    page = page_of(rule)
    text = page.read_text(encoding="utf-8")
    options = ["--evalmode-strict"] if rule.level == "strict" else []
    code: list[str] = []
    printed = ""
    for block in blocks(text):
        if block.language == "python":
            code.append(block.code)
            if block.heading == "What it means":
                assert run_page(pytester, code, "--evalmode-update-lock")[0] == set()
                continue
            broken, lines = run_page(pytester, code, *options)
            assert broken == ({rule.name} if block.heading == "How it looks" else set()), "\n".join(lines)
            printed = failure(lines) if broken else printed
        elif os.environ.get("WRITE_DOCS"):
            page.write_text(text[: block.at.start] + printed + text[block.at.stop :], encoding="utf-8")
        else:
            assert block.code == printed


NUMBER = re.compile(r"\d+(?:\.\d+)?")


def test_numbers_on_rule_pages_match_the_measurement() -> None:
    assert list(harm.MEASUREMENTS) == [rule.name for rule in RULES], (
        "benchmarks/harm.py needs one function per rule, in the order of the rules"
    )
    for rule in RULES:
        page = page_of(rule).read_text(encoding="utf-8")
        documented = next(line for line in page.splitlines() if line.startswith(harm.PREFIX))
        measured = harm.measure(rule.name)
        assert NUMBER.sub("#", documented) == NUMBER.sub("#", measured)
        # Wide tolerances: another processor adds in another order, and so trains a slightly different model.
        for expected, actual in zip(NUMBER.findall(documented), NUMBER.findall(measured), strict=True):
            assert isclose(float(expected), float(actual), rel_tol=0.3, abs_tol=5), (documented, measured)


def test_changelog_starts_with_the_current_version() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert newest is not None
    assert newest[1] == __version__


PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@EACH_PAGE
def test_every_code_block_has_a_file_name_or_is_a_console(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    parsed = list(blocks(text))
    assert len(re.findall(r"^```", text, re.M)) == 2 * len(parsed)
    if page.name != "README.md":  # tests/test_readme.py runs its blocks
        assert all(block.title or block.language == "console" for block in parsed)


@EACH_PAGE
def test_commands_of_a_page_print_the_documented_output(
    pytester: pytest.Pytester, request: pytest.FixtureRequest, page: Path
) -> None:
    """Write each titled block to a file, run each console command, and match its output with the lines below it."""
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.title:
            file = pytester.path / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.code, encoding="utf-8")
        elif block.language == "console":
            for command in block.code.split("$ ")[1:]:
                options = re.findall(r"--(evalmode[\w-]*)", command)
                if all(hasattr(request.config.option, name.replace("-", "_")) for name in options):
                    run_command(pytester, *command.splitlines())


def run_command(pytester: pytest.Pytester, command: str, *expected: str) -> None:
    program, *arguments = shlex.split(command)
    if program == "pip":
        return
    if program == "python":
        result = pytester.run(sys.executable, *arguments)
    else:
        result = suites.run(pytester, "-p", "no:cacheprovider", *arguments)
        assert result.ret not in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.INTERNAL_ERROR)
    # A part of a line is enough, and `...` matches anything.  Brackets are escaped: in a glob they match a character.
    globs = [line.replace("[", "[[]").replace("...", "*") for line in expected]
    result.stdout.fnmatch_lines([f"*{glob}*" for glob in globs if glob != "*"])
