"""The plugin together with other features of pytest and with other plugins."""

from __future__ import annotations

import pytest

from tests import suites

VIOLATION = """
@pytest.mark.inference
def test_violation():
    infer(Net())

@pytest.mark.inference
def test_clean():
    infer(Net().eval())
"""


def rules(pytester: pytest.Pytester, *args: str) -> dict[str, list[str]]:
    """Return the rules that each guarded test broke, by the name of the test."""
    tests = suites.json_report(pytester, *args)["tests"]
    return {test["nodeid"].rpartition("::")[2]: [v["rule"] for v in test["violations"]] for test in tests}


def test_the_fixture_has_a_description(pytester: pytest.Pytester) -> None:
    suites.run(pytester, "--fixtures").stdout.fnmatch_lines(["evalmode -- *", "*The guard of this test*"])


@pytest.mark.parametrize("args", ["--collect-only", "--setup-only", "--setup-plan"])
def test_tests_that_are_not_called_are_not_guarded(pytester: pytest.Pytester, args: str) -> None:
    suites.write(pytester, VIOLATION)
    assert rules(pytester, args) == {}


def test_a_rerun_has_a_new_guard(pytester: pytest.Pytester) -> None:
    suites.write(
        pytester,
        """
RUNS = []

@pytest.fixture(scope="module")
def net():
    return Net().eval()

@pytest.mark.inference
def test_changes_once(net):
    RUNS.append(1)
    infer(net)
    if len(RUNS) == 1:
        net.fc.bias.data.add_(1)
""",
    )
    assert set(suites.outcomes(pytester, "--reruns=1").values()) == {"passed"}
    assert rules(pytester, "--reruns=1") == {"test_changes_once": []}


def test_a_rerun_that_does_not_request_the_fixture_is_not_guarded(pytester: pytest.Pytester) -> None:
    suites.write(
        pytester,
        """
RUNS = []

def test_it(request):
    RUNS.append(1)
    if len(RUNS) == 1:
        request.getfixturevalue("evalmode")
    infer(Net())
""",
    )
    assert set(suites.outcomes(pytester, "--reruns=1").values()) == {"passed"}
    assert rules(pytester, "--reruns=1") == {}


def test_a_test_that_runs_pytest_itself_is_guarded(pytester: pytest.Pytester) -> None:
    suites.write(
        pytester,
        inner="from nets import *\n" + VIOLATION,
        test_outer="""
            from nets import *

            @pytest.mark.inference
            def test_outer():
                net = Net().eval()
                infer(net)
                assert pytest.main(["-q", "-p", "no:randomly", "inner.py", "-W", "default"]) == 1
                infer(net)

            @pytest.mark.inference
            def test_next():
                infer(Net())
        """,
    )
    broken = rules(pytester, "test_outer.py")
    assert broken["test_next"] == ["train-mode"]
    assert suites.outcomes(pytester, "test_outer.py")["test_outer.py::test_next"] == "failed"


def test_items_of_other_kinds_are_guarded_by_their_path(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nevalmode_mark = *")
    suites.write(
        pytester,
        conftest="""
            import pytest

            class File(pytest.File):
                def collect(self):
                    yield Item.from_parent(self, name="item")

            class Item(pytest.Item):
                def runtest(self):
                    import nets
                    nets.infer(nets.Net())

            def pytest_collect_file(file_path, parent):
                return File.from_parent(parent, path=file_path) if file_path.suffix == ".net" else None
        """,
        documented='''
            """
            >>> import nets
            >>> nets.infer(nets.Net()).shape
            torch.Size([2, 4])
            """
        ''',
    )
    (pytester.path / "a.net").write_text("")
    outcomes = suites.outcomes(pytester, "--doctest-modules")
    assert outcomes == {"a.net::item": "failed", "documented.py::documented": "failed"}
    assert set(suites.outcomes(pytester, "--doctest-modules", "--evalmode=off").values()) == {"passed"}


def test_maxfail_counts_a_violation(pytester: pytest.Pytester) -> None:
    suites.write(pytester, VIOLATION)
    result = suites.run(pytester, "--maxfail=1")
    result.assert_outcomes(failed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_exit_codes_are_pytests_own(pytester: pytest.Pytester) -> None:
    suites.write(pytester, VIOLATION)
    assert suites.run(pytester).ret == pytest.ExitCode.TESTS_FAILED
    assert suites.run(pytester, "-k", "clean").ret == pytest.ExitCode.OK
    assert suites.run(pytester, "-k", "no_such").ret == pytest.ExitCode.NO_TESTS_COLLECTED


# --- other plugins


@pytest.mark.parametrize("seed", [1, 2])
def test_with_pytest_randomly(pytester: pytest.Pytester, seed: int) -> None:
    pytest.importorskip("pytest_randomly")
    suites.write(
        pytester,
        """
@pytest.fixture(scope="module")
def net():
    return Net()

@pytest.mark.inference
@pytest.mark.parametrize("n", range(5))
def test_clean(net, n):
    infer(net.eval())

@pytest.mark.inference
@pytest.mark.parametrize("n", range(5))
def test_violation(net, n):
    infer(net.train())
""",
    )
    args = ("-o", "asyncio_default_fixture_loop_scope=function", "-W", "default", f"--randomly-seed={seed}")
    result = pytester.runpytest_inprocess(*args, "-rA")
    result.assert_outcomes(passed=5, failed=5)
    result.stdout.fnmatch_lines([f"Using --randomly-seed={seed}"])
    assert not [line for line in result.outlines if line.startswith("FAILED") and "test_violation[" not in line]


def test_with_pytest_torch(pytester: pytest.Pytester) -> None:
    pytest.importorskip("pytest_torch")
    suites.write(
        pytester,
        """
from pytest_torch.contract import check_inference_contract

X = torch.ones(2, 4)

@pytest.fixture
def net():
    return Net()

@pytest.mark.inference
def test_contract_kept(net):
    check_inference_contract(net.eval(), X)

@pytest.mark.inference
def test_contract_broken(net):
    check_inference_contract(net, X)

@pytest.mark.inference
@pytest.mark.torch_deterministic
def test_violation(net):
    infer(net)

@pytest.mark.inference
@pytest.mark.torch_deterministic
def test_clean(net):
    infer(net.eval())

@pytest.mark.torch_deterministic
def test_unmarked(net):
    infer(net)
""",
    )
    result = suites.run(pytester, "-ppytest_torch", "-rA")
    result.stdout.fnmatch_lines(["pytest-torch: torch *", "*= evalmode =*"])
    result.stdout.fnmatch_lines_random(
        [
            "PASSED test_it.py::test_contract_kept",
            "FAILED test_it.py::test_contract_broken*",
            "FAILED test_it.py::test_violation - HygieneViolation: train-mode*",
            "PASSED test_it.py::test_clean",
            "PASSED test_it.py::test_unmarked",
        ]
    )


def test_with_monkeypatch_and_capture(pytester: pytest.Pytester) -> None:
    suites.write(
        pytester,
        """
@pytest.mark.inference
def test_it(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Net, "forward", lambda self, x: self.fc(x))
    print("output")
    infer(Net())
    assert capsys.readouterr().out == "output\\n"
""",
    )
    result = suites.run(pytester)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*train-mode: Net ran once*", "*nets.py:*return net(torch.ones(2, 4))*"])
