"""What the documentation says is so: its code runs, its output is what is printed, its numbers are what is measured.

`WRITE_DOCS=1 pytest tests/test_docs.py` writes the failures that the pages of the rules show anew.
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
import torch._dynamo  # an optimizer imports it, and no second inner run could

from benchmarks import harm
from pytest_evalmode import __version__
from pytest_evalmode.rules import RULES, Rule
from tests import suites
from tests.pages import DOCS, ROOT, RULE_PAGES, blocks

HEADINGS = ["What it means", "Why it matters", "How it looks", "How to fix it", "When to exempt"]
EACH_RULE = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)


def page_of(rule: Rule) -> Path:
    return RULE_PAGES / f"{rule.name}.md"


def broken(pytester: pytest.Pytester, code: Sequence[str], *options: str) -> tuple[set[str], list[str]]:
    """Run the code of a page, what comes later in place of what comes before: the rules broken, and what is printed."""
    pytester.makepyfile(test_accuracy="\n\n".join(code))
    report = pytester.path / "report.json"
    result = suites.run(pytester, f"--evalmode-report={report}", *options)
    torch.set_grad_enabled(True)  # as it was: the page of a leak leaks
    found = json.loads(report.read_text(encoding="utf-8"))
    assert "ERROR" not in result.stdout.str(), result.stdout.str()
    return {v["rule"] for test in found["tests"] for v in test["violations"]}, result.outlines


def failure(lines: list[str]) -> str:
    """The text of the first failure: from its headline to the next ruled line."""
    begin = next(number for number, line in enumerate(lines) if re.match(r"_+ test_\w+ _+$", line)) + 1
    end = next(number for number, line in enumerate(lines[begin:], begin) if re.match(r"[=_-]+( |$)", line))
    return "\n".join(lines[begin:end]).strip() + "\n"


@EACH_RULE
def test_the_page_of_a_rule_has_its_five_parts(rule: Rule) -> None:
    assert page_of(rule).exists(), "copy the page of a rule like it, and say what is so of this one"
    text = page_of(rule).read_text(encoding="utf-8")
    assert text.startswith(f"# {rule.name}\n")
    assert re.findall(r"^## (.+)$", text, re.M) == HEADINGS
    assert re.search(rf"^{harm.BEGINS}", text, re.M), "what the fault costs: python -m benchmarks.harm --write"


def test_every_rule_is_named_where_a_reader_looks_for_it() -> None:
    names = {rule.name for rule in RULES}
    for file, line, expected in (
        (RULE_PAGES / "index.md", r"^\| \[`([\w-]+)`\]\(\1\.md\) \|", names),
        (ROOT / "mkdocs.yml", r"^ +- rules/([\w-]+)\.md$", {"index", *names}),
        (ROOT / "README.md", r"^\| `([\w-]+)` \|", {rule.name for rule in RULES if rule.level == "default"}),
    ):
        named = re.findall(line, file.read_text(encoding="utf-8"), re.M)
        assert sorted(named) == sorted(expected), f"one line a rule in {file.relative_to(ROOT)}"


@EACH_RULE
def test_the_code_of_a_rules_page_breaks_it_and_mends_it(pytester: pytest.Pytester, rule: Rule) -> None:
    page = page_of(rule)
    text = page.read_text(encoding="utf-8")
    options = ["--evalmode-strict"] if rule.level == "strict" else []
    above: list[str] = []
    said = ""
    for block in blocks(text):
        if block.language == "python":
            above.append(block.code)
            if block.heading == "What it means":
                assert broken(pytester, above, "--evalmode-update-lock")[0] == set()
                continue
            found, lines = broken(pytester, above, *options)
            assert found == ({rule.name} if block.heading == "How it looks" else set()), "\n".join(lines)
            said = failure(lines) if found else said
        elif os.environ.get("WRITE_DOCS"):
            page.write_text(text[: block.at.start] + said + text[block.at.stop :], encoding="utf-8")
        else:
            assert block.code == said


NUMBER = re.compile(r"\d+(?:\.\d+)?")


def test_every_number_of_a_rules_page_is_what_is_measured() -> None:
    assert list(harm.HARM) == [rule.name for rule in RULES], (
        "one function a rule, in their order, in benchmarks/harm.py"
    )
    for rule in RULES:
        page = page_of(rule).read_text(encoding="utf-8")
        said = next(line for line in page.splitlines() if line.startswith(harm.BEGINS))
        measured = harm.measure(rule.name)
        assert NUMBER.sub("#", said) == NUMBER.sub("#", measured)
        # Another processor adds in another order, and trains another model.
        for told, found in zip(NUMBER.findall(said), NUMBER.findall(measured), strict=True):
            assert isclose(float(told), float(found), rel_tol=0.3, abs_tol=5), (said, measured)


def test_the_changelog_begins_with_this_version() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert newest is not None
    assert newest[1] == __version__


PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@EACH_PAGE
def test_every_block_of_a_page_is_run(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = list(blocks(text))
    assert len(re.findall(r"^```", text, re.M)) == 2 * len(found)
    if page.name != "README.md":  # tests/test_readme.py runs those
        assert all(block.title or block.language == "console" for block in found)


@EACH_PAGE
def test_the_code_of_a_page_does_what_it_says(
    pytester: pytest.Pytester, request: pytest.FixtureRequest, page: Path
) -> None:
    """Titled blocks are files; of a console each command is run, and says what stands below it, in this order."""
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.title:
            file = pytester.path / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.code, encoding="utf-8")
        elif block.language == "console":
            for command in block.code.split("$ ")[1:]:
                asked = re.findall(r"--(evalmode[\w-]*)", command)
                if all(hasattr(request.config.option, name.replace("-", "_")) for name in asked):
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
    # A part of a line will do, and `...` is what is left out.  Of a glob, brackets are a set of characters.
    globs = [line.replace("[", "[[]").replace("...", "*") for line in expected]
    result.stdout.fnmatch_lines([f"*{glob}*" for glob in globs if glob != "*"])
