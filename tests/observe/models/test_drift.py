"""`state-drifted` end to end: a shared model changed between two guarded tests."""

from __future__ import annotations

from typing import Any

import pytest

from tests.suites import json_report, outcomes, run, write

STRICT = "--evalmode-strict"

SHARED = """
@pytest.fixture(scope="session")
def net():
    return Net().eval()

@pytest.fixture
def other():
    return 3

@pytest.mark.inference
def test_first(net):
    infer(net)
"""
LAST = """
@pytest.mark.inference
def test_last(net):
    infer(net)
"""
TRAINS = """
def test_trains(net):
    train(net)
    net.zero_grad()
"""
QUIET = """
def test_quiet(other):
    pass
"""


def drifts(pytester: pytest.Pytester, *args: str) -> dict[str, dict[str, Any]]:
    """Return the `state-drifted` violations by test; each must be the only violation of its test."""
    violations = {}
    for test in json_report(pytester, STRICT, *args)["tests"]:
        if test["violations"]:
            (violation,) = test["violations"]
            assert violation["rule"] == "state-drifted"
            violations[test["nodeid"].partition("::")[2]] = violation
    return violations


def suspects(violation: dict[str, Any]) -> list[str]:
    """Return the suspects, without the fixtures that other installed plugins use for every test."""
    return [what for what in violation["details"]["between"] if "fixture '_" not in what]


def drift(pytester: pytest.Pytester, *between: str) -> dict[str, Any]:
    """Return the violation of `test_last` if these tests run between it and `test_first`."""
    write(pytester, SHARED + "".join(between) + LAST)
    violations = drifts(pytester)
    assert set(violations) == {"test_last"}
    return violations["test_last"]


def test_drift_names_the_tensor_the_last_guarded_test_and_the_suspect(pytester: pytest.Pytester) -> None:
    violation = drift(pytester, TRAINS)
    assert violation["subjects"] == ["net.fc.weight"]
    assert violation["model"] == "net"
    assert violation["details"]["last_seen_by"] == "test_it.py::test_first"
    assert suspects(violation) == ["test_it.py::test_trains"]
    assert "max |Δ| 1, 16 of 16 elements" in violation["details"]["changes"]["net.fc.weight"]
    assert "deepcopy" in violation["remedy"]


def test_the_message_of_a_drift(pytester: pytest.Pytester) -> None:
    write(pytester, SHARED + TRAINS + LAST)
    run(pytester, STRICT).stdout.fnmatch_lines(
        [
            "*state-drifted: net.fc.weight changed since the last guarded test",
            "*net.fc.weight changed after test_it.py::test_first ended; tests run since: test_it.py::test_trains*",
        ]
    )


def test_suspects_that_used_the_model_and_recent_ones_come_first(
    pytester: pytest.Pytester,
) -> None:
    looks = "\ndef test_looks(net):\n    pass\n"
    violation = drift(pytester, TRAINS, QUIET, looks, QUIET.replace("quiet", "quiet_too"))
    between = suspects(violation)
    assert between[:2] == ["test_it.py::test_looks", "test_it.py::test_trains"]
    assert between.index("test_it.py::test_quiet_too") < between.index("test_it.py::test_quiet")
    assert "the setup of fixture 'other' for test_it.py::test_quiet" in between


@pytest.mark.parametrize("scope", ["function", "module"])
def test_the_setup_of_a_fixture_is_a_suspect(pytester: pytest.Pytester, scope: str) -> None:
    fixture = f"""
@pytest.fixture(scope="{scope}")
def tuned(net):
    train(net)
    net.zero_grad()
    return net
"""
    last = LAST.replace("(net):", "(tuned, net):")
    write(pytester, SHARED + fixture + last)
    (violation,) = drifts(pytester).values()
    where = "test_it.py::test_last" if scope == "function" else "test_it.py"
    assert suspects(violation) == [f"the setup of fixture 'tuned' for {where}"]
    assert violation["details"]["last_seen_by"] == "test_it.py::test_first"


