"""The hooks that teams implement: what they change, where they hold, and what becomes of nonsense."""

from __future__ import annotations

import pytest

from tests.suites import json_report, outcomes, run, write

RULE = """
from pytest_evalmode import Violation, rule

def small(level):
    @rule("edge-dtype", level=level, fires_when="a model holds more than float16", remedy="call model.half()")
    def edge_dtype(trace):
        for model in trace.models:
            if model.forwards and "float32" in model.dtypes:
                said = f"{model.name} holds float32"
                yield Violation(model=model.name, subjects=(model.name,), message=said, finding=said)
    return edge_dtype

def pytest_evalmode_rules():
    return [small("default")]
"""
CLEAN = """
@pytest.mark.inference
def test_clean():
    infer(Net().eval())
"""


def conftest(pytester: pytest.Pytester, source: str, *folders: str) -> None:
    """A conftest.py at the root, or in each of these folders."""
    for folder in folders or (".",):
        path = pytester.path / folder / "conftest.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")


def inner(pytester: pytest.Pytester, source: str, *folders: str) -> None:
    """The same tests at the root and in each folder, under names of their own."""
    write(pytester, source)
    pytester.makeini("[pytest]\npythonpath = .\n")
    for folder in folders:
        path = pytester.path / folder / f"test_{folder}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"from nets import *\n{source}", encoding="utf-8")


# --- pytest_evalmode_policy

DROPPING = """
@pytest.mark.inference
def test_dropout():
    net = Net().eval()
    net.drop.train()
    infer(net)
"""
LET_IT_DROP = """
from pytest_evalmode import Policy

def pytest_evalmode_policy(item, policy):
    return policy | Policy(train=("drop",), reasons=("Monte Carlo",))
"""


def test_a_policy_holds_for_its_directory(pytester: pytest.Pytester) -> None:
    inner(pytester, DROPPING, "sampling")
    conftest(pytester, LET_IT_DROP, "sampling")
    assert outcomes(pytester) == {
        "sampling/test_sampling.py::test_dropout": "passed",
        "test_it.py::test_dropout": "failed",
    }


def test_a_policy_may_be_stricter_than_the_mark(pytester: pytest.Pytester) -> None:
    write(pytester, DROPPING.replace("inference", 'inference(train="drop")'))
    conftest(
        pytester, "from pytest_evalmode import Policy\ndef pytest_evalmode_policy(item, policy): return Policy()\n"
    )
    assert outcomes(pytester) == {"test_it.py::test_dropout": "failed"}


def test_none_leaves_the_policy_and_the_first_that_answers_counts(pytester: pytest.Pytester) -> None:
    inner(pytester, DROPPING, "inner")
    conftest(pytester, LET_IT_DROP)
    conftest(pytester, "def pytest_evalmode_policy(item, policy): return policy\n", "inner")
    assert outcomes(pytester) == {"inner/test_inner.py::test_dropout": "failed", "test_it.py::test_dropout": "passed"}
    conftest(pytester, "def pytest_evalmode_policy(item, policy): return None\n", "inner")
    assert set(outcomes(pytester).values()) == {"passed"}


def test_a_policy_is_asked_with_what_the_marks_say(pytester: pytest.Pytester) -> None:
    conftest(
        pytester,
        """
def pytest_evalmode_policy(item, policy):
    assert item.name == "test_dropout"
    assert policy.train == ("drop",) and policy.mutable == ("cache",), policy
""",
    )
    pytester.makeini("[pytest]\nevalmode_mutable = cache\n")
    write(pytester, DROPPING.replace("inference", 'inference(train="drop")'))
    assert outcomes(pytester) == {"test_it.py::test_dropout": "passed"}


