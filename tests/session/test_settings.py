"""Command line and ini: each option takes effect, the command line over the ini, and a bad value is a usage error."""

from __future__ import annotations

import pytest

from tests import suites

VIOLATION = """
@pytest.mark.inference
def test_violation():
    infer(Net())
"""


@pytest.fixture(params=["alone", "xdist"])
def workers(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The same in one process and under xdist."""
    return ("-n2",) if request.param == "xdist" else ()


def ini(pytester: pytest.Pytester, *lines: str) -> None:
    pytester.makeini("\n".join(["[pytest]", *lines]))


OUTCOMES = {"enforce": {"failed": 1}, "warn": {"passed": 1, "warnings": 1}, "off": {"passed": 1}}


@pytest.mark.parametrize(
    ("lines", "args", "mode"),
    [
        ([], [], "enforce"),
        (["evalmode = warn"], [], "warn"),
        (["evalmode = off"], [], "off"),
        (["evalmode ="], [], "enforce"),
        ([], ["--evalmode=warn"], "warn"),
        ([], ["--evalmode", "off"], "off"),
        (["evalmode = off"], ["--evalmode=enforce"], "enforce"),
        (["evalmode = enforce"], ["--evalmode=warn"], "warn"),
        (["evalmode = warn"], ["-o", "evalmode=off"], "off"),
        (["evalmode = off"], ["-o", "evalmode=off", "--evalmode=warn"], "warn"),
        (["addopts = --evalmode=off"], [], "off"),
        (["addopts = --evalmode=warn"], ["--evalmode=enforce"], "enforce"),
        (["addopts = --evalmode=warn", "evalmode = off"], [], "warn"),
        (["addopts = --evalmode=warn", "evalmode = off"], ["--evalmode=enforce"], "enforce"),
    ],
)
def test_precedence_of_the_mode(pytester: pytest.Pytester, lines: list[str], args: list[str], mode: str) -> None:
    suites.write(pytester, VIOLATION)
    ini(pytester, *lines)
    suites.run(pytester, *args).assert_outcomes(**OUTCOMES[mode])


@pytest.mark.parametrize(
    ("lines", "args", "mode"),
    [
        (["addopts = --evalmode=warn", "evalmode = off"], [], "warn"),
        (["evalmode = warn"], ["-o", "evalmode=off"], "off"),
    ],
)
def test_workers_know_the_mode(pytester: pytest.Pytester, lines: list[str], args: list[str], mode: str) -> None:
    suites.write(pytester, VIOLATION)
    ini(pytester, *lines)
    suites.run(pytester, "-n1", *args).assert_outcomes(**OUTCOMES[mode])


def test_warn_warns_with_all_that_enforce_would_say(pytester: pytest.Pytester) -> None:
    suites.write(pytester, VIOLATION)
    suites.run(pytester, "--evalmode=warn").stdout.fnmatch_lines(
        [
            "*warnings summary*",
            "*test_it.py:*: EvalModeWarning: train-mode: Net ran once in training mode*",
            "*fix: call model.eval() before the first forward*",
        ]
    )


def test_a_warning_that_is_an_error_fails_the_test(pytester: pytest.Pytester) -> None:
    suites.write(pytester, VIOLATION)
    result = suites.run(pytester, "--evalmode=warn", "-W", "error::pytest_evalmode.EvalModeWarning")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*EvalModeWarning: train-mode: Net ran once in training mode*"])
    assert suites.plugin_lines(result) == []
    assert result.stdout.str().count("fix: call model.eval()") == 1


def test_warn_lets_check_pass_and_warns_all_the_same(pytester: pytest.Pytester) -> None:
    suites.write(
        pytester, "def test_checks(evalmode):\n    infer(Net())\n    evalmode.check()\n    assert evalmode.violations\n"
    )
    suites.run(pytester, "--evalmode=warn").assert_outcomes(passed=1, warnings=1)
    suites.run(pytester).assert_outcomes(failed=1)


def test_warn_says_nothing_of_a_clean_test(pytester: pytest.Pytester) -> None:
    suites.write(pytester, VIOLATION.replace("Net()", "Net().eval()"))
    suites.run(pytester, "--evalmode=warn", "-W", "error").assert_outcomes(passed=1)


def test_off_is_above_every_way_to_ask(pytester: pytest.Pytester) -> None:
    suites.write(
        pytester,
        """
        @pytest.mark.inference(allow="no such rule")
        def test_marked():
            infer(Net())

        def test_by_path():
            infer(Net())

        def test_by_fixture(evalmode):
            infer(evalmode.watch(Net()))
        """.replace("\n        ", "\n"),
    )
    ini(pytester, "evalmode_mark = *")
    result = suites.run(pytester, "--evalmode=off")
    result.assert_outcomes(passed=3)
    result.stdout.no_fnmatch_line("*= evalmode =*")


# The ini keys but for the mode.  Each with a test that it touches and a look-alike that it does not.


@pytest.mark.parametrize(
    ("globs", "guarded"),
    [
        ("", set()),
        ("path/eval", {"test_a", "test_c"}),
        ("path/eval/", {"test_a", "test_c"}),
        ("./path/eval", {"test_a", "test_c"}),
        ("path/evaluation/../eval/.", {"test_a", "test_c"}),
        (".", {"test_a", "test_b", "test_c"}),
        ("path/eval/*.py", {"test_a", "test_c"}),
        ("path/*/test_a.py", {"test_a"}),
        ("path/eval/deep path/evaluation", {"test_b", "test_c"}),
        ("*/test_[bc].py", {"test_b", "test_c"}),
    ],
)
def test_evalmode_mark_guards_the_files_that_its_globs_name(
    pytester: pytest.Pytester, globs: str, guarded: set[str]
) -> None:
    suites.write(pytester)
    for name in ("eval/test_a", "evaluation/test_b", "eval/deep/test_c"):
        file = pytester.path / "path" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("from nets import *\n\ndef test_unmarked():\n    infer(Net())\n")
    ini(pytester, "pythonpath = .", f"evalmode_mark = {globs}")
    found = suites.outcomes(pytester)
    assert {nodeid.rpartition("/")[2].partition(".")[0] for nodeid in found if found[nodeid] == "failed"} == guarded
    assert len(found) == 3


def test_evalmode_mark_is_relative_to_the_rootdir_from_anywhere(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    suites.write(pytester)
    folder = pytester.mkdir("eval")
    (folder / "test_it.py").write_text("from nets import *\n\ndef test_unmarked():\n    infer(Net())\n")
    ini(pytester, "pythonpath = .", "evalmode_mark = eval")
    monkeypatch.chdir(folder)
    suites.run(pytester).assert_outcomes(failed=1)


def test_evalmode_marker_renames_the_marker(pytester: pytest.Pytester) -> None:
    suites.write(
        pytester,
        """
@pytest.mark.clean
def test_renamed():
    net = Net().eval()
    net.drop.train()
    infer(net)

@pytest.mark.inference
def test_anothers():
    infer(Net())
""",
    )
    ini(pytester, "evalmode_marker = clean", "markers = inference: another's", "addopts = --strict-markers")
    result = suites.run(pytester)
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*test_renamed*", "*intended? @pytest.mark.clean(*"])


def test_evalmode_marker_is_named_by_its_errors_and_by_markers(pytester: pytest.Pytester) -> None:
    suites.write(pytester, "@pytest.mark.clean(alow='x')\ndef test_wrong():\n    pass\n")
    ini(pytester, "evalmode_marker = clean")
    suites.run(pytester).stdout.fnmatch_lines(["*@pytest.mark.clean has no argument 'alow'; did you mean 'allow'?*"])
    suites.run(pytester, "--markers").stdout.fnmatch_lines(["@pytest.mark.clean(*allow=()*"])


DECLARED = """
@pytest.fixture
def net():
    return Net()

@pytest.mark.inference
def test_training(net):
    infer(net)

@pytest.mark.inference
def test_mutating(net):
    infer(net.eval())
    with torch.no_grad():
        net.fc.bias.add_(1)

@pytest.mark.inference
def test_recording(net):
    net.eval()(torch.ones(2, 4))
"""


@pytest.mark.parametrize(
    ("line", "failed"),
    [
        ("evalmode_allow =", {"training", "mutating", "recording"}),
        ("evalmode_allow = train-mode", {"mutating", "recording"}),
        ("evalmode_allow = train-mode grad-mode", {"mutating"}),
        ("evalmode_allow =\n  state-mutated\n  grad-mode", {"training"}),
        ("evalmode_train = *", {"mutating", "recording"}),
        ("evalmode_train = fc drop", {"mutating", "recording"}),
        ("evalmode_train = net.fc net.drop", {"mutating", "recording"}),
        ("evalmode_train = fc", {"training", "mutating", "recording"}),
        ("evalmode_mutable = fc.*", {"training", "recording"}),
        ("evalmode_mutable = net.fc.bias", {"training", "recording"}),
        ("evalmode_mutable = fc.weight", {"training", "mutating", "recording"}),
    ],
)
def test_ini_exemptions_hold_for_the_whole_suite(pytester: pytest.Pytester, line: str, failed: set[str]) -> None:
    suites.write(pytester, DECLARED)
    ini(pytester, line)
    found = suites.outcomes(pytester)
    assert {nodeid.rpartition("test_")[2] for nodeid in found if found[nodeid] == "failed"} == failed


def test_ini_exemptions_add_to_those_of_the_marker(pytester: pytest.Pytester) -> None:
    suites.write(pytester, "@pytest.mark.inference(train='drop')\ndef test_it():\n    infer(Net())\n")
    suites.run(pytester).assert_outcomes(failed=1)
    ini(pytester, "evalmode_train = fc")
    suites.run(pytester).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("lines", "args", "said"),
    [
        ([], ["--evalmode=warm"], "--evalmode: 'warm' is no mode; *valid: enforce, warn, off"),
        ([], ["--evalmode="], "--evalmode: '' is no mode; *valid: enforce, warn, off"),
        (["evalmode = on"], [], "evalmode (ini): 'on' is no mode; *valid: enforce, warn, off"),
        (["addopts = --evalmode=on"], [], "--evalmode: 'on' is no mode; *valid: enforce, warn, off"),
        (["evalmode_marker = no name"], [], "evalmode_marker: 'no name' is no name for a marker; *identifier"),
        (["evalmode_marker = class"], [], "evalmode_marker: 'class' is no name for a marker; *identifier"),
        (["evalmode_allow = train-mod"], [], "*allow='train-mod' is no rule; did you mean 'train-mode'? valid: *"),
        ([], ["-o", "evalmode_allow=zzz"], "*allow='zzz' is no rule; valid: train-mode, grad-mode, *"),
        (["evalmode_mark = no/such/folder"], [], "evalmode_mark: 'no/such/folder' is no file or folder below *"),
        (["evalmode_mark = ../other*"], [], "evalmode_mark: '../other*' is no file or folder below *"),
        (["evalmode_mark = /tmp"], [], "evalmode_mark: '/tmp' is no file or folder below *"),
        ([], ["--evalmode-report=."], "--evalmode-report: '.' is no file to write to"),
        ([], ["--evalmode-report="], "--evalmode-report: '' is no file to write to"),
        ([], ["--evalmode-report=nets.py/report.json"], "--evalmode-report: 'nets.py/report.json' is no file*"),
        ([], [f"--evalmode-report={'a' * 300}.json"], "--evalmode-report: 'aaa*json' is no file to write to"),
        ([], [f"--evalmode-report=new/{'a' * 300}/r.json"], "--evalmode-report: 'new/aaa*json' is no file to write to"),
        ([], [f"--evalmode-report={'a/' * 3000}r.json"], "--evalmode-report: 'a/a/*json' is no file to write to"),
    ],
)
def test_a_bad_value_is_a_usage_error(
    pytester: pytest.Pytester, workers: tuple[str, ...], lines: list[str], args: list[str], said: str
) -> None:
    suites.write(pytester, VIOLATION)
    ini(pytester, *lines)
    result = suites.run(pytester, *args, *workers)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {said.replace('[', '[[]')}"])
    assert "Traceback" not in result.stdout.str() + result.stderr.str()


def test_evalmode_report_is_relative_to_where_pytest_was_called(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    suites.write(pytester, VIOLATION)
    ini(pytester)
    folder = pytester.mkdir("elsewhere")
    monkeypatch.chdir(folder)
    suites.run(pytester, "..", "--evalmode-report=made/report.json")
    assert (folder / "made" / "report.json").is_file()


def test_evalmode_report_takes_effect_from_addopts(pytester: pytest.Pytester) -> None:
    suites.write(pytester, VIOLATION)
    ini(pytester, "addopts = --evalmode-report=report.json")
    suites.run(pytester)
    assert (pytester.path / "report.json").is_file()


@pytest.mark.parametrize(
    ("environment", "name", "title"),
    [
        ({"RANK": "1", "WORLD_SIZE": "2"}, "report.v1.rank1.json", "evalmode, rank 1 of 2"),
        ({"RANK": "0", "WORLD_SIZE": "1"}, "report.v1.json", "evalmode"),
        ({"RANK": "1"}, "report.v1.json", "evalmode"),
        ({"RANK": "first", "WORLD_SIZE": "2"}, "report.v1.json", "evalmode"),
    ],
)
def test_each_rank_of_several_has_a_report_of_its_own(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], name: str, title: str
) -> None:
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    suites.write(pytester, VIOLATION)
    result = suites.run(pytester, "--evalmode-report=report.v1.json")
    assert [path.name for path in pytester.path.glob("report*")] == [name]
    assert title in [line.strip("= ") for line in result.outlines]
    assert any(str(pytester.path / name) in line for line in result.outlines)


@pytest.mark.filterwarnings("ignore:The --rsyncdir")
def test_a_worker_need_not_have_the_files_of_its_controller(pytester: pytest.Pytester) -> None:
    """As over ssh: it is sent the tests, runs them in a folder of its own, and tells what it found."""
    suites.write(pytester)
    ini(pytester, "evalmode_mark = tests/guarded kept/here")
    pytester.mkdir("kept").joinpath("here").touch()
    folder = pytester.mkdir("tests").joinpath("guarded")
    folder.mkdir()
    (folder / "test_it.py").write_text(f"{suites.NETS}\ndef test_violation():\n    infer(Net())\n", encoding="utf-8")
    elsewhere = pytester.mkdir("elsewhere")
    elsewhere.joinpath("report.json").mkdir()
    send = [f"--tx=popen//chdir={elsewhere}", "--dist=load", "--rsyncdir=tests", "--rsyncdir=tox.ini"]
    result = suites.run(pytester, *send, str(pytester.path / "tests"), "--evalmode-report=report.json")
    result.assert_outcomes(failed=1, warnings=2)
    assert "guarded/test_it.py" in (pytester.path / "report.json").read_text(encoding="utf-8")


def test_without_evalmode_report_nothing_is_written(pytester: pytest.Pytester) -> None:
    suites.write(pytester, VIOLATION)
    before = set(pytester.path.iterdir())
    suites.run(pytester, "-p", "no:cacheprovider", "-p", "no:benchmark")
    assert {path.name for path in set(pytester.path.iterdir()) - before} <= {"__pycache__"}


def test_evalmode_rules_tells_each_rule_and_its_remedy_and_runs_nothing(
    pytester: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    suites.write(pytester, VIOLATION)
    result = suites.run(pytester, "--evalmode-rules", *workers)
    assert result.ret == pytest.ExitCode.OK
    for name in ("train-mode", "grad-mode", "state-mutated", "batch-stats", "random-forward"):
        result.stdout.fnmatch_lines([f"{name} (default)", "*fires when ?*", "*fix: ?*"])
    result.stdout.no_fnmatch_line("*test session starts*")


def test_evalmode_rules_prints_the_page_of_one_rule(pytester: pytest.Pytester, workers: tuple[str, ...]) -> None:
    suites.write(pytester, VIOLATION)
    result = suites.run(pytester, "--evalmode-rules", "train-mode", *workers)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["# train-mode", "## What it means", "## When to exempt"])
    result.stdout.no_fnmatch_line("*test session starts*")


def test_evalmode_rules_says_which_rules_there_are(pytester: pytest.Pytester, workers: tuple[str, ...]) -> None:
    result = suites.run(pytester, "--evalmode-rules=train-mod", *workers)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    said = "ERROR: --evalmode-rules: 'train-mod' is no rule; did you mean 'train-mode'? valid: train-mode, grad-mode, *"
    result.stderr.fnmatch_lines([said])


def test_help_tells_every_option_and_ini_key(pytester: pytest.Pytester) -> None:
    said = suites.run(pytester, "--help").stdout.str()
    options = ["--evalmode=enforce|warn|off", "--evalmode-report=PATH", "--evalmode-rules"]
    keys = ["evalmode (string)", "evalmode_marker (string)"]
    keys += [f"evalmode_{name} (args)" for name in ("mark", "allow", "train", "mutable")]
    assert [text for text in (*options, *keys) if text not in said] == []
