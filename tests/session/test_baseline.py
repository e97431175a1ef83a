"""Adoption with a baseline: known violations pass, new ones fail, fixed ones are reported as stale."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from tests import forked, suites

RANDOM = pytest.param(("-prandomly",), id="random")


def suite(pytester: pytest.Pytester, dirty: Collection[int], *, tests: int = 30) -> None:
    """Write files of ten tests; the `dirty` ones break a rule, every other one with the model of a session fixture."""
    for file in range(tests // 10):
        body = "".join(_test(10 * file + n, dirty) for n in range(10))
        pytester.path.joinpath(f"test_{file}.py").write_text(f"from nets import *\n{body}", encoding="utf-8")
    suites.write(
        pytester,
        conftest="from nets import *\n\n@pytest.fixture(scope='session')\ndef net():\n    return Net()\n",
    )


def _test(number: int, dirty: Collection[int]) -> str:
    model = "Net().eval()" if number not in dirty else "net" if number % 2 else "Net()"
    return f"\n@pytest.mark.inference\ndef test_{number}(net):\n    infer({model})\n"


def known(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["schema"] == 1
    table: dict[str, Any] = content["known"]
    return table


COMMANDS = ("--evalmode-baseline=known.json", "--evalmode-update-baseline")


@pytest.mark.parametrize("how", [suites.SERIALIZED, suites.XDIST, RANDOM])
def test_two_commands_turn_a_suite_green(pytester: pytest.Pytester, how: tuple[str, ...]) -> None:
    suite(pytester, range(15))
    first = suites.run(pytester, *COMMANDS, *how)
    first.assert_outcomes(passed=30)
    assert first.ret == pytest.ExitCode.OK
    table = known(pytester.path / "known.json")
    assert table.keys() == {f"test_{n // 10}.py::test_{n}" for n in range(15)}
    assert table["test_0.py::test_1"] == {"train-mode": ["net"]}
    assert table["test_0.py::test_0"] == {"train-mode": ["Net"]}
    second = suites.run(pytester, COMMANDS[0], "--evalmode-strict", *how)
    second.assert_outcomes(passed=30)
    assert second.ret == pytest.ExitCode.OK
    second.stdout.fnmatch_lines(["30 tests guarded, *: 15 violations in 15 tests, 15 known, 0 new *"])

    suite(pytester, range(1, 16))  # the first is fixed, and a sixteenth is new
    third = suites.run(pytester, COMMANDS[0], *how)
    third.assert_outcomes(failed=1, passed=29)
    third.stdout.fnmatch_lines(
        [
            "*14 known, 1 new*",
            "stale: test_0.py::test_0 no longer breaks train-mode (Net)",
            "FAILED test_1.py::test_15 - HygieneViolation: train-mode*",
        ]
    )


def test_a_stale_entry_fails_only_a_strict_run(pytester: pytest.Pytester) -> None:
    suite(pytester, [0, 1], tests=10)
    suites.run(pytester, *COMMANDS)
    suite(pytester, [1], tests=10)
    assert suites.run(pytester, COMMANDS[0]).ret == pytest.ExitCode.OK
    strict = suites.run(pytester, COMMANDS[0], "--evalmode-strict")
    strict.assert_outcomes(passed=10)
    assert strict.ret == pytest.ExitCode.TESTS_FAILED
    strict.stdout.fnmatch_lines(["stale: test_0.py::test_0 *", "*run: pytest --evalmode-update-baseline"])
    suites.run(pytester, *COMMANDS)
    assert known(pytester.path / "known.json").keys() == {"test_0.py::test_1"}
    assert suites.run(pytester, COMMANDS[0], "--evalmode-strict").ret == pytest.ExitCode.OK


def test_the_ini_names_the_file_from_the_rootdir(pytester: pytest.Pytester) -> None:
    suite(pytester, [0], tests=10)
    pytester.makeini("[pytest]\nevalmode_baseline = ci/known.json\n")
    suites.run(pytester, "--evalmode-update-baseline").assert_outcomes(passed=10)
    assert known(pytester.path / "ci" / "known.json") == {"test_0.py::test_0": {"train-mode": ["Net"]}}
    suites.run(pytester, "-q").assert_outcomes(passed=10)
    suites.run(pytester, "-k", "test_0", "--evalmode-baseline=ci/known.json").assert_outcomes(passed=10)


@suites.WORKERS
@pytest.mark.parametrize(
    ("content", "args", "message"),
    [
        (
            None,
            ["--evalmode-baseline=known.json"],
            "*known.json does not exist; to create it, run: pytest *-update-bas*",
        ),
        (
            "<<<<<<<",
            ["--evalmode-baseline=known.json"],
            "*known.json cannot be used: invalid JSON*--evalmode-update-*",
        ),
        ("<<<<<<<", [*COMMANDS], "*known.json cannot be used: invalid JSON*--evalmode-update-*"),
        (None, ["--evalmode-update-baseline"], "*--evalmode-update-baseline requires --evalmode-baseline=PATH"),
        (None, [*COMMANDS, "--evalmode=off"], "*evalmode=off guards no test*"),
        (None, ["--evalmode-baseline="], "--evalmode-baseline: cannot read or write ''"),
        (None, ["--evalmode-baseline=."], "--evalmode-baseline: cannot read or write '.'"),
    ],
)
def test_an_unusable_baseline_is_a_usage_error_with_a_fix(
    pytester: pytest.Pytester, content: str | None, args: list[str], message: str, workers: tuple[str, ...]
) -> None:
    suite(pytester, [0], tests=10)
    if content is not None:
        (pytester.path / "known.json").write_text(content, encoding="utf-8")
    result = suites.run(pytester, *args, *workers)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {message.removeprefix('ERROR: ')}"])
    if content is not None:
        assert (pytester.path / "known.json").read_text(encoding="utf-8") == content


@suites.WORKERS
def test_an_update_from_some_tests_keeps_the_entries_of_the_others(
    pytester: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    suite(pytester, range(12), tests=20)
    suites.run(pytester, *COMMANDS, *workers)
    path = pytester.path / "known.json"
    (pytester.path / "test_1.py").unlink()
    suites.run(pytester, *COMMANDS, "test_0.py", "-k", "not test_3", *workers)
    assert len(known(path)) == 12
    suites.run(pytester, *COMMANDS, *workers)
    assert len(known(path)) == 10


ODD = """
@pytest.mark.inference
@pytest.mark.xfail(strict=True)
def test_expected():
    infer(Net())

