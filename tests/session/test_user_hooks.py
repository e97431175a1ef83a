"""The hooks that users implement: their effect, their scope, and errors for invalid results."""

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
                text = f"{model.name} holds float32"
                yield Violation(model=model.name, subjects=(model.name,), message=text, finding=text)
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
    """Write a conftest.py at the root, or in each of these folders."""
    for folder in folders or (".",):
        path = pytester.path / folder / "conftest.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")


def inner(pytester: pytest.Pytester, source: str, *folders: str) -> None:
    """Write the same tests at the root and in each folder, in files with different names."""
    write(pytester, source)
    pytester.makeini("[pytest]\npythonpath = .\n")
    for folder in folders:
        path = pytester.path / folder / f"test_{folder}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"from nets import *\n{source}", encoding="utf-8")


# --- pytest_evalmode_policy

DROPOUT = """
@pytest.mark.inference
def test_dropout():
    net = Net().eval()
    net.drop.train()
    infer(net)
"""
ALLOW_DROPOUT = """
from pytest_evalmode import Policy

def pytest_evalmode_policy(item, policy):
    return policy | Policy(train=("drop",), reasons=("Monte Carlo",))
"""


def test_a_policy_hook_applies_to_its_directory(pytester: pytest.Pytester) -> None:
    inner(pytester, DROPOUT, "sampling")
    conftest(pytester, ALLOW_DROPOUT, "sampling")
    assert outcomes(pytester) == {
        "sampling/test_sampling.py::test_dropout": "passed",
        "test_it.py::test_dropout": "failed",
    }


def test_the_hooks_run_once_per_test(pytester: pytest.Pytester) -> None:
    conftest(pytester, "def pytest_evalmode_policy(item, policy):\n    print('policy of', item.name)\n")
    inner(pytester, DROPOUT)
    assert str(run(pytester, "-s").stdout).count("policy of test_dropout") == 1


def test_a_policy_may_be_stricter_than_the_mark(pytester: pytest.Pytester) -> None:
    write(pytester, DROPOUT.replace("inference", 'inference(train="drop")'))
    conftest(
        pytester, "from pytest_evalmode import Policy\ndef pytest_evalmode_policy(item, policy): return Policy()\n"
    )
    assert outcomes(pytester) == {"test_it.py::test_dropout": "failed"}


def test_the_first_policy_that_is_not_none_is_used(pytester: pytest.Pytester) -> None:
    inner(pytester, DROPOUT, "inner")
    conftest(pytester, ALLOW_DROPOUT)
    conftest(pytester, "def pytest_evalmode_policy(item, policy): return policy\n", "inner")
    assert outcomes(pytester) == {"inner/test_inner.py::test_dropout": "failed", "test_it.py::test_dropout": "passed"}
    conftest(pytester, "def pytest_evalmode_policy(item, policy): return None\n", "inner")
    assert set(outcomes(pytester).values()) == {"passed"}


def test_the_policy_hook_gets_the_exemptions_of_marks_and_ini(pytester: pytest.Pytester) -> None:
    conftest(
        pytester,
        """
def pytest_evalmode_policy(item, policy):
    assert item.name == "test_dropout"
    assert policy.train == ("drop",) and policy.mutable == ("cache",), policy
""",
    )
    pytester.makeini("[pytest]\nevalmode_mutable = cache\n")
    write(pytester, DROPOUT.replace("inference", 'inference(train="drop")'))
    assert outcomes(pytester) == {"test_it.py::test_dropout": "passed"}


@pytest.mark.parametrize(
    "request_fixture",
    ["def test_it(evalmode):", "def test_it(request):\n    request.getfixturevalue('evalmode')"],
    ids=["as an argument", "as it runs"],
)
def test_a_policy_hook_applies_to_a_test_that_requests_the_fixture(
    pytester: pytest.Pytester, request_fixture: str
) -> None:
    conftest(pytester, ALLOW_DROPOUT)
    write(pytester, f"{request_fixture}\n    net = Net().eval()\n    net.drop.train()\n    infer(net)\n")
    assert outcomes(pytester) == {"test_it.py::test_it": "passed"}


# --- pytest_evalmode_models

