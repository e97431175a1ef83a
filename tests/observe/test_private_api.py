"""Names without a guarantee: this version of torch, Python and the kernel has them, and without one a guard works."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from pkgutil import resolve_name

import pytest
import torch
from torch import nn

from pytest_evalmode.observe.private_api import HOOK_TABLES, MAPS, MAX_MAP_COUNT, OPTIONAL, PAGEMAP
from tests import forked

ATTRIBUTES: Mapping[str, Mapping[str, str]] = {
    "torch.nn:Module": {
        **dict.fromkeys(("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"), "the guard"),
        **dict.fromkeys(HOOK_TABLES, "that a test left such a hook on a shared model"),
        "_compiled_call_impl": "batch statistics in models that are compiled in place",
    },
    "torch:Tensor": {
        "_version": "changes of gradients, and of tensors that cannot be read",
        **dict.fromkeys(("_indices", "_values"), "the content of sparse tensors"),
        "_nested_tensor_size": "the content of nested tensors",
    },
    "torch:UntypedStorage": {"_cdata": "which tensors share their memory"},
    "torch.nested._internal.nested_tensor:NestedTensor": dict.fromkeys(
        ("_values", "_offsets", "_lengths"), "the content of jagged tensors"
    ),
    "torch.distributed.tensor:DTensor": {"_local_tensor": "the content of sharded tensors"},
    "sys": {"_getframe": "the guard"},
}
"""What is lost without each attribute. Such a loss is an error of the guard: state that is not read is not clean."""

EXAMPLES: dict[str, Callable[[], object]] = {
    "torch.nn:Module": nn.Module,
    "torch:UntypedStorage": lambda: torch.ones(1).untyped_storage(),
    "torch.nested._internal.nested_tensor:NestedTensor": lambda: torch.nested.nested_tensor(
        [torch.ones(1)], layout=torch.jagged
    ),
}
"""Instances, where the class alone does not show the attributes."""

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has it")


@pytest.mark.parametrize("name", [pytest.param(n, marks=linux) if n == "fcntl" else n for n in OPTIONAL])
def test_this_version_has_the_name(name: str) -> None:
    resolve_name(name)


@pytest.mark.parametrize(("owner", "name"), [(owner, name) for owner, names in ATTRIBUTES.items() for name in names])
def test_this_version_has_the_attribute(owner: str, name: str) -> None:
    if "distributed" in owner and not torch.distributed.is_available():
        pytest.skip("torch was built without torch.distributed")
    value = EXAMPLES[owner]() if owner in EXAMPLES else resolve_name(owner)
    assert hasattr(value, name)


@linux
@pytest.mark.parametrize("path", [MAPS, PAGEMAP, MAX_MAP_COUNT])
def test_this_kernel_has_the_file(path: str) -> None:
    assert Path(path).exists()


# Imports the package without these names, and guards clean and unclean inference.
SCRIPT = """
import json, os, pkgutil, sys, sysconfig
import torch
from torch import nn

find = pkgutil.resolve_name

def resolve_name(name):
    if name in missing:
        raise AttributeError(name)
    return find(name)

def verdicts():
    for name in [name for name in sys.modules if name.startswith("pytest_evalmode")]:
        del sys.modules[name]
    from pytest_evalmode import HygieneError, guard
    from pytest_evalmode.errors import GuardError

    def judge(run, train=False, strict=True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()).train(train)
        try:
            with guard(net, strict=strict):
                run(net, torch.ones(4, 4))
        except HygieneError as error:
            return [violation.rule for violation in error.violations]
        except Exception as error:
            return repr(error)
        return []

    def write(net, x):
        net(x)
        net[0].weight.data[0, 0] += 1

    quiet = torch.no_grad()
    return [
        judge(quiet(lambda net, x: net(x))),
        judge(quiet(lambda net, x: net(x)), train=True, strict=False),
        judge(lambda net, x: net(x), strict=False),
        judge(quiet(write), strict=False),
    ]
"""

WITHOUT_NAMES = """
from pytest_evalmode.observe.private_api import OPTIONAL

missing, pkgutil.resolve_name = set(OPTIONAL), resolve_name
"""

WITHOUT_LINUX = """
import builtins, platform

open_file = builtins.open

def open(file, *args, **kwargs):
    if str(file).startswith("/proc"):
        raise FileNotFoundError(file)
    return open_file(file, *args, **kwargs)

sysconfig.get_paths()  # cached from here on
sys.modules["fcntl"], builtins.open, sys.platform, platform.machine = None, open, "win32", lambda: "AMD64"
del os.register_at_fork
"""

EXPECTED = [[], ["train-mode", "state-mutated"], ["grad-mode"], ["state-mutated"]]


@pytest.mark.parametrize("platform", [WITHOUT_NAMES, WITHOUT_LINUX], ids=["no names", "no fcntl, /proc and forks"])
def test_a_guard_judges_without(platform: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"{SCRIPT}{platform}print(json.dumps(verdicts()))", encoding="utf-8")
    done = forked.run_script(script)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == EXPECTED
