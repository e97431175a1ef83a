"""Options and ini keys: each takes effect, the command line overrides the ini, invalid values are usage errors."""

from __future__ import annotations

import pytest

from tests import suites

VIOLATION = """
@pytest.mark.inference
def test_violation():
    infer(Net())
"""


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


@pytest.mark.xdist
@pytest.mark.parametrize(
    ("lines", "args", "mode"),
    [
        (["addopts = --evalmode=warn", "evalmode = off"], [], "warn"),
        (["evalmode = warn"], ["-o", "evalmode=off"], "off"),
    ],
)
def test_xdist_workers_use_the_mode(pytester: pytest.Pytester, lines: list[str], args: list[str], mode: str) -> None:
    suites.write(pytester, VIOLATION)
    ini(pytester, *lines)
    suites.run(pytester, "-n1", *args).assert_outcomes(**OUTCOMES[mode])


def test_a_warning_has_the_text_of_the_failure(pytester: pytest.Pytester) -> None:
    suites.write(pytester, VIOLATION)
    suites.run(pytester, "--evalmode=warn").stdout.fnmatch_lines(
        [
            "*warnings summary*",
            "*test_it.py:*: EvalModeWarning: train-mode: Net ran once in training mode*",
            "*fix: call net.eval() before the first forward*",
        ]
    )


def test_a_warning_turned_into_an_error_fails_the_test(pytester: pytest.Pytester) -> None:
    suites.write(pytester, VIOLATION)
    result = suites.run(pytester, "--evalmode=warn", "-W", "error::pytest_evalmode.EvalModeWarning")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*EvalModeWarning: train-mode: Net ran once in training mode*"])
    assert suites.plugin_lines(result) == []
    assert result.stdout.str().count("fix: call net.eval()") == 1


def test_check_does_not_raise_under_warn_but_the_end_warns(pytester: pytest.Pytester) -> None:
    suites.write(
        pytester, "def test_checks(evalmode):\n    infer(Net())\n    evalmode.check()\n    assert evalmode.violations\n"
    )
    suites.run(pytester, "--evalmode=warn").assert_outcomes(passed=1, warnings=1)
    suites.run(pytester).assert_outcomes(failed=1)


def test_a_clean_test_issues_no_warning(pytester: pytest.Pytester) -> None:
    suites.write(pytester, VIOLATION.replace("Net()", "Net().eval()"))
    suites.run(pytester, "--evalmode=warn", "-W", "error").assert_outcomes(passed=1)


def test_off_overrides_marks_paths_and_fixture(pytester: pytest.Pytester) -> None:
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


# --- other ini keys, each with a test that it applies to and a similar one that it does not


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
def test_evalmode_mark_guards_matching_files(pytester: pytest.Pytester, globs: str, guarded: set[str]) -> None:
    suites.write(pytester)
    for name in ("eval/test_a", "evaluation/test_b", "eval/deep/test_c"):
        file = pytester.path / "path" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("from nets import *\n\ndef test_unmarked():\n    infer(Net())\n")
    ini(pytester, "pythonpath = .", f"evalmode_mark = {globs}")
    outcomes = suites.outcomes(pytester)
    assert {
        nodeid.rpartition("/")[2].partition(".")[0] for nodeid in outcomes if outcomes[nodeid] == "failed"
    } == guarded
    assert len(outcomes) == 3


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


def test_errors_and_markers_use_the_name_of_evalmode_marker(pytester: pytest.Pytester) -> None:
    suites.write(pytester, "@pytest.mark.clean(alow='x')\ndef test_wrong():\n    pass\n")
    ini(pytester, "evalmode_marker = clean")
    suites.run(pytester).stdout.fnmatch_lines(["*@pytest.mark.clean: unknown argument 'alow' (did you mean 'allow'?*"])
    suites.run(pytester, "--markers").stdout.fnmatch_lines(["@pytest.mark.clean(*allow=()*"])


