"""How strict mode is turned on, and its checks over whole runs."""

from __future__ import annotations

import pytest

from tests.suites import json_report, outcomes, run, write

STRICT = "--evalmode-strict"

ON = {
    "nothing": ("", [], False),
    "option": ("", [STRICT], True),
    "ini": ("evalmode_strict = true", [], True),
    "ini off": ("evalmode_strict = false", [], False),
    "option above ini": ("evalmode_strict = false", [STRICT], True),
    "addopts": (f"addopts = {STRICT}", [], True),
    "-o above ini": ("evalmode_strict = true", ["-o", "evalmode_strict=false"], False),
    "off is above strict": ("evalmode_strict = true\nevalmode = off", [], False),
}


@pytest.mark.parametrize(("ini", "args", "strict"), ON.values(), ids=ON)
def test_ways_to_turn_on_strict(pytester: pytest.Pytester, ini: str, args: list[str], strict: bool) -> None:
    pytester.makeini(f"[pytest]\n{ini}\n")
    write(pytester, "@pytest.mark.inference\ndef test_it():\n    pass\n")
    assert outcomes(pytester, *args) == {"test_it.py::test_it": "failed" if strict else "passed"}


def test_the_report_says_whether_the_run_was_strict(pytester: pytest.Pytester) -> None:
    write(pytester, "@pytest.mark.inference\ndef test_it():\n    infer(Net().eval())\n")
    assert [json_report(pytester, *args)["strict"] for args in ((), (STRICT,))] == [False, True]


def test_a_test_that_did_not_finish_needs_no_forward(pytester: pytest.Pytester) -> None:
    marked = "@pytest.mark.inference(train='drop')\ndef test_{0}():\n    pytest.{0}('so')\n"
    write(pytester, "".join(marked.format(how) for how in ("skip", "fail", "xfail")))
    assert [t["violations"] for t in json_report(pytester, STRICT)["tests"]] == [[], [], []]


def test_no_forward_applies_to_marked_tests_only(pytester: pytest.Pytester) -> None:
    write(pytester, "def test_asks(evalmode):\n    pass\n\ndef test_unmarked():\n    pass\n")
    assert set(outcomes(pytester, STRICT).values()) == {"passed"}


def test_an_unused_exemption_of_no_forward_is_reported(pytester: pytest.Pytester) -> None:
    marked = "@pytest.mark.inference(allow='no-forward')\n"
    write(pytester, f"{marked}def test_needs():\n    pass\n\n{marked}def test_not():\n    infer(Net().eval())\n")
    violations = {t["nodeid"].partition("::")[2]: t["violations"] for t in json_report(pytester, STRICT)["tests"]}
    assert violations["test_needs"] == []
    assert [v["rule"] for v in violations["test_not"]] == ["unused-exemption"]


# --- exemptions of the ini

INI = '[pytest]\nevalmode_train = drop "no.such.*"\nevalmode_mutable = cache\nevalmode_allow = partial-load grad-mode\n'
SUITE = """
@pytest.mark.inference
def test_drops():
    net = Net().eval()
    net.drop.train()
    infer(net)

@pytest.mark.inference
def test_grad():
    Net().eval()(torch.ones(2, 4))
"""
UNUSED = ['allow="partial-load"', 'train="no.such.*"', 'mutable="cache"']


def unused(result: pytest.RunResult) -> list[str]:
    """Return the unused exemptions of the ini from the summary."""
    lines = [line for line in result.outlines if line.startswith("unused-exemption: no test needed ")]
    return [line.split(" needed ")[1].partition(" from the ini")[0] for line in lines]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([STRICT], UNUSED),
        pytest.param([STRICT, "-n2"], UNUSED, marks=pytest.mark.xdist),
        ([], []),
        ([STRICT, "-k", "drops"], []),
        ([STRICT, "-m", "inference"], []),
        ([STRICT, "test_it.py"], []),
        ([STRICT, "test_it.py::test_drops"], []),
        ([STRICT, "--deselect", "test_it.py::test_grad"], []),
        ([STRICT, "--ignore", "test_more.py"], []),
        ([STRICT, "--ignore-glob", "*_more.py"], []),
        ([STRICT, "-x"], []),
        ([STRICT, "--evalmode=off"], []),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("-") else "",
)
def test_unused_exemptions_of_the_ini_are_reported_for_whole_suites_only(
    pytester: pytest.Pytester, args: list[str], expected: list[str]
) -> None:
    pytester.makeini(INI)
    write(pytester, SUITE, test_more="from nets import *\n" + SUITE.replace("def test_", "def test_more_"))
    result = run(pytester, *args)
    assert unused(result) == expected
    assert result.ret == 0


def test_lf_does_not_run_the_whole_suite(pytester: pytest.Pytester) -> None:
    pytester.makeini(INI)
    write(pytester, SUITE + "\n@pytest.mark.inference\ndef test_no_forward():\n    pass\n")
    assert unused(run(pytester, STRICT)) == UNUSED
    assert unused(run(pytester, STRICT, "--lf")) == []


@pytest.mark.parametrize("broken", ["import no_such_module", "def test_z():\n    pytest.exit('enough')"])
def test_an_interrupted_run_is_not_the_whole_suite(pytester: pytest.Pytester, broken: str) -> None:
    pytester.makeini(INI)
    write(pytester, SUITE, test_later=f"import pytest\n{broken}")
    assert unused(run(pytester, STRICT)) == []


def test_a_run_in_a_subfolder_is_not_the_whole_suite(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makeini(INI)
    write(pytester)
    folder = pytester.mkdir("folder")
    (folder / "test_it.py").write_text(f"from nets import *\n{SUITE}", encoding="utf-8")
    monkeypatch.syspath_prepend(pytester.path)
    assert unused(run(pytester, STRICT)) == UNUSED
    monkeypatch.chdir(folder)
    assert unused(run(pytester, STRICT)) == []