@pytest.mark.parametrize(
    "asks",
    ["def test_it(evalmode):", "def test_it(request):\n    request.getfixturevalue('evalmode')"],
    ids=["as an argument", "as it runs"],
)
def test_a_policy_holds_for_a_test_that_asks_for_the_fixture(pytester: pytest.Pytester, asks: str) -> None:
    conftest(pytester, LET_IT_DROP)
    write(pytester, f"{asks}\n    net = Net().eval()\n    net.drop.train()\n    infer(net)\n")
    assert outcomes(pytester) == {"test_it.py::test_it": "passed"}


# --- pytest_evalmode_models

HIDDEN = """
import registry

@pytest.mark.inference
def test_touches_what_never_ran():
    infer(Net().eval())
    with torch.no_grad():
        registry.MODELS[0].fc.weight.add_(1)
"""
REGISTRY = "from nets import Net\nMODELS = [Net().eval(), Net().eval()]\n"
MODELS = {
    "mapping": ("{'served': MODELS[0]}", "served"),
    "list": ("[MODELS[0]]", "Net"),
    "tuple": ("(MODELS[0],)", "Net"),
    "generator": ("(model for model in MODELS[:1])", "Net"),
    "several of one type": ("MODELS", "Net"),
    "values": ("dict(a=MODELS[0]).values()", "Net"),
}


@pytest.mark.parametrize(("answer", "name"), MODELS.values(), ids=MODELS)
def test_further_models_are_watched_from_the_start(pytester: pytest.Pytester, answer: str, name: str) -> None:
    write(pytester, HIDDEN, registry=REGISTRY)
    assert set(outcomes(pytester).values()) == {"passed"}
    conftest(pytester, f"from registry import MODELS\ndef pytest_evalmode_models(item): return {answer}\n")
    (test,) = json_report(pytester)["tests"]
    assert [(v["rule"], v["subjects"]) for v in test["violations"]] == [("state-mutated", [f"{name}.fc.weight"])]


def test_every_model_of_a_list_is_watched(pytester: pytest.Pytester) -> None:
    write(pytester, CLEAN, registry=REGISTRY)
    conftest(pytester, "from registry import MODELS\ndef pytest_evalmode_models(item): return MODELS\n")
    (test,) = json_report(pytester)["tests"]
    assert len(test["models"]) == 3


def test_models_of_outer_and_inner_directories_add_up(pytester: pytest.Pytester) -> None:
    inner(pytester, CLEAN, "inner")
    pytester.makepyfile(registry=REGISTRY)
    for folder, index in ((".", 0), ("inner", 1)):
        source = f"from registry import MODELS\ndef pytest_evalmode_models(item): return dict(m{index}=MODELS[{index}])"
        conftest(pytester, source, folder)
    found = {test["nodeid"]: {m["name"] for m in test["models"]} for test in json_report(pytester)["tests"]}
    assert found == {
        "inner/test_inner.py::test_clean": {"m0", "m1", "Net"},
        "test_it.py::test_clean": {"m0", "Net"},
    }


def test_a_model_that_a_hook_finds_is_shared(pytester: pytest.Pytester) -> None:
    conftest(pytester, "from registry import MODELS\ndef pytest_evalmode_models(item): return dict(served=MODELS[0])\n")
    source = "import registry\n" + CLEAN + "    registry.MODELS[0].train()\n"
    write(pytester, source, registry=REGISTRY)
    (test,) = json_report(pytester, "--evalmode-strict")["tests"]
    assert {v["rule"]: v["subjects"][0] for v in test["violations"]} == {"model-leaked": "served.training"}


# --- pytest_evalmode_rules


def test_a_teams_rule_holds_for_its_directory(pytester: pytest.Pytester) -> None:
    inner(pytester, CLEAN, "edge")
    conftest(pytester, RULE, "edge")
    tests = {test["nodeid"]: test["violations"] for test in json_report(pytester)["tests"]}
    assert [v["rule"] for v in tests["edge/test_edge.py::test_clean"]] == ["edge-dtype"]
    assert tests["test_it.py::test_clean"] == []