def test_the_teardown_of_a_fixture_is_a_suspect(pytester: pytest.Pytester) -> None:
    fixtures = """
@pytest.fixture
def culprit(net):
    yield net
    train(net)
    net.zero_grad()

def test_uses(culprit):
    pass
"""
    between = suspects(drift(pytester, fixtures))
    assert "the teardown of fixture 'culprit' for test_it.py::test_uses" in between
    assert "the teardown of fixture 'other' for test_it.py::test_uses" not in between


def test_a_drift_is_reported_once(pytester: pytest.Pytester) -> None:
    write(pytester, SHARED + TRAINS + LAST + LAST.replace("last", "after"))
    assert set(drifts(pytester)) == {"test_last"}


def test_each_drift_is_reported(pytester: pytest.Pytester) -> None:
    again = TRAINS.replace("trains", "trains_again") + LAST.replace("last", "after")
    write(pytester, SHARED + TRAINS + LAST + again)
    violations = drifts(pytester)
    assert {test: v["details"]["last_seen_by"] for test, v in violations.items()} == {
        "test_last": "test_it.py::test_first",
        "test_after": "test_it.py::test_last",
    }
    assert suspects(violations["test_after"]) == ["test_it.py::test_trains_again"]


def test_a_change_by_a_guarded_test_is_reported_there_and_is_not_a_drift(pytester: pytest.Pytester) -> None:
    write(pytester, SHARED + "\n@pytest.mark.inference\n" + TRAINS.strip() + "\n" + LAST)
    tests = {test["nodeid"]: test["violations"] for test in json_report(pytester, STRICT)["tests"]}
    assert "state-mutated" in {v["rule"] for v in tests["test_it.py::test_trains"]}
    assert tests["test_it.py::test_last"] == []


def test_the_last_guarded_test_is_the_last_one_that_used_the_model(pytester: pytest.Pytester) -> None:
    elsewhere = "\n@pytest.mark.inference\ndef test_elsewhere():\n    infer(Net().eval())\n"
    assert drift(pytester, elsewhere, TRAINS)["details"]["last_seen_by"] == "test_it.py::test_first"


NO_DRIFT = {
    "nothing": "pass",
    "a reload of equal weights": "net.load_state_dict({k: v.clone() for k, v in net.state_dict().items()})",
    "equal weights in new tensors": "net.fc.weight = nn.Parameter(net.fc.weight.detach().clone())",
    "changed and restored": "w = net.fc.weight.data\n    old = w.clone()\n    w.zero_()\n    w.copy_(old)",
    "a copy is trained": "import copy\n    train(copy.deepcopy(net))",
    "the mode": "net.train()\n    net.eval()",
    "inference": "infer(net)",
    "a gradient": "net(torch.ones(2, 4)).sum().backward()\n    net.zero_grad()",
    "a non-persistent buffer": "net.register_buffer('cache', torch.ones(2), persistent=False)",
}
DRIFT = {
    "one element": "net.fc.weight.data[0, 0] += 1",
    "NumPy": "net.fc.weight.detach().numpy()[0] += 1",
    "replaced": "net.fc = nn.Linear(4, 4).eval()",
    "dtype": "net.double()\n    net.float()\n    net.fc.bias.data = net.fc.bias.data.half().float() + 1",
    "added": "net.register_buffer('more', torch.ones(2))",
    "loaded": "net.load_state_dict(Net().state_dict())",
}


@pytest.mark.parametrize("act", NO_DRIFT.values(), ids=NO_DRIFT)
def test_these_acts_are_not_a_drift(pytester: pytest.Pytester, act: str) -> None:
    write(pytester, f"{SHARED}\ndef test_acts(net):\n    {act}\n{LAST}")
    assert drifts(pytester) == {}


@pytest.mark.parametrize("act", DRIFT.values(), ids=DRIFT)
def test_these_acts_are_a_drift(pytester: pytest.Pytester, act: str) -> None:
    assert suspects(drift(pytester, f"\ndef test_acts(net):\n    {act}\n")) == ["test_it.py::test_acts"]