HIDDEN = """
import registry

@pytest.mark.inference
def test_changes_a_model_that_never_ran():
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
def test_models_from_a_hook_are_watched_from_the_start(pytester: pytest.Pytester, answer: str, name: str) -> None:
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
    names = {test["nodeid"]: {m["name"] for m in test["models"]} for test in json_report(pytester)["tests"]}
    assert names == {
        "inner/test_inner.py::test_clean": {"m0", "m1", "Net"},
        "test_it.py::test_clean": {"m0", "Net"},
    }


def test_a_model_from_a_hook_is_shared(pytester: pytest.Pytester) -> None:
    conftest(pytester, "from registry import MODELS\ndef pytest_evalmode_models(item): return dict(served=MODELS[0])\n")
    source = "import registry\n" + CLEAN + "    registry.MODELS[0].train()\n"
    write(pytester, source, registry=REGISTRY)
    (test,) = json_report(pytester, "--evalmode-strict")["tests"]
    assert {v["rule"]: v["subjects"][0] for v in test["violations"]} == {"model-leaked": "served.training"}


# --- pytest_evalmode_rules


def test_a_custom_rule_applies_to_its_directory(pytester: pytest.Pytester) -> None:
    inner(pytester, CLEAN, "edge")
    conftest(pytester, RULE, "edge")
    tests = {test["nodeid"]: test["violations"] for test in json_report(pytester)["tests"]}
    assert [v["rule"] for v in tests["edge/test_edge.py::test_clean"]] == ["edge-dtype"]
    assert tests["test_it.py::test_clean"] == []


def test_a_custom_rule_is_printed_like_any_other(pytester: pytest.Pytester) -> None:
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


@pytest.mark.parametrize("names", [[], ["edge-dtype"]], ids=["all", "one"])
def test_a_custom_rule_is_explained_with_the_others(pytester: pytest.Pytester, names: list[str]) -> None:
    conftest(pytester, RULE)
    result = run(pytester, "--evalmode-rules", *names)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["edge-dtype (default)", "*fires when a model holds*", "*fix: call model.half()"])
    assert ("train-mode" in result.stdout.str()) == (not names)
    stderr = run(pytester, "--evalmode-rules", "edge-type").stderr
    stderr.fnmatch_lines(
        ["ERROR: --evalmode-rules: unknown rule 'edge-type' (did you mean 'edge-dtype'? choose from *"]
    )


def test_a_custom_strict_rule_applies_under_strict_only(pytester: pytest.Pytester) -> None:
    conftest(pytester, RULE.replace('"default"', '"strict"'))
    write(pytester, CLEAN)
    assert outcomes(pytester) == {"test_it.py::test_clean": "passed"}
    assert outcomes(pytester, "--evalmode-strict") == {"test_it.py::test_clean": "failed"}


@pytest.mark.parametrize("level", ["default", "strict"])
def test_a_custom_rule_can_be_allowed(pytester: pytest.Pytester, level: str) -> None:
    conftest(pytester, RULE.replace('"default"', f'"{level}"'))
    write(pytester, CLEAN.replace("inference", 'inference(allow="edge-dtype")'))
    assert set(outcomes(pytester, "--evalmode-strict").values()) == {"passed"}


def test_a_custom_rule_can_be_allowed_for_a_part(pytester: pytest.Pytester) -> None:
    conftest(pytester, RULE)
    write(pytester, "def test_it(evalmode):\n    with evalmode.allow('edge-dtype'):\n        infer(Net().eval())\n")
    assert set(outcomes(pytester).values()) == {"passed"}


def test_an_unused_allow_of_a_custom_rule_is_reported(pytester: pytest.Pytester) -> None:
    conftest(pytester, RULE)
    write(pytester, '@pytest.mark.inference(allow="edge-dtype")\ndef test_half():\n    net = Net().eval().half()\n')
    (test,) = json_report(pytester, "--evalmode-strict")["tests"]
    assert ("unused-exemption", ['allow="edge-dtype"']) in [(v["rule"], v["subjects"]) for v in test["violations"]]


def test_a_custom_rule_can_be_allowed_by_the_ini(pytester: pytest.Pytester) -> None:
    conftest(pytester, RULE)
    pytester.makeini("[pytest]\nevalmode_allow = edge-dtype")
    write(pytester, CLEAN)
    run(pytester).assert_outcomes(passed=1)
    pytester.makeini("[pytest]\nevalmode_allow = edge-dtyp")
    result = run(pytester)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*unknown rule in allow='edge-dtyp' (did you mean 'edge-dtype'*"])


def test_a_custom_rule_can_be_allowed_when_guarding_is_off(pytester: pytest.Pytester) -> None:
    conftest(pytester, RULE)
    write(pytester, "def test_it(evalmode):\n    with evalmode.allow('edge-dtype'):\n        infer(Net().eval())\n")
    run(pytester, "--evalmode=off").assert_outcomes(passed=1)


def test_a_custom_rule_that_raises_is_named(pytester: pytest.Pytester) -> None:
    conftest(pytester, RULE.replace("if model.forwards", "if model.no_such_fact"))
    write(pytester, CLEAN)
    result = run(pytester)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*GuardError: rule 'edge-dtype' failed: AttributeError(*no_such_fact*"])


def test_details_of_a_custom_rule_may_have_any_type(pytester: pytest.Pytester) -> None:
    conftest(pytester, RULE.replace("finding=text)", "finding=text, details={'at': __import__('pathlib').Path('x')})"))
    write(pytester, CLEAN)
    (test,) = json_report(pytester)["tests"]
    assert [violation["details"] for violation in test["violations"]] == [{"at": "x"}]


def test_a_custom_rule_is_unknown_outside_its_directory(pytester: pytest.Pytester) -> None:
    inner(pytester, CLEAN.replace("inference", 'inference(allow="edge-dtyp")'), "edge")
    conftest(pytester, RULE, "edge")
    result = run(pytester)
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*unknown rule in allow='edge-dtyp' (did you mean 'edge-dtype'*"])
    result.stdout.fnmatch_lines(["*unknown rule in allow='edge-dtyp' (choose from train-mode*"])


# --- pytest_evalmode_violation


def test_a_hook_drops_a_violation(pytester: pytest.Pytester) -> None:
    write(pytester, "@pytest.mark.inference\ndef test_it():\n    infer(Net())\n    infer(Net().eval())\n")
    conftest(
        pytester,
        "def pytest_evalmode_violation(item, violation):\n    return violation.rule != 'train-mode' or False\n",
    )
    assert outcomes(pytester) == {"test_it.py::test_it": "passed"}
    (test,) = json_report(pytester)["tests"]
    assert test["violations"] == []


@pytest.mark.parametrize(
    ("results", "reported"), [((None, None), 1), ((True, None), 1), ((True, False), 0), ((False, None), 0)]
)
def test_one_false_is_enough_to_drop_a_violation(
    pytester: pytest.Pytester, results: tuple[bool | None, ...], reported: int
) -> None:
    inner(pytester, "", "inner")
    (pytester.path / "inner" / "test_inner.py").write_text(
        "from nets import *\n@pytest.mark.inference\ndef test_it():\n    infer(Net())\n", encoding="utf-8"
    )
    for folder, result in zip((".", "inner"), results, strict=True):
        conftest(pytester, f"def pytest_evalmode_violation(item, violation): return {result}\n", folder)
    (test,) = json_report(pytester)["tests"]
    assert len(test["violations"]) == reported


# --- invalid results

HOOKS = {
    "pytest_evalmode_policy(item, policy)": ("{'train': 'drop'}", "None"),
    "pytest_evalmode_models(item)": ("['no model']", "[nets.Net().eval()]"),
    "pytest_evalmode_rules()": ("['no rule']", "[]"),
    "pytest_evalmode_violation(item, violation)": ("'no'", "True"),
}
OTHER_INVALID_RESULTS = {
    "a rule that does not exist": (
        "pytest_evalmode_policy(item, policy)",
        "nets.Policy(allow=frozenset({'grad-mood'}))",
    ),
    "one model": ("pytest_evalmode_models(item)", "nets.Net()"),
    "a number of models": ("pytest_evalmode_models(item)", "3"),
    "a mapping to invalid values": ("pytest_evalmode_models(item)", "{'net': 3}"),
    "a mapping by number": ("pytest_evalmode_models(item)", "{1: nets.Net()}"),
    "a generator of invalid values": ("pytest_evalmode_models(item)", "(n for n in [1, 2])"),
    "one rule": ("pytest_evalmode_rules()", "nets.rule_named('edge')"),
    "a rule of the plugin": ("pytest_evalmode_rules()", "[nets.rule_named('train-mode')]"),
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


def write_invalid_hook(
    pytester: pytest.Pytester, hook: str, answer: str, *others: str, inner_folder: str = "inner"
) -> None:
    """Write a test, a conftest.py next to it whose hook returns `answer`, and a plugin whose hooks return `others`."""
    pytester.makepyfile(good="\n".join(f"import nets\ndef {hook}: return {other}\n" for other in others))
    pytester.syspathinsert()  # pytest 8.0 reads `pythonpath` after `-p`
    pytester.makeini("[pytest]\npythonpath = .\n" + ("addopts = -p good\n" if others else ""))
    folder = pytester.mkdir(inner_folder)
    (folder / "conftest.py").write_text(f"import nets\ndef {hook}: return {answer}\n", encoding="utf-8")
    (folder / "test_inner.py").write_text(f"from nets import *\n{BROKEN}", encoding="utf-8")
    write(pytester)
    with (pytester.path / "nets.py").open("a", encoding="utf-8") as nets:
        nets.write(RULE_NAMED)


def error_line(result: pytest.RunResult, hook: str) -> str:
    """Return the line with the error, which must be an error of the only test."""
    assert result.parseoutcomes().get("errors") == 1, result.outlines
    name = hook.partition("(")[0]
    (line,) = {line.strip() for line in result.outlines if line.startswith(("E ", name)) and " returned " in line}
    assert name in line
    return line


@pytest.mark.parametrize("others", [False, True], ids=["alone", "among others"])
@pytest.mark.parametrize("hook", HOOKS)
def test_an_invalid_result_error_names_the_hook_and_the_plugin(
    pytester: pytest.Pytester, hook: str, others: bool
) -> None:
    answer, good = HOOKS[hook]
    write_invalid_hook(pytester, hook, answer, *([good] if others else []))
    line = error_line(run(pytester), hook)
    assert "inner/conftest.py" in line
    assert "; expected " in line


@pytest.mark.parametrize(("hook", "answer"), OTHER_INVALID_RESULTS.values(), ids=OTHER_INVALID_RESULTS)
def test_other_invalid_results(pytester: pytest.Pytester, hook: str, answer: str) -> None:
    write_invalid_hook(pytester, hook, answer)
    assert "inner/conftest.py" in error_line(run(pytester), hook)


@pytest.mark.xdist
def test_an_invalid_result_under_xdist(pytester: pytest.Pytester) -> None:
    hook = "pytest_evalmode_policy(item, policy)"
    write_invalid_hook(pytester, hook, *HOOKS[hook])
    assert "inner/conftest.py" in error_line(run(pytester, "-n2"), hook)


def test_two_plugins_with_rules_of_the_same_name(pytester: pytest.Pytester) -> None:
    hook = "pytest_evalmode_rules()"
    write_invalid_hook(pytester, hook, "[nets.rule_named('edge')]", "[nets.rule_named('edge')]")
    result = run(pytester)
    assert "errors" in result.parseoutcomes()
    result.stdout.fnmatch_lines(["*; expected rules with unique names, but 'edge' is taken"])


def test_a_hook_that_raises_is_reported_with_its_line(pytester: pytest.Pytester) -> None:
    conftest(pytester, "def pytest_evalmode_models(item):\n    raise LookupError('no such server')\n")
    write(pytester, CLEAN)
    result = run(pytester)
    assert result.parseoutcomes().get("errors") == 1
    result.stdout.fnmatch_lines(["*conftest.py:2: LookupError"])


def test_hooks_are_not_called_if_no_test_is_guarded(pytester: pytest.Pytester) -> None:
    hooks = "".join(f"def {hook}: raise AssertionError\n" for hook in HOOKS if "rules" not in hook)
    conftest(pytester, hooks)
    write(pytester, "def test_unmarked():\n    infer(Net())\n")
    assert outcomes(pytester) == {"test_it.py::test_unmarked": "passed"}