EXEMPTED = """
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
def test_ini_exemptions_apply_to_the_whole_suite(pytester: pytest.Pytester, line: str, failed: set[str]) -> None:
    suites.write(pytester, EXEMPTED)
    ini(pytester, line)
    outcomes = suites.outcomes(pytester)
    assert {nodeid.rpartition("test_")[2] for nodeid in outcomes if outcomes[nodeid] == "failed"} == failed


def test_ini_exemptions_add_to_those_of_the_marker(pytester: pytest.Pytester) -> None:
    suites.write(pytester, "@pytest.mark.inference(train='drop')\ndef test_it():\n    infer(Net())\n")
    suites.run(pytester).assert_outcomes(failed=1)
    ini(pytester, "evalmode_train = fc")
    suites.run(pytester).assert_outcomes(passed=1)


@suites.WORKERS
@pytest.mark.parametrize(
    ("lines", "args", "message"),
    [
        ([], ["--evalmode=warm"], "--evalmode: invalid mode 'warm' (choose from enforce, warn, off)"),
        ([], ["--evalmode="], "--evalmode: invalid mode '' (choose from enforce, warn, off)"),
        (["evalmode = on"], [], "evalmode (ini): invalid mode 'on' (choose from enforce, warn, off)"),
        (["addopts = --evalmode=on"], [], "--evalmode: invalid mode 'on' (choose from enforce, warn, off)"),
        (["evalmode_marker = no name"], [], "evalmode_marker: 'no name' is not a valid marker name (*identifier)"),
        (["evalmode_marker = class"], [], "evalmode_marker: 'class' is not a valid marker name (*identifier)"),
        (
            ["evalmode_allow = train-mod"],
            [],
            "*unknown rule in allow='train-mod' (did you mean 'train-mode'? choose from *",
        ),
        ([], ["-o", "evalmode_allow=zzz"], "*unknown rule in allow='zzz' (choose from train-mode, grad-mode, *"),
        (["evalmode_mark = no/such/folder"], [], "evalmode_mark: 'no/such/folder' is not a file or folder below *"),
        (["evalmode_mark = ../other*"], [], "evalmode_mark: '../other*' is not a file or folder below *"),
        (["evalmode_mark = /tmp"], [], "evalmode_mark: '/tmp' is not a file or folder below *"),
        ([], ["--evalmode-report=."], "--evalmode-report: cannot write to '.'"),
        ([], ["--evalmode-report="], "--evalmode-report: cannot write to ''"),
        ([], ["--evalmode-report=nets.py/report.json"], "--evalmode-report: cannot write to 'nets.py/report.json'"),
        ([], [f"--evalmode-report={'a/' * 3000}r.json"], "--evalmode-report: cannot write to 'a/a/*json'"),
    ],
)
def test_an_invalid_value_is_a_usage_error(
    pytester: pytest.Pytester, workers: tuple[str, ...], lines: list[str], args: list[str], message: str
) -> None:
    suites.write(pytester, VIOLATION)
    ini(pytester, *lines)
    result = suites.run(pytester, *args, *workers)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {message.replace('[', '[[]')}"])
    assert "Traceback" not in result.stdout.str() + result.stderr.str()


def test_evalmode_report_is_relative_to_the_invocation_directory(
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
def test_each_rank_writes_its_own_report(
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
@pytest.mark.xdist
def test_a_worker_does_not_need_the_files_of_its_controller(pytester: pytest.Pytester) -> None:
    """As over ssh: the worker receives the tests, runs them in its own folder and sends back the results."""
    suites.write(pytester)
    ini(pytester, "evalmode_mark = tests/guarded other/file")
    pytester.mkdir("other").joinpath("file").touch()
    folder = pytester.mkdir("tests").joinpath("guarded")
    folder.mkdir()
    (folder / "test_it.py").write_text(f"{suites.NETS}\ndef test_violation():\n    infer(Net())\n", encoding="utf-8")
    elsewhere = pytester.mkdir("elsewhere")
    elsewhere.joinpath("report.json").mkdir()
    send = [f"--tx=popen//chdir={elsewhere}", "--dist=load", "--rsyncdir=tests", "--rsyncdir=tox.ini"]
    result = suites.run(pytester, *send, str(pytester.path / "tests"), "--evalmode-report=report.json")
    result.assert_outcomes(failed=1, warnings=2)
    assert "guarded/test_it.py" in (pytester.path / "report.json").read_text(encoding="utf-8")


def test_no_file_is_written_without_evalmode_report(pytester: pytest.Pytester) -> None:
    suites.write(pytester, VIOLATION)
    before = set(pytester.path.iterdir())
    suites.run(pytester, "-p", "no:cacheprovider")
    assert {path.name for path in set(pytester.path.iterdir()) - before} <= {"__pycache__"}


@suites.WORKERS
def test_evalmode_rules_prints_each_rule_and_its_fix_and_runs_no_test(
    pytester: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    suites.write(pytester, VIOLATION)
    result = suites.run(pytester, "--evalmode-rules", *workers)
    assert result.ret == pytest.ExitCode.OK
    for name in ("train-mode", "grad-mode", "state-mutated", "batch-stats", "random-forward"):
        result.stdout.fnmatch_lines([f"{name} (default)", "*fires when ?*", "*fix: ?*"])
    result.stdout.no_fnmatch_line("*test session starts*")


@suites.WORKERS
def test_evalmode_rules_prints_the_page_of_one_rule(pytester: pytest.Pytester, workers: tuple[str, ...]) -> None:
    suites.write(pytester, VIOLATION)
    result = suites.run(pytester, "--evalmode-rules", "train-mode", *workers)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["# train-mode", "## What it means", "## When to exempt"])
    result.stdout.no_fnmatch_line("*test session starts*")


@suites.WORKERS
def test_evalmode_rules_lists_the_valid_rules_for_an_unknown_one(
    pytester: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    result = suites.run(pytester, "--evalmode-rules=train-mod", *workers)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    message = "ERROR: --evalmode-rules: unknown rule 'train-mod' (did you mean 'train-mode'? choose from train-mode, "
    result.stderr.fnmatch_lines([f"{message}grad-mode, *"])


def test_help_lists_every_option_and_ini_key(pytester: pytest.Pytester) -> None:
    output = suites.run(pytester, "--help").stdout.str()
    options = ["--evalmode=enforce|warn|off", "--evalmode-report=PATH", "--evalmode-rules"]
    keys = ["evalmode (string)", "evalmode_marker (string)"]
    keys += [f"evalmode_{name} (args)" for name in ("mark", "allow", "train", "mutable")]
    assert [text for text in (*options, *keys) if text not in output] == []