def test_a_model_in_a_dict_drifts(pytester: pytest.Pytester) -> None:
    source = (SHARED + TRAINS + LAST).replace("return Net().eval()", "return {'a': Net().eval()}")
    source = source.replace("infer(net)", "infer(net['a'])").replace("train(net)", "train(net['a'])")
    write(pytester, source.replace("net.zero_grad()", "net['a'].zero_grad()"))
    assert suspects(drifts(pytester)["test_last"]) == ["test_it.py::test_trains"]


def test_a_new_model_of_the_same_fixture_is_another_model(pytester: pytest.Pytester) -> None:
    source = SHARED.replace('"session"', '"module"')
    write(pytester, source, test_other=f"from nets import *\n{source}")
    assert drifts(pytester) == {}


def test_an_allowed_drift_is_not_reported_again(pytester: pytest.Pytester) -> None:
    allowed = LAST.replace("inference", 'inference(allow="state-drifted")')
    write(pytester, SHARED + TRAINS + allowed + LAST.replace("last", "after"))
    assert drifts(pytester) == {}


def test_drift_is_reported_only_in_strict_mode(pytester: pytest.Pytester) -> None:
    write(pytester, SHARED + TRAINS + LAST)
    assert set(outcomes(pytester).values()) == {"passed"}


# --- order, selection and xdist workers

ALL_KINDS = (
    SHARED
    + """
@pytest.mark.inference
def test_clean(net):
    infer(net)

@pytest.mark.inference
def test_no_forward():
    pass

@pytest.mark.inference
def test_frozen():
    Net().eval().requires_grad_(False)(torch.ones(2, 4))

@pytest.mark.inference(train="nothing")
def test_unused():
    infer(Net().eval())

@pytest.mark.inference
def test_leaks(net):
    infer(net)
    net.drop.train()

@pytest.mark.inference
def test_partial():
    net = Net().eval()
    net.load_state_dict({}, strict=False)
    infer(net)

@pytest.fixture(autouse=True)
def put_back(net):
    yield
    net.eval()
"""
)
RESULTS = {
    "first": set(),
    "clean": set(),
    "no_forward": {"no-forward"},
    "frozen": {"grad-mode"},
    "unused": {"unused-exemption"},
    "leaks": {"model-leaked"},
    "partial": {"partial-load"},
}
WAYS: dict[str, tuple[list[str], set[str]]] = {
    "as written": ([], set(RESULTS)),
    "by name": (["-k", "frozen or clean or leaks"], {"frozen", "clean", "leaks"}),
    "the failed": (["--lf"], {"no_forward", "frozen", "unused", "leaks", "partial"}),
    "the failed first": (["--ff"], set(RESULTS)),
    "one": (["test_it.py::test_unused"], {"unused"}),
}


@pytest.mark.parametrize(
    ("args", "ran"),
    [
        *(pytest.param(*way, id=name) for name, way in WAYS.items()),
        pytest.param(["-n2"], set(RESULTS), id="xdist", marks=[pytest.mark.xdist, pytest.mark.repetition]),
    ],
)
def test_neither_selection_nor_order_changes_a_result(
    pytester: pytest.Pytester, args: list[str], ran: set[str]
) -> None:
    write(pytester, ALL_KINDS)
    if args in (["--lf"], ["--ff"]):
        run(pytester, STRICT)
    tests = json_report(pytester, STRICT, *args)["tests"]
    assert {t["nodeid"].partition("::test_")[2]: {v["rule"] for v in t["violations"]} for t in tests} == {
        name: RESULTS[name] for name in ran
    }


def test_the_reverse_order_changes_no_result(pytester: pytest.Pytester) -> None:
    write(pytester, ALL_KINDS, conftest="def pytest_collection_modifyitems(items):\n    items.reverse()\n")
    tests = json_report(pytester, STRICT)["tests"]
    assert {t["nodeid"].partition("::test_")[2]: {v["rule"] for v in t["violations"]} for t in tests} == RESULTS


