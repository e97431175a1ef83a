"""`--evalmode-suggest`, `--evalmode-all` and `no_inference_guard`: which tests are guarded, and which should be."""

from __future__ import annotations

import pytest

from tests import suites

DIRTY = """
@pytest.fixture(scope="session")
def net():
    return Net()

def test_training_mode(net):
    infer(net)

@pytest.mark.parametrize("n", [1, 2])
def test_eval_with_autograd(n):
    Net().eval()(torch.ones(2, 4))

class TestIt:
    def test_clean(self):
        infer(Net().eval())

def test_no_model():
    nn.ReLU()(torch.ones(2))

@pytest.mark.inference
def test_marked(net):
    infer(net)

@pytest.mark.no_inference_guard
def test_left_out(net):
    infer(net)
"""

TRAINING = """
def test_trains_and_infers():
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    infer(net.eval())

def test_trains_by_hand():
    Net()(torch.ones(2, 4)).sum().backward()

def test_another_model_is_trained():
    net = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    infer(Net().eval())
"""


def section(result: pytest.RunResult) -> list[str]:
    """Return the lines of the suggestions."""
    lines = [line.rstrip() for line in result.outlines]
    begin = next(n for n, line in enumerate(lines) if "unmarked test" in line)
    end = next(n for n, line in enumerate(lines) if n > begin and line.startswith("="))
    return lines[begin:end]


@suites.WORKERS
def test_unmarked_inference_is_listed_worst_first_and_no_test_fails(
    pytester: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    suites.write(pytester, DIRTY, test_train=f"from nets import *\n{TRAINING}")
    pytester.makeini("[pytest]\n")
    result = suites.run(pytester, "--evalmode-suggest", *workers)
    assert result.ret == pytest.ExitCode.OK
    assert section(result) == [
        "5 unmarked tests ran inference; 3 would fail if guarded:",
        "  test_it.py::test_eval_with_autograd (2 cases)  grad-mode  Net",
        "  test_it.py::test_training_mode  train-mode  net (Net)",
        "  test_it.py::TestIt::test_clean  clean  Net",
        "  test_train.py::test_another_model_is_trained  clean  Net",
        "to guard them, add to the configuration:",
        "  evalmode_mark =",
        "      test_it.py",
        "and add @pytest.mark.inference to these tests (other tests in their files train):",
        "  test_train.py::test_another_model_is_trained",
    ]


def test_the_suggestion_can_be_pasted(pytester: pytest.Pytester) -> None:
    for folder in ("tests/api", "tests/unit"):
        pytester.path.joinpath(folder).mkdir(parents=True)
        for name in ("a", "b"):
            path = pytester.path / folder / f"test_{folder[6:]}_{name}.py"
            path.write_text("from nets import *\ndef test_it():\n    infer(Net().eval())\n", encoding="utf-8")
    suites.write(pytester)
    pytester.makepyprojecttoml('[tool.pytest.ini_options]\npythonpath = ["."]\n')
    pasted = [line.removeprefix("  ") for line in section(suites.run(pytester, "--evalmode-suggest"))[-3:]]
    assert pasted == ["evalmode_mark = [", '    "tests",', "]"]
    toml = '[tool.pytest.ini_options]\npythonpath = ["."]\n' + "\n".join(pasted)
    pytester.path.joinpath("pyproject.toml").write_text(toml, encoding="utf-8")
    suites.run(pytester).stdout.fnmatch_lines(["evalmode: guarded: tests", "4 tests guarded, *: all clean*"])


def test_nothing_is_suggested_if_no_test_ran_inference(pytester: pytest.Pytester) -> None:
    suites.write(pytester, TRAINING.partition("def test_another")[0])
    suites.run(pytester, "--evalmode-suggest").stdout.fnmatch_lines(["no unmarked test ran inference"])
    suites.run(pytester).stdout.no_fnmatch_line("*unmarked*")


@pytest.mark.parametrize(
    ("marker", "args", "guarded"),
    [
        ("inference", ["--evalmode-all"], {"training_mode", "no_model", "clean", "marked"}),
        ("inference", ["-o", "evalmode_mark=."], {"training_mode", "no_model", "clean", "marked"}),
        ("inference", [], {"marked"}),
        ("clean", ["--evalmode-all", "-o", "evalmode_marker=clean"], {"training_mode", "no_model", "clean", "marked"}),
        ("inference", ["--evalmode-all", "--evalmode=off"], set()),
    ],
)
def test_no_guard_marker_excludes_a_test_from_all_and_mark(
    pytester: pytest.Pytester, marker: str, args: list[str], guarded: set[str]
) -> None:
    source = DIRTY.replace("mark.inference", f"mark.{marker}").replace("no_inference", f"no_{marker}")
    suites.write(pytester, source)
    report = suites.json_report(pytester, "--strict-markers", *args)
    names = {test["nodeid"].rpartition("test_")[2].partition("[")[0] for test in report["tests"]}
    assert names - {"eval_with_autograd"} == guarded


BROKEN = """
import pytest_evalmode.observe.models.registry as registry

@pytest.fixture
def broken(monkeypatch):
    def fail(*args):
        raise ZeroDivisionError("the guard is broken")

    monkeypatch.setattr(registry.Registry, "find_owners", fail)

def train(net):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(torch.ones(2, 4)).sum().backward()
    optimizer.step()

def test_trains(broken):
    train(Net())
    infer(Net().eval())
"""


@pytest.mark.parametrize("args", [suites.SERIALIZED, suites.XDIST_AGAIN, ("--evalmode-html=page.html",)])
def test_a_test_whose_guard_failed_is_not_called_clean(pytester: pytest.Pytester, args: tuple[str, ...]) -> None:
    suites.write(pytester, BROKEN)
    result = suites.run(pytester, "--evalmode-suggest", *args)
    assert result.ret == pytest.ExitCode.OK
    assert section(result)[:2] == [
        "the guard failed in 1 unmarked test: result unknown",
        "  test_it.py::test_trains  ZeroDivisionError('the guard is broken')",
    ]
    result.stdout.no_fnmatch_line("*ran inference; *would fail*")
    result.stdout.no_fnmatch_line("no unmarked test ran inference")
    if "html" in "".join(args):
        page = (pytester.path / "page.html").read_text(encoding="utf-8")
        assert "The guard failed in 1 unmarked test:" in page
        assert "ZeroDivisionError(&#39;the guard is broken&#39;)" in page


def test_a_guard_failure_in_an_optimizer_step_is_an_error_of_a_marked_test(pytester: pytest.Pytester) -> None:
    suites.write(pytester, BROKEN.replace("def test_", "@pytest.mark.inference\ndef test_"))
    result = suites.run(pytester)
    result.assert_outcomes(failed=1, errors=1)
    result.stdout.fnmatch_lines(["*internal error: ZeroDivisionError*"])


def test_the_inference_mark_overrides_no_inference_guard(pytester: pytest.Pytester) -> None:
    suites.write(
        pytester, "@pytest.mark.no_inference_guard\n@pytest.mark.inference\ndef test_it():\n    infer(Net())\n"
    )
    suites.run(pytester).assert_outcomes(failed=1)