def test_a_teams_rule_reads_as_any_other(pytester: pytest.Pytester) -> None:
    conftest(pytester, RULE)
    write(pytester, CLEAN)
    run(pytester).stdout.fnmatch_lines(
        [
            "*edge-dtype: Net holds float32",
            "*edge-dtype  Net holds float32",
            "*fix: call model.half()",
            '*intended? @pytest.mark.inference(allow=[[]"edge-dtype"[]], reason="...")',
        ]
    )


@pytest.mark.parametrize("asked", [[], ["edge-dtype"]], ids=["all", "one"])
def test_a_teams_rule_is_explained_with_the_others(pytester: pytest.Pytester, asked: list[str]) -> None:
    conftest(pytester, RULE)
    result = run(pytester, "--evalmode-rules", *asked)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["edge-dtype (default)", "*fires when a model holds*", "*fix: call model.half()"])
    assert ("train-mode" in result.stdout.str()) == (not asked)
    missed = run(pytester, "--evalmode-rules", "edge-type").stderr
    missed.fnmatch_lines(["ERROR: --evalmode-rules: 'edge-type' is no rule; did you mean 'edge-dtype'? valid: *"])


def test_a_teams_strict_rule_holds_in_strict_alone(pytester: pytest.Pytester) -> None:
    conftest(pytester, RULE.replace('"default"', '"strict"'))
    write(pytester, CLEAN)
    assert outcomes(pytester) == {"test_it.py::test_clean": "passed"}
    assert outcomes(pytester, "--evalmode-strict") == {"test_it.py::test_clean": "failed"}


@pytest.mark.parametrize("level", ["default", "strict"])
def test_a_teams_rule_can_be_allowed(pytester: pytest.Pytester, level: str) -> None:
    conftest(pytester, RULE.replace('"default"', f'"{level}"'))
    write(pytester, CLEAN.replace("inference", 'inference(allow="edge-dtype")'))
    assert set(outcomes(pytester, "--evalmode-strict").values()) == {"passed"}


def test_a_teams_rule_can_be_allowed_for_a_part(pytester: pytest.Pytester) -> None:
    conftest(pytester, RULE)
    write(pytester, "def test_it(evalmode):\n    with evalmode.allow('edge-dtype'):\n        infer(Net().eval())\n")
    assert set(outcomes(pytester).values()) == {"passed"}


def test_a_teams_rule_that_nothing_breaks_leaves_its_allow_unused(pytester: pytest.Pytester) -> None:
    conftest(pytester, RULE)
    write(pytester, '@pytest.mark.inference(allow="edge-dtype")\ndef test_half():\n    net = Net().eval().half()\n')
    (test,) = json_report(pytester, "--evalmode-strict")["tests"]
    assert ("unused-exemption", ['allow="edge-dtype"']) in [(v["rule"], v["subjects"]) for v in test["violations"]]


def test_a_teams_rule_can_be_allowed_by_the_ini(pytester: pytest.Pytester) -> None:
    conftest(pytester, RULE)
    pytester.makeini("[pytest]\nevalmode_allow = edge-dtype")
    write(pytester, CLEAN)
    run(pytester).assert_outcomes(passed=1)
    pytester.makeini("[pytest]\nevalmode_allow = edge-dtyp")
    result = run(pytester)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*allow='edge-dtyp' is no rule; did you mean 'edge-dtype'*"])


def test_a_teams_rule_can_be_allowed_where_guarding_is_off(pytester: pytest.Pytester) -> None:
    conftest(pytester, RULE)
    write(pytester, "def test_it(evalmode):\n    with evalmode.allow('edge-dtype'):\n        infer(Net().eval())\n")
    run(pytester, "--evalmode=off").assert_outcomes(passed=1)