@pytest.mark.xdist
def test_each_xdist_worker_sees_its_own_order(pytester: pytest.Pytester) -> None:
    group = "@pytest.mark.xdist_group('{}')\n"
    first, trains, last = (
        source.replace("@pytest.mark.inference\n", "").replace("def test", f"{mark}def test", 1)
        for source, mark in (
            (SHARED, group.format("a") + "@pytest.mark.inference\n"),
            (TRAINS, group.format("b")),
            (LAST, group.format("a") + "@pytest.mark.inference\n"),
        )
    )
    write(pytester, first + trains + last)
    assert drifts(pytester, "-n2", "--dist=loadgroup") == {}  # another worker trained its own model
    assert set(drifts(pytester)) == {"test_last"}
    assert set(drifts(pytester, "-n1")) == {"test_last"}


def test_nothing_drifts_if_the_culprit_or_the_first_test_is_not_selected(pytester: pytest.Pytester) -> None:
    write(pytester, SHARED + TRAINS + LAST)
    assert drifts(pytester, "-k", "not trains") == {}
    assert drifts(pytester, "-k", "trains or last") == {}  # no guarded test saw the old state


def test_a_submodule_that_is_also_a_fixture_is_a_model_of_its_own(pytester: pytest.Pytester) -> None:
    """This holds for tests that use both fixtures."""
    write(
        pytester,
        """
@pytest.fixture(scope="session")
def backbone():
    return Net().eval()

@pytest.fixture(scope="session")
def model(backbone):
    return nn.Sequential(nn.Linear(4, 4), backbone).eval()

@pytest.mark.inference
def test_both(backbone, model):
    infer(model)

@pytest.mark.inference
def test_whole(model):
    infer(model)

@pytest.mark.inference
def test_part(backbone):
    infer(backbone)

@pytest.mark.inference
def test_both_again(backbone, model):
    infer(model)

def test_trains(backbone):
    train(backbone)
    backbone.zero_grad()

@pytest.mark.inference
def test_whole_again(model):
    infer(model)
""",
    )
    assert {name: v["subjects"] for name, v in drifts(pytester).items()} == {
        "test_whole_again": ["model.1.fc.weight"],
    }


def test_a_skipped_test_leaves_the_drift_to_the_next_test(pytester: pytest.Pytester) -> None:
    skips = "\n@pytest.mark.inference\ndef test_skips(net):\n    infer(net)\n    pytest.skip()\n"
    fails = "\n@pytest.mark.inference\ndef test_fails(net):\n    infer(net)\n    assert False\n"
    write(pytester, SHARED + TRAINS + skips + LAST)
    assert set(drifts(pytester)) == {"test_last"}
    write(pytester, SHARED + TRAINS + fails + LAST)
    assert set(drifts(pytester)) == {"test_fails"}


def test_a_testcase_may_restore_a_leak_in_teardown(pytester: pytest.Pytester) -> None:
    """`tearDown` runs in the window, but is not observed: only a value that it does not restore is a leak."""
    write(
        pytester,
        """
import unittest

@pytest.mark.inference
class Tests(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.net = Net().eval()

    def setUp(self):
        self.net.eval()

    def tearDown(self):
        if self.id().endswith("test_put_back"):
            self.net.eval()

    def test_clean(self):
        infer(self.net)

    def test_leaks(self):
        infer(self.net)
        self.net.train()

    def test_put_back(self):
        infer(self.net)
        self.net.train()
""",
    )
    found = {t["nodeid"].rpartition("::")[2]: t["violations"] for t in json_report(pytester, STRICT)["tests"]}
    assert {name: [v["rule"] for v in violations] for name, violations in found.items()} == {
        "test_clean": [],
        "test_leaks": ["model-leaked"],
        "test_put_back": [],
    }
