"""The JSON report, the summary and JUnit XML of a session: alone, under xdist and with reruns."""

from __future__ import annotations

import json
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

import pytest_evalmode
from tests import suites

SUITE = """
@pytest.fixture(scope="module")
def net():
    return Net()

@pytest.mark.inference(reason="a known fault")
def test_fault(net):
    net.train()  # the switch
    for _ in range(3):
        net(torch.ones(2, 4))  # the call

@pytest.mark.inference
def test_clean(net):
    infer(net.eval())

@pytest.mark.inference
def test_nothing():
    pass

def test_not_guarded(net):
    infer(net.train())
"""

KEYS = {"schema", "evalmode", "torch", "mode", "strict", "totals", "tests"}
TOTALS_KEYS = {"tests", "violated", "models", "forwards", "seconds"}
TEST_KEYS = {"nodeid", "outcome", "reason", "forwards", "seconds", "models", "violations"}
MODEL_KEYS = {"name", "type", "tensors", "bytes", "forwards"}
VIOLATION_KEYS = {"rule", "model", "subjects", "message", "remedy", "at", "cause", "count", "details"}


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    suites.write(pytester, SUITE)
    return pytester


def by_name(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    names = [test["nodeid"].rpartition("::test_")[2] for test in report["tests"]]
    assert len(names) == len(set(names))
    return dict(zip(names, report["tests"], strict=True))


def timeless(value: Any) -> Any:
    """Return a report without the values that differ from run to run."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key != "seconds"}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def in_order(report: dict[str, Any]) -> Any:
    return timeless({**report, "tests": sorted(report["tests"], key=lambda test: str(test["nodeid"]))})


def test_the_report_has_the_keys_of_the_contract(suite: pytest.Pytester) -> None:
    report = suites.json_report(suite)
    assert report.keys() == KEYS
    assert report["totals"].keys() == TOTALS_KEYS
    tests = by_name(report)
    assert {key for test in tests.values() for key in test} == TEST_KEYS
    assert all(test.keys() == TEST_KEYS for test in tests.values())
    (model,) = tests["fault"]["models"]
    assert model.keys() == MODEL_KEYS
    assert all(violation.keys() == VIOLATION_KEYS for violation in tests["fault"]["violations"])


def test_the_report_has_the_values_of_a_known_fault(suite: pytest.Pytester) -> None:
    report = suites.json_report(suite)
    assert (report["schema"], report["mode"], report["strict"]) == (1, "enforce", False)
    assert report["evalmode"] == pytest_evalmode.__version__
    assert torch.__version__.startswith(report["torch"])
    assert timeless(report["totals"]) == {"tests": 3, "violated": 1, "models": 1, "forwards": 4}
    tests = by_name(report)
    assert tests.keys() == {"fault", "clean", "nothing"}

    model = {"name": "net", "type": "Net", "tensors": 2, "bytes": 4 * (16 + 4)}
    fault = tests["fault"]
    assert fault["nodeid"] == "test_it.py::test_fault"
    assert (fault["outcome"], fault["reason"], fault["forwards"]) == ("failed", "a known fault", 3)
    assert fault["models"] == [{**model, "forwards": 3}]
    training, recording = fault["violations"]
    lines = (suite.path / "test_it.py").read_text(encoding="utf-8").splitlines()
    switch, call = (next(n for n, text in enumerate(lines, 1) if part in text) for part in ("the switch", "the call"))
    fixture = {"fixture": "net", "fixture_at": "test_it.py:4"}
    assert training == {
        "rule": "train-mode",
        "model": "net",
        "subjects": ["net.drop (Dropout)"],
        "message": "net (Net) ran 3 times in training mode",
        "remedy": "if the test needs training mode, wrap that part in `with evalmode.paused():`; "
        f"otherwise call net.eval() after test_it.py:{switch}",
        "at": f"test_it.py:{call}",
        "cause": "nets.py:15",
        "count": 3,
        "details": {"since": f"test_it.py:{switch}", **fixture},
    }
    assert (recording["rule"], recording["count"], recording["at"]) == ("grad-mode", 3, f"test_it.py:{call}")

    clean = tests["clean"]
    assert (clean["outcome"], clean["reason"], clean["violations"]) == ("passed", None, [])
    assert clean["models"] == [{**model, "forwards": 1}]
    assert timeless(tests["nothing"]) == {
        "nodeid": "test_it.py::test_nothing",
        "outcome": "passed",
        "reason": None,
        "forwards": 0,
        "models": [],
        "violations": [],
    }


def test_the_seconds_of_the_tests_add_up(suite: pytest.Pytester) -> None:
    report = suites.json_report(suite)
    seconds = [test["seconds"] for test in report["tests"]]
    assert all(isinstance(second, float) and second >= 0 for second in seconds)
    assert report["totals"]["seconds"] == pytest.approx(sum(seconds), abs=1e-5)


@pytest.mark.parametrize("how", ["--reruns=1", pytest.param("-n2 --reruns=1", marks=pytest.mark.xdist)])
def test_the_report_is_the_same_with_reruns_and_xdist(suite: pytest.Pytester, how: str) -> None:
    alone = in_order(suites.json_report(suite))
    assert in_order(suites.json_report(suite, *how.split())) == alone


def test_the_last_run_of_a_test_counts(pytester: pytest.Pytester) -> None:
    suites.write(
        pytester,
        """
RUNS = []

@pytest.mark.inference
def test_flaky():
    RUNS.append(1)
    net = Net().train(len(RUNS) == 1)
    for _ in RUNS:
        infer(net)

@pytest.mark.inference
def test_always():
    infer(Net())

@pytest.mark.inference
def test_never_again():
    infer(Net().eval())
    assert len(RUNS) == 5, "own"
""",
    )
    report = suites.json_report(pytester, "--reruns=2")
    assert timeless(report["totals"]) == {"tests": 3, "violated": 1, "models": 1, "forwards": 4}
    results = {name: (t["outcome"], t["forwards"], len(t["violations"])) for name, t in by_name(report).items()}
    assert results == {"flaky": ("passed", 2, 0), "always": ("failed", 1, 1), "never_again": ("failed", 1, 0)}


OUTCOMES = """
@pytest.fixture
def failing_teardown():
    yield
    raise ValueError("own")

@pytest.fixture
def failing_setup():
    raise ValueError("own")

@pytest.mark.inference
def test_passed():
    infer(Net().eval())

@pytest.mark.inference
def test_failed():
    infer(Net())

@pytest.mark.inference
def test_failed_itself():
    assert not infer(Net().eval()).shape, "own"

@pytest.mark.inference
def test_skipped():
    infer(Net())
    pytest.skip("no data")

@pytest.mark.inference
@pytest.mark.xfail
def test_xfailed():
    infer(Net())

@pytest.mark.inference
@pytest.mark.xfail
def test_xpassed():
    infer(Net().eval())

@pytest.mark.inference
def test_error(failing_teardown):
    infer(Net())

@pytest.mark.inference
def test_error_in_set_up(failing_setup):
    infer(Net())

@pytest.mark.inference
@pytest.mark.skip
def test_never_ran():
    infer(Net())
"""


@suites.WORKERS
def test_outcomes_are_those_of_pytest(pytester: pytest.Pytester, workers: tuple[str, ...]) -> None:
    suites.write(pytester, OUTCOMES)
    tests = by_name(suites.json_report(pytester, *workers))
    ran = {name: test["outcome"] for name, test in tests.items() if test["forwards"]}
    assert ran == {
        "passed": "passed",
        "failed": "failed",
        "failed_itself": "failed",
        "skipped": "skipped",
        "xfailed": "xfailed",
        "xpassed": "xpassed",
        "error": "error",
    }
    assert {name: len(tests[name]["violations"]) for name in ran} == {
        "passed": 0,
        "failed": 1,
        "failed_itself": 0,
        "skipped": 1,
        "xfailed": 1,
        "xpassed": 0,
        "error": 1,
    }


@pytest.mark.parametrize("mode", ["enforce", "warn", "off"])
def test_the_report_has_the_mode(suite: pytest.Pytester, mode: str) -> None:
    report = suites.json_report(suite, f"--evalmode={mode}")
    assert report["mode"] == mode
    assert report["totals"]["tests"] == len(report["tests"]) == (0 if mode == "off" else 3)
    if mode == "warn":
        fault = by_name(report)["fault"]
        assert (fault["outcome"], [v["rule"] for v in fault["violations"]]) == ("passed", ["train-mode", "grad-mode"])


def test_a_run_without_guarded_tests_writes_a_report(pytester: pytest.Pytester) -> None:
    suites.write(pytester, "def test_it():\n    infer(Net())\n")
    report = suites.json_report(pytester)
    assert report.keys() == KEYS
    assert (report["totals"], report["tests"]) == (
        {"tests": 0, "violated": 0, "models": 0, "forwards": 0, "seconds": 0},
        [],
    )


def test_the_folder_is_created_and_an_older_report_is_replaced(suite: pytest.Pytester) -> None:
    path = suite.path / "some" / "folder" / "report.json"
    for _ in range(2):
        suites.run(suite, f"--evalmode-report={path}")
        assert len(json.loads(path.read_text(encoding="utf-8"))["tests"]) == 3


def test_a_report_that_cannot_be_written_hides_no_result(suite: pytest.Pytester) -> None:
    (suite.path / "conftest.py").write_text(
        "def pytest_runtest_teardown(item):\n    (item.config.rootpath / 'report.json').mkdir()\n", encoding="utf-8"
    )
    result = suites.run(suite, "--evalmode-report=report.json", "-k", "clean")
    result.assert_outcomes(passed=1, deselected=3)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(["--evalmode-report: *report.json could not be written: Is a directory"])


def test_non_ascii_names_are_not_escaped(pytester: pytest.Pytester) -> None:
    suites.write(pytester, "@pytest.mark.inference(reason='größer')\ndef test_ä():\n    infer(Net().eval())\n")
    (test,) = suites.json_report(pytester)["tests"]
    assert (test["nodeid"], test["reason"]) == ("test_it.py::test_ä", "größer")
    assert "größer" in (pytester.path / "report.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("how", [suites.SERIALIZED, suites.XDIST_AGAIN, ("--reruns=1",)])
def test_junit_xml_contains_the_record_once(suite: pytest.Pytester, how: tuple[str, ...]) -> None:
    suites.run(suite, "--junit-xml=junit.xml", *how)
    cases = {case.get("name"): case for case in ElementTree.parse(suite.path / "junit.xml").iter("testcase")}
    records = {
        name: [json.loads(p.get("value", "")) for p in case.iter("property") if p.get("name") == "evalmode"]
        for name, case in cases.items()
    }
    assert {name: len(values) for name, values in records.items()} == {
        "test_fault": 1,
        "test_clean": 1,
        "test_nothing": 1,
        "test_not_guarded": 0,
    }
    (fault,) = records["test_fault"]
    assert fault["reason"] == "a known fault"
    assert [violation["rule"] for violation in fault["violations"]] == ["train-mode", "grad-mode"]


def test_a_property_that_the_test_records_is_kept(pytester: pytest.Pytester) -> None:
    suites.write(
        pytester,
        """
@pytest.mark.inference
def test_it(record_property):
    record_property("accuracy", 0.93)
    infer(Net().eval())
""",
    )
    suites.run(pytester, "--junit-xml=junit.xml")
    names = [p.get("name") for p in ElementTree.parse(pytester.path / "junit.xml").iter("property")]
    assert sorted(filter(None, names)) == ["accuracy", "evalmode"]


# --- the summary


def section(result: pytest.RunResult) -> list[str]:
    """Return the lines of the section `evalmode`, which occurs at most once."""
    titles = [n for n, line in enumerate(result.outlines) if line.strip("= ") == "evalmode" and line.startswith("=")]
    assert len(titles) <= 1
    lines: list[str] = []
    for line in result.outlines[titles[0] + 1 :] if titles else []:
        if line.startswith("="):
            break
        lines += [line] if line else []
    return lines


@suites.WORKERS
def test_the_summary_counts(suite: pytest.Pytester, workers: tuple[str, ...]) -> None:
    line, *_ = section(suites.run(suite, "-k", "fault or nothing or not_guarded", *workers))
    assert line.startswith("2 tests guarded, 1 model, 3 forwards: 2 violations in 1 test")
    assert " s)" in line


def test_the_summary_of_a_clean_run_is_one_line(suite: pytest.Pytester) -> None:
    (line,) = section(suites.run(suite, "-k", "clean"))
    assert line.startswith("1 test guarded, 1 model, 1 forward: all clean")


def test_the_summary_comes_last(suite: pytest.Pytester) -> None:
    lines = suites.run(suite, "-rN").outlines
    titles = [line.strip("= ") for line in lines if line.startswith("==")]
    assert titles.index("evalmode") > titles.index("FAILURES")
    assert titles[-2] == "evalmode"


@pytest.mark.parametrize("args", ["-k not_guarded", "--evalmode=off", "--collect-only", "-k no_such_test"])
def test_without_a_guarded_test_there_is_no_summary(suite: pytest.Pytester, args: str) -> None:
    assert section(suites.run(suite, *args.split())) == []


def test_the_summary_lists_the_exemptions_in_use_with_their_reasons(pytester: pytest.Pytester) -> None:
    suites.write(
        pytester,
        """
@pytest.mark.inference(train=["drop", "fc"], reason="Monte Carlo")
@pytest.mark.parametrize("n", range(2))
def test_sampling(n):
    infer(Net())

@pytest.mark.inference(allow="grad-mode")
def test_gradient():
    Net().eval()(torch.ones(2, 4))

@pytest.mark.inference(reason="only a reason")
def test_without():
    infer(Net().eval())
""",
    )
    first, *exemptions = section(suites.run(pytester))
    assert first.startswith("4 tests guarded, ")
    assert first.partition(": ")[2].startswith("all clean")
    sampling, gradient = sorted(exemptions, key=lambda line: "grad-mode" in line)
    assert [word for word in ("2 tests", "drop", "fc", "Monte Carlo") if word not in sampling] == []
    assert [word for word in ("1 test", "grad-mode") if word not in gradient] == []
    assert "only a reason" not in "".join(exemptions)


def test_a_test_whose_guard_failed_is_never_called_clean(pytester: pytest.Pytester) -> None:
    suites.write(
        pytester,
        """
import pytest_evalmode.observe.state.snapshot as state

@pytest.mark.inference
def test_it(monkeypatch):
    monkeypatch.setattr(state, "fingerprint_of", None)
    infer(Net().eval())
""",
    )
    (test,) = suites.json_report(pytester)["tests"]
    assert test["outcome"] == "error"
    assert "all clean" not in "".join(section(suites.run(pytester)))