def test_a_teams_rule_that_fails_is_told_by_its_name(pytester: pytest.Pytester) -> None:
    conftest(pytester, RULE.replace("if model.forwards", "if model.no_such_fact"))
    write(pytester, CLEAN)
    result = run(pytester)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*GuardError: rule 'edge-dtype' failed: AttributeError(*no_such_fact*"])


def test_details_of_a_teams_rule_may_be_of_any_kind(pytester: pytest.Pytester) -> None:
    conftest(pytester, RULE.replace("finding=said)", "finding=said, details={'at': __import__('pathlib').Path('x')})"))
    write(pytester, CLEAN)
    (test,) = json_report(pytester)["tests"]
    assert [violation["details"] for violation in test["violations"]] == [{"at": "x"}]


def test_elsewhere_a_teams_rule_is_no_rule(pytester: pytest.Pytester) -> None:
    inner(pytester, CLEAN.replace("inference", 'inference(allow="edge-dtyp")'), "edge")
    conftest(pytester, RULE, "edge")
    result = run(pytester)
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*allow='edge-dtyp' is no rule; did you mean 'edge-dtype'*"])
    result.stdout.fnmatch_lines(["*allow='edge-dtyp' is no rule; valid: train-mode*"])


# --- pytest_evalmode_violation


def test_a_violation_is_dropped(pytester: pytest.Pytester) -> None:
    write(pytester, "@pytest.mark.inference\ndef test_it():\n    infer(Net())\n    infer(Net().eval())\n")
    conftest(
        pytester,
        "def pytest_evalmode_violation(item, violation):\n    return violation.rule != 'train-mode' or False\n",
    )
    assert outcomes(pytester) == {"test_it.py::test_it": "passed"}
    (test,) = json_report(pytester)["tests"]
    assert test["violations"] == []


@pytest.mark.parametrize(
    ("answers", "told"), [((None, None), 1), ((True, None), 1), ((True, False), 0), ((False, None), 0)]
)
def test_one_no_is_enough(pytester: pytest.Pytester, answers: tuple[bool | None, ...], told: int) -> None:
    inner(pytester, "", "inner")
    (pytester.path / "inner" / "test_inner.py").write_text(
        "from nets import *\n@pytest.mark.inference\ndef test_it():\n    infer(Net())\n", encoding="utf-8"
    )
    for folder, answer in zip((".", "inner"), answers, strict=True):
        conftest(pytester, f"def pytest_evalmode_violation(item, violation): return {answer}\n", folder)
    (test,) = json_report(pytester)["tests"]
    assert len(test["violations"]) == told


# --- nonsense

HOOKS = {
    "pytest_evalmode_policy(item, policy)": ("{'train': 'drop'}", "None"),
    "pytest_evalmode_models(item)": ("['no model']", "[nets.Net().eval()]"),
    "pytest_evalmode_rules()": ("['no rule']", "[]"),
    "pytest_evalmode_violation(item, violation)": ("'no'", "True"),
}
OTHER_NONSENSE = {
    "a rule that does not exist": (
        "pytest_evalmode_policy(item, policy)",
        "nets.Policy(allow=frozenset({'grad-mood'}))",
    ),
    "one model": ("pytest_evalmode_models(item)", "nets.Net()"),
    "a number of models": ("pytest_evalmode_models(item)", "3"),
    "a mapping to nonsense": ("pytest_evalmode_models(item)", "{'net': 3}"),
    "a mapping by number": ("pytest_evalmode_models(item)", "{1: nets.Net()}"),
    "a generator of nonsense": ("pytest_evalmode_models(item)", "(n for n in [1, 2])"),
    "one rule": ("pytest_evalmode_rules()", "nets.rule_named('edge')"),
    "a rule of ours": ("pytest_evalmode_rules()", "[nets.rule_named('train-mode')]"),
    "a rule twice": ("pytest_evalmode_rules()", "[nets.rule_named('a'), nets.rule_named('a')]"),
    "a number": ("pytest_evalmode_violation(item, violation)", "0"),
}
BROKEN = "@pytest.mark.inference\ndef test_it():\n    infer(Net())\n"
RULE_NAMED = """

from pytest_evalmode import Policy

def rule_named(name):
    from pytest_evalmode import rule
    return rule(name, fires_when="", remedy="")(lambda trace: [])
"""


def nonsense(pytester: pytest.Pytester, hook: str, answer: str, *others: str, inner_folder: str = "inner") -> None:
    """A suite with one test, in whose folder one conftest answers nonsense and others at the root do not."""
    pytester.makepyfile(good="\n".join(f"import nets\ndef {hook}: return {other}\n" for other in others))
    pytester.syspathinsert()  # pytest 8.0 reads `pythonpath` after `-p`
    pytester.makeini("[pytest]\npythonpath = .\n" + ("addopts = -p good\n" if others else ""))
    folder = pytester.mkdir(inner_folder)
    (folder / "conftest.py").write_text(f"import nets\ndef {hook}: return {answer}\n", encoding="utf-8")
    (folder / "test_inner.py").write_text(f"from nets import *\n{BROKEN}", encoding="utf-8")
    write(pytester)
    with (pytester.path / "nets.py").open("a", encoding="utf-8") as nets:
        nets.write(RULE_NAMED)


def blamed(result: pytest.RunResult, hook: str) -> str:
    """The line that tells the error, which must be an error of the one test."""
    assert result.parseoutcomes().get("errors") == 1, result.outlines
    name = hook.partition("(")[0]
    (line,) = {line.strip() for line in result.outlines if line.startswith(("E ", name)) and " returned " in line}
    assert name in line
    return line


@pytest.mark.parametrize("others", [False, True], ids=["alone", "among others"])
@pytest.mark.parametrize("hook", HOOKS)
def test_nonsense_names_the_hook_and_the_plugin(pytester: pytest.Pytester, hook: str, others: bool) -> None:
    answer, good = HOOKS[hook]
    nonsense(pytester, hook, answer, *([good] if others else []))
    line = blamed(run(pytester), hook)
    assert "inner/conftest.py" in line
    assert "'good'" not in line
    assert "it takes" in line


@pytest.mark.parametrize(("hook", "answer"), OTHER_NONSENSE.values(), ids=OTHER_NONSENSE)
def test_other_nonsense(pytester: pytest.Pytester, hook: str, answer: str) -> None:
    nonsense(pytester, hook, answer)
    assert "inner/conftest.py" in blamed(run(pytester), hook)


def test_nonsense_under_xdist(pytester: pytest.Pytester) -> None:
    hook = "pytest_evalmode_policy(item, policy)"
    nonsense(pytester, hook, *HOOKS[hook])
    assert "inner/conftest.py" in blamed(run(pytester, "-n2"), hook)


def test_two_rules_of_one_name_from_two_plugins(pytester: pytest.Pytester) -> None:
    hook = "pytest_evalmode_rules()"
    nonsense(pytester, hook, "[nets.rule_named('edge')]", "[nets.rule_named('edge')]")
    assert "errors" in run(pytester).parseoutcomes()


def test_a_hook_that_raises_is_told_with_its_own_line(pytester: pytest.Pytester) -> None:
    conftest(pytester, "def pytest_evalmode_models(item):\n    raise LookupError('no such server')\n")
    write(pytester, CLEAN)
    result = run(pytester)
    assert result.parseoutcomes().get("errors") == 1
    result.stdout.fnmatch_lines(["*conftest.py:2: LookupError"])


def test_where_nothing_is_guarded_no_hook_is_asked(pytester: pytest.Pytester) -> None:
    hooks = "".join(f"def {hook}: raise AssertionError\n" for hook in HOOKS if "rules" not in hook)
    conftest(pytester, hooks)
    write(pytester, "def test_unmarked():\n    infer(Net())\n")
    assert outcomes(pytester) == {"test_it.py::test_unmarked": "passed"}