@pytest.mark.inference
def test_fails_itself(request):
    assert request.config.getoption("evalmode_update_baseline"), "own"
    infer(Net())

@pytest.mark.inference
def test_checks(evalmode):
    infer(Net())
    evalmode.check()

def test_not_guarded():
    infer(Net())
"""


@suites.WORKERS
def test_an_expected_failure_is_not_listed_and_check_uses_the_baseline(
    pytester: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    suites.write(pytester, ODD)
    path = pytester.path / "known.json"
    suites.run(pytester, *COMMANDS, *workers).assert_outcomes(passed=3, xfailed=1)
    assert known(path).keys() == {"test_it.py::test_fails_itself", "test_it.py::test_checks"}
    result = suites.run(pytester, COMMANDS[0], "--evalmode-strict", *workers)
    result.assert_outcomes(passed=2, xfailed=1, failed=1)  # test_fails_itself did not reach its known violation
    result.stdout.no_fnmatch_line("stale:*")


def test_the_entry_of_a_test_that_is_not_guarded_anymore_is_stale(pytester: pytest.Pytester) -> None:
    suite(pytester, [0], tests=10)
    suites.run(pytester, *COMMANDS)
    path = pytester.path / "test_0.py"
    path.write_text(path.read_text(encoding="utf-8").replace("@pytest.mark.inference", ""), encoding="utf-8")
    suites.run(pytester, COMMANDS[0]).stdout.fnmatch_lines(["stale: test_0.py::test_0 no longer breaks *"])
    suites.run(pytester, COMMANDS[0], "--evalmode=off").stdout.no_fnmatch_line("stale:*")


def test_a_known_violation_issues_no_warning(pytester: pytest.Pytester) -> None:
    suite(pytester, [0], tests=10)
    suites.run(pytester, *COMMANDS)
    suites.run(pytester, COMMANDS[0], "--evalmode=warn", "-W", "error").assert_outcomes(passed=10)


@pytest.mark.xdist
def test_baseline_ids_do_not_contain_xdist_groups(pytester: pytest.Pytester) -> None:
    suites.write(
        pytester, "@pytest.mark.xdist_group('gpu')\n@pytest.mark.inference\ndef test_it():\n    infer(Net())\n"
    )
    suites.run(pytester, *COMMANDS, "-n2", "--dist=loadgroup").assert_outcomes(passed=1)
    assert known(pytester.path / "known.json") == {"test_it.py::test_it": {"train-mode": ["Net"]}}
    suites.run(pytester, COMMANDS[0], "-n2", "--dist=loadgroup").assert_outcomes(passed=1)
    suites.run(pytester, COMMANDS[0]).assert_outcomes(passed=1)


HOSTILE = """
import os, shutil, sys, threading
import torch._dynamo  # a default device imports it, and torch then reads the cwd

@pytest.mark.inference
def test_replaces_stdout():
    sys.stdout = sys.stderr = None
    infer(Net())

@pytest.mark.inference
def test_leaves_a_thread():
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    infer(Net())

@pytest.mark.inference
def test_exits():
    infer(Net())
    raise SystemExit(3)

@pytest.mark.inference
def test_sets_the_device():
    infer(Net())
    torch.set_default_device("meta")

@pytest.mark.inference
def test_forks():
    infer(Net())
    if os.fork() == 0:
        pytest.exit("exit the child process")
    os.wait()

@pytest.mark.inference
def test_deletes_the_cwd(tmp_path):
    os.chdir(tmp_path)
    shutil.rmtree(tmp_path)
    infer(Net())

@pytest.mark.inference
def test_last():
    with torch.device("cpu"):
        infer(Net())
"""


@suites.WORKERS
def test_a_hostile_suite_breaks_neither_report_nor_baseline(
    pytester: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    suites.write(
        pytester,
        HOSTILE if "-n2" not in workers else HOSTILE.replace('pytest.exit("exit the child process")', "os._exit(0)"),
    )
    args = (*COMMANDS, "--evalmode-report=report.json", *suites.PLAIN, *workers)
    lines = forked.run_pytest(pytester.path, *args).stdout.splitlines()
    assert pytest.RunResult.parse_summary_nouns(lines) == {"passed": 6, "failed": 1}
    names = ("deletes_the_cwd", "replaces_stdout", "leaves_a_thread", "exits", "sets_the_device", "forks", "last")
    assert known(pytester.path / "known.json").keys() == {f"test_it.py::test_{name}" for name in names}
    report = json.loads((pytester.path / "report.json").read_text(encoding="utf-8"))
    assert len(report["tests"]) == 7
