"""Every way to run a model is seen, and none of them notices."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial, wraps
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.func import functional_call, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

from pytest_evalmode import HygieneError, guard
from tests.nets import Net, batch, only, rules, watching

pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]

Run = Callable[[nn.Module, Tensor], object]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    assert not hasattr(nn.Module.__call__, "__wrapped__")


# --- ways to run a model


def threaded(model: nn.Module, x: Tensor) -> None:
    def work() -> None:
        with torch.no_grad():  # grad mode is a matter of the thread
            model(x)

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(work) for _ in range(3)]:
            future.result()


def bare_thread(model: nn.Module, x: Tensor) -> None:
    def work() -> None:
        with torch.no_grad():
            model(x)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def ensemble(model: nn.Module, x: Tensor) -> None:
    params, buffers = stack_module_state([model, model])

    def member(params: dict[str, Tensor], buffers: dict[str, Tensor]) -> object:
        return functional_call(model, (params, buffers), (x,))

    vmap(member, randomness="different")(params, buffers)


def inside_another(model: nn.Module, x: Tensor) -> None:
    shell = nn.Sequential(model, nn.ReLU())
    shell.training = False
    shell(x)


WAYS: dict[str, Run] = {
    "called": lambda m, x: m(x),
    "by keyword": lambda m, x: m(x=x),
    "forward called directly": lambda m, x: m.forward(x),
    "inside another": inside_another,
    "in a shell in training mode": lambda m, x: nn.Sequential(nn.ReLU(), m)(x),
    "on worker threads": threaded,
    "on a thread": bare_thread,
    "functional_call": lambda m, x: functional_call(m, {k: p * 1 for k, p in m.named_parameters()}, (x,)),
    "mapped": lambda m, x: vmap(m, in_dims=0, randomness="different")(x[None]),
    "as an ensemble": ensemble,
    "DataParallel": lambda m, x: nn.DataParallel(m)(x),
    "compiled": lambda m, x: torch.compile(m, backend="eager")(x),
    "in inference mode": lambda m, x: torch.inference_mode()(m)(x),
    "checkpointed": lambda m, x: checkpoint(m, x, use_reentrant=False),
    "with hooks": lambda m, x: (m.register_forward_hook(lambda m, a, o: None), m(x)),
}
every_way = pytest.mark.parametrize("run", WAYS.values(), ids=WAYS)


class Dropper(nn.Module):
    """Has no statistics that vmap could not write to."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.drop(self.head(x))
        return out


@every_way
def test_a_clean_model_is_clean(run: Run) -> None:
    with watching() as g, torch.no_grad():
        run(Dropper().eval(), batch())
    assert not rules(g)


@every_way
def test_a_forgotten_eval_is_seen(run: Run) -> None:
    with watching() as g, torch.no_grad():
        run(Dropper(), batch())
    assert any("drop (Dropout)" in subject for subject in only(g, "train-mode").subjects)


@every_way
def test_a_forgotten_no_grad_is_seen(run: Run) -> None:
    with watching() as g:
        run(Dropper().eval(), batch())
    brings_its_own = run in (threaded, bare_thread, WAYS["in inference mode"])
    assert rules(g) == (set() if brings_its_own else {"grad-mode"})


class Noisy(Dropper):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.head(x))


@every_way
def test_a_draw_in_eval_mode_is_seen(run: Run) -> None:
    model: nn.Module = Noisy().eval()
    if run is WAYS["forward called directly"]:
        model = nn.Sequential(model)  # what such a forward does by itself nobody sees, but its parts are seen
    with watching() as g, torch.no_grad():
        run(model, batch())
    violation = only(g, "random-forward")
    assert violation.cause is not None
    assert violation.cause.source == "return F.dropout(self.head(x))"


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


class Noise(nn.Module):
    """Draws, in training mode alone, by a name that says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.make = torch.rand_like

    def forward(self, x: Tensor) -> Tensor:
        return x + self.make(x) if self.training else x


def with_a_hook(act: Callable[[nn.Module], object]) -> nn.Module:
    drop = nn.Dropout()
    drop.register_forward_pre_hook(lambda module, args: (act(module), None)[1])
    return drop


def script(model: nn.Module) -> Any:
    return torch.jit.script(model)


TRAINING: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "a name that says nothing": (Noise, lambda m: m.train()),
    "compiled": (lambda: torch.compile(Dropper(), backend="eager"), lambda m: m.train()),
    "compiled, a part of it": (lambda: torch.compile(Dropper(), backend="eager"), lambda m: m._orig_mod.drop.train()),
    "compiled in place": (lambda: compiled_in_place(Dropper()), lambda m: m.train()),
    "scripted": (lambda: script(Dropper()), lambda m: m.train()),
    "set by a hook": (lambda: with_a_hook(lambda drop: drop.train()), lambda m: None),
}


@pytest.mark.parametrize(("make", "train"), TRAINING.values(), ids=TRAINING)
@torch.no_grad()
def test_a_draw_of_a_part_in_training_mode_is_told_as_that(
    make: Callable[[], Any], train: Callable[[Any], object]
) -> None:
    model = nn.Sequential(nn.Linear(4, 4), make()).eval()
    train(model[1])
    with watching() as g:
        model(batch())
    assert rules(g) == {"train-mode"}


class Typed(Dropper):
    """Tells type checkers what a call returns, as some ask for it; so its own calls go past every wrapper."""

    __call__ = nn.Module.__call__


@torch.no_grad()
def test_a_class_that_names_the_method_of_torch_its_own_is_known_by_its_parts() -> None:
    with watching() as g:
        Typed()(batch())
    assert only(g, "train-mode").model == "Typed"
    with watching() as g:
        Typed().eval()(batch())
    assert not rules(g)


@torch.no_grad()
def test_every_call_of_every_thread_is_counted() -> None:
    model, interval = nn.Dropout(0.0), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with watching() as g, ThreadPoolExecutor(4) as pool:
            for future in [pool.submit(model, torch.ones(1)) for _ in range(2000)]:
                future.result()
    finally:
        sys.setswitchinterval(interval)
    assert only(g, "train-mode").count == 2000


@torch.no_grad()
def test_a_net_whose_weights_are_those_of_a_transform() -> None:
    def predict(scale: Tensor) -> Tensor:
        net = nn.LayerNorm(4, bias=False).eval()
        net.weight = None  # type: ignore[assignment]
        net.register_buffer("scale", scale)
        out: Tensor = net(torch.ones(2, 4)) * scale
        return out

    with watching() as g:
        assert vmap(predict)(torch.ones(3, 4)).shape == (3, 2, 4)
    assert not rules(g)


def test_no_grad_does_not_reach_a_worker_thread() -> None:
    model = Dropper().eval()
    with watching() as g, torch.no_grad(), ThreadPoolExecutor(1) as pool:
        pool.submit(model, batch()).result()
    violation = only(g, "grad-mode")
    assert violation.at is not None
    assert "no_grad() holds only in the thread that enters it" in violation.finding
    with watching() as g:
        model(batch())
    assert "thread" not in only(g, "grad-mode").finding


@pytest.fixture
def process_group() -> Iterator[None]:
    store = torch.distributed.HashStore()  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


DISTRIBUTED: dict[str, Callable[[nn.Module], Any]] = {
    "DDP": nn.parallel.DistributedDataParallel,
    "FSDP": lambda m: FullyShardedDataParallel(m, device_id=torch.device("cpu"), use_orig_params=True),
    "FSDP2": lambda m: fully_shard(m),
}


@pytest.mark.filterwarnings("ignore")  # torch's own
@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("distribute", DISTRIBUTED.values(), ids=DISTRIBUTED)
@pytest.mark.parametrize("watched", [True, False], ids=["watched", "seen"])
@torch.no_grad()
def test_distributed(distribute: Callable[[nn.Module], Any], watched: bool) -> None:
    model = distribute(Net()).eval()
    with watching(*[model] if watched else []) as g:
        model(batch())
        model(batch())
    assert not rules(g)
    with watching() as g:
        model.train()(batch())
    assert "train-mode" in rules(g)


# --- modules that no model knows of


class Listed(nn.Module):
    """Blocks in a plain list, which `eval()` cannot reach."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)
        self.blocks = [*blocks]

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(x)
        return out


class Maker(nn.Module):
    """Makes a layer in every forward."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)
        self.make = make

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.make()(self.head(x))
        return out


@torch.no_grad()
def test_a_block_in_a_plain_list() -> None:
    with watching() as g:
        Listed(nn.ReLU(), nn.Dropout()).eval()(batch())
    violation = only(g, "train-mode")
    assert violation.subjects == ("Listed.blocks[1] (Dropout)",)
    assert "register it as a submodule" in violation.remedy
    assert violation.cause is not None
    assert violation.cause.source == "x = block(x)"


@torch.no_grad()
def test_a_part_of_a_block_in_a_plain_list() -> None:
    with watching() as g:
        Listed(nn.Sequential(nn.ReLU(), nn.Dropout())).eval()(batch())
    assert only(g, "train-mode").subjects == ("Listed.blocks[0].1 (Dropout)",)


@torch.no_grad()
def test_blocks_in_a_plain_list_that_were_not_forgotten() -> None:
    with watching() as g:
        Listed(nn.GELU(), nn.Dropout().eval(), nn.Linear(4, 4).eval()).eval()(batch())
    assert not rules(g)


@torch.no_grad()
def test_state_in_a_plain_list_is_watched() -> None:
    model = Listed(nn.Linear(4, 4).eval()).eval()
    with watching() as g:
        model(batch())
        model.blocks[0].get_parameter("bias").add_(1)
    assert only(g, "state-mutated").subjects == ("Listed.blocks[0].bias",)


@torch.no_grad()
def test_a_layer_made_in_forward() -> None:
    with watching() as g:
        Maker(nn.Dropout).eval()(batch())
    assert only(g, "train-mode").subjects == ("Maker.<Dropout> (Dropout)",)


@pytest.mark.parametrize("make", [nn.GELU, partial(nn.Softmax, -1), nn.Identity, lambda: nn.Dropout().eval()])
@torch.no_grad()
def test_a_layer_made_in_forward_that_does_no_harm(make: Callable[[], nn.Module]) -> None:
    with watching() as g:
        Maker(make).eval()(batch())
    assert not rules(g)


# --- modes that mean nothing


@pytest.mark.parametrize(
    "run",
    [
        lambda x: nn.CrossEntropyLoss()(x, torch.zeros(8, dtype=torch.long)),
        lambda x: nn.Sequential(nn.Flatten(), nn.ReLU())(x),
        lambda x: nn.Sequential(nn.Softmax(-1), Dropper().eval())(x),
        lambda x: nn.DataParallel(Dropper().eval())(x),
        lambda x: nn.BatchNorm1d(4).eval()(x),
    ],
)
@torch.no_grad()
def test_a_flag_without_effect(run: Callable[[Tensor], object]) -> None:
    with watching() as g:
        run(batch())
    assert not rules(g)


# --- autograd


@pytest.mark.parametrize(
    ("run", "recorded"),
    [
        (lambda x: Net().eval()(x), True),
        (lambda x: Net().eval().requires_grad_(False)(x), False),
        (lambda x: Net().eval().requires_grad_(False)(x.requires_grad_()), True),
        (lambda x: torch.no_grad()(Net().eval())(x.requires_grad_()), False),
        (lambda x: nn.Softmax(-1)(x.requires_grad_()), False),  # no model
        (lambda x: NoGradInside().eval()(x), False),
        (lambda x: NoGradOn().eval()(x), False),
        (lambda x: NoGradForAMask(nn.Linear(4, 4)).eval()(x), True),
        (lambda x: NoGradForAMask(nn.LSTM(4, 4)).eval()(x), True),
        (lambda x: NoGradForAMask(NoGradOn()).eval()(x), False),
        (lambda x: NoGradForAMask(nn.Linear(4, 4)).eval().requires_grad_(False)(x), False),
        (lambda x: GradInside().eval()(x), True),
        (lambda x: torch.no_grad()(GradInside().eval())(x), True),
    ],
)
def test_what_records(run: Callable[[Tensor], object], recorded: bool) -> None:
    with watching() as g:
        run(batch())
    assert rules(g) == ({"grad-mode"} if recorded else set())


class NoGradInside(Dropper):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x)


class NoGradOn(Dropper):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class NoGradForAMask(nn.Module):
    """Turns grad mode off for a part of its forward; no tensor comes out of it that says so."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> SimpleNamespace:
        with torch.no_grad():
            mask = x != 0
        out = self.body(x)
        return SimpleNamespace(out=out[0] if isinstance(out, tuple) else out, mask=mask)


class GradInside(Dropper):
    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            return super().forward(x)


def test_a_forward_that_turns_autograd_on_is_told_to_leave_it_off() -> None:
    with watching() as g, torch.no_grad():
        GradInside().eval()(batch())
    assert only(g, "grad-mode").remedy.startswith("keep the forward from turning autograd on again")
    with watching() as g:
        GradInside().eval()(batch())
    assert only(g, "grad-mode").remedy.startswith("call it under torch.inference_mode()")


# --- batch statistics


@pytest.mark.parametrize(("tracked", "expected"), [(False, {"batch-stats"}), (True, set())])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: m,
        lambda m: torch.compile(m, backend="eager"),
        compiled_in_place,
        lambda m: nn.Sequential(nn.ReLU(), cast(nn.Module, torch.compile(m, backend="eager"))),
        lambda m: nn.Sequential(nn.ReLU(), compiled_in_place(m)),
    ],
    ids=["plain", "compiled", "compiled in place", "a part compiled", "a part compiled in place"],
)
@torch.no_grad()
def test_batch_norm_without_running_statistics(
    wrap: Callable[[nn.Module], nn.Module], tracked: bool, expected: set[str]
) -> None:
    model = wrap(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=tracked)).eval())
    with watching() as g:
        model.eval()(batch())
    assert rules(g) == expected


@torch.no_grad()
def test_training_mode_explains_the_statistics_of_the_batch() -> None:
    with watching() as g:
        nn.BatchNorm1d(4, track_running_stats=False)(batch())
    assert rules(g) == {"train-mode"}


# --- graphs


def trace(model: nn.Module, x: Tensor, check: bool) -> Any:
    return torch.jit.trace(model, x, check_trace=check and not model.training)  # type: ignore[no-untyped-call]


GRAPHS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "trace": partial(trace, check=False),
    "trace and check": partial(trace, check=True),
    "script": lambda m, x: torch.jit.script(m),
    "freeze": lambda m, x: torch.jit.freeze(torch.jit.script(m.eval())),
    "fx": lambda m, x: torch.fx.symbolic_trace(m),
    "export": lambda m, x: torch.export.export(m, (x,)).module(),
    "export, strict": lambda m, x: torch.export.export(m, (x,), strict=True).module(),
}
every_graph = pytest.mark.parametrize("make", GRAPHS.values(), ids=GRAPHS)


@every_graph
def test_making_a_graph_is_not_inference(make: Callable[[nn.Module, Tensor], Any]) -> None:
    with watching() as g:
        make(Dropper().eval(), batch())
    assert not rules(g)
    assert [model.forwards for model in g.models] in ([], [0])


@every_graph
@torch.no_grad()
def test_a_graph_of_an_eval_model_is_clean(make: Callable[[nn.Module, Tensor], Any]) -> None:
    with watching() as g:
        graph = make(Net().eval(), batch())
        graph(batch())
        graph(batch())
    assert not rules(g)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:.*reduce_range", "ignore:.*quantize")
@torch.no_grad()
def test_quantising_is_not_inference() -> None:
    """Its observers change while torch makes the model; the model that comes out does not."""
    with watching() as g:
        model = torch.ao.quantization.quantize_dynamic(Net().eval(), {nn.Linear})  # type: ignore[no-untyped-call]
        model(batch())
        model(batch())
    assert not rules(g)


@pytest.mark.parametrize(
    ("name", "then_eval", "expected"),
    [
        ("script", False, {"train-mode", "state-mutated"}),
        ("script", True, set()),
        ("fx", False, {"train-mode", "state-mutated"}),
        ("fx", True, set()),
        ("trace", True, {"batch-stats", "random-forward", "state-mutated"}),
        ("export", False, {"batch-stats", "random-forward", "state-mutated"}),
        ("export, strict", False, {"batch-stats", "random-forward", "state-mutated"}),
    ],
)
@torch.no_grad()
def test_a_graph_of_a_training_model(name: str, then_eval: bool, expected: set[str]) -> None:
    with watching() as g:
        graph = GRAPHS[name](Net(), batch())
        if then_eval:
            graph.eval()
        graph(batch())
    assert rules(g) == expected


# --- torch.compile


@torch.no_grad()
def test_guarding_compiles_nothing_again() -> None:
    frames = CompileCounter()
    model = torch.compile(Net().eval(), backend=frames, fullgraph=True)
    x = batch()
    expected = model(x)
    for guarded in (True, False, True, True, False):
        if guarded:
            with guard():
                assert torch.equal(model(x), expected)
        else:
            assert torch.equal(model(x), expected)
    assert frames.frame_count == 1


@torch.no_grad()
def test_compiled_inside_the_window_it_stays_compiled() -> None:
    frames = CompileCounter()
    model = torch.compile(Net().eval(), backend=frames, fullgraph=True)
    x = batch()
    with guard():
        expected = model(x)
        model(x)
    assert torch.equal(model(x), expected)
    with guard():
        model(x)
    assert frames.frame_count == 1


@pytest.mark.parametrize("in_place", [True, False])
@torch.no_grad()
def test_a_compiled_model_is_seen(in_place: bool) -> None:
    model: Any = Net()
    if in_place:
        model.compile(backend="eager", fullgraph=True)
    else:
        model = torch.compile(model, backend="eager", fullgraph=True)
    with watching() as g:
        model(batch())
    assert rules(g) == {"train-mode", "state-mutated"}
    model.eval()
    with watching() as g:
        model(batch())
    assert not rules(g)


@pytest.mark.filterwarnings("ignore")  # inductor warns about what it finds here
@torch.no_grad()
def test_inductor() -> None:
    model: Any = torch.compile(Net().eval(), fullgraph=True)
    x = batch()
    expected = model(x)
    with watching() as g:
        assert torch.equal(model(x), expected)
        model.train()
        model(x)
    assert rules(g) == {"train-mode", "state-mutated"}


# --- windows in windows


@torch.no_grad()
def test_nested_guards_each_see_what_runs_in_them() -> None:
    model = Net()
    with watching() as outer:
        with watching() as inner:
            model(batch())
        model.eval()(batch())
    assert rules(inner) == {"train-mode", "state-mutated"}
    assert rules(outer) == {"train-mode", "state-mutated"}
    (facts,) = outer.models
    assert facts.forwards == 2


@torch.no_grad()
def test_guards_that_overlap() -> None:
    first, second = guard(allow=["train-mode", "state-mutated"]), guard()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    Net()(batch())
    with pytest.raises(HygieneError, match="train-mode"):
        second.__exit__(None, None, None)


@torch.no_grad()
def test_a_window_inside_a_forward() -> None:
    class Careful(Dropper):
        def forward(self, x: Tensor) -> Tensor:
            with guard():
                return super().forward(x)

    with watching() as g:
        Careful().eval()(batch())
    assert not rules(g)


def test_the_method_is_put_back() -> None:
    original = nn.Module.__call__
    with guard(), guard():
        assert nn.Module.__call__ is not original
    assert nn.Module.__call__ is original
    with pytest.raises(KeyError), guard():
        raise KeyError
    assert nn.Module.__call__ is original


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Wrap the method as a profiler would; tells the types of the modules that were called from then on."""

    def wrap() -> list[str]:
        seen: list[str] = []
        beneath = nn.Module.__call__

        @wraps(beneath)
        def wrapped(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            seen.append(type(self).__name__)
            return beneath(self, *args, **kwargs)

        monkeypatch.setattr(nn.Module, "__call__", wrapped)
        return seen

    return wrap


def guarded_once() -> int:
    """How often a guard sees a model that runs once."""
    with watching() as g, torch.no_grad():
        Dropper()(batch())
    return only(g, "train-mode").count


def test_who_wraps_the_method_before_the_window(calls: Callable[[], list[str]]) -> None:
    seen = calls()
    wrapped = nn.Module.__call__
    assert guarded_once() == 1
    assert nn.Module.__call__ is wrapped
    assert seen == ["Dropper", "Linear", "Dropout"]


def test_who_wraps_the_method_inside_the_window_and_undoes_it_there(
    calls: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = nn.Module.__call__
    with watching() as g, torch.no_grad():
        seen = calls()
        Dropper()(batch())
        monkeypatch.undo()
        Dropper()(batch())
    assert seen == ["Dropper", "Linear", "Dropout"]
    assert [violation.model for violation in g.violations] == ["Dropper", "Dropper#2"]
    assert nn.Module.__call__ is original


def test_who_wraps_the_method_inside_the_window_and_undoes_it_later(
    calls: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = nn.Module.__call__
    with watching() as g, torch.no_grad():
        calls()
        Dropper()(batch())
    assert only(g, "train-mode").count == 1
    monkeypatch.undo()
    assert guarded_once() == 1
    assert nn.Module.__call__ is original


def test_who_wraps_the_method_inside_the_window_for_good(
    calls: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = nn.Module.__call__
    try:
        with guard():
            seen = calls()
        wrapped = nn.Module.__call__
        assert guarded_once() == 1
        assert nn.Module.__call__ is wrapped
        assert seen == ["Dropper", "Linear", "Dropout"]
    finally:
        monkeypatch.undo()
        nn.Module.__call__ = original  # type: ignore[method-assign]


@torch.no_grad()
def test_torch_wraps_the_method_for_a_while_inside_the_window() -> None:
    with watching() as g:
        torch.fx.symbolic_trace(Dropper().eval())
        Dropper()(batch())
    assert only(g, "train-mode").count == 1


# --- forwards that end otherwise


class Stop(BaseException):
    """What `pytest.fail` and Ctrl-C raise is no Exception."""


class Raises(nn.Module):
    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        raise self.error


@pytest.mark.parametrize("error", [ValueError, Stop, KeyboardInterrupt, SystemExit, GeneratorExit])
@torch.no_grad()
def test_after_a_forward_that_raised_all_goes_on(error: type[BaseException]) -> None:
    with watching() as g:
        with pytest.raises(error):
            nn.Sequential(nn.Linear(4, 4), Raises(error)).eval()(batch())
        torch.rand(1)  # outside of any forward
        Net().eval()(batch())
    assert not rules(g)
    with watching() as g:
        with pytest.raises(error):
            Raises(error).eval()(batch())
        Dropper()(batch())
        with pytest.raises(error):
            nn.Sequential(nn.Dropout(), Raises(error))(batch())
    assert [subject for v in g.violations for subject in v.subjects] == [
        "Dropper.drop (Dropout)",
        "Sequential.0 (Dropout)",
    ]


class Tree(nn.Module):
    def __init__(self, leaf: nn.Module) -> None:
        super().__init__()
        self.merge = nn.Linear(8, 4)
        self.leaf = leaf

    def forward(self, node: Any) -> Tensor:
        out: Tensor = (
            self.leaf(node) if isinstance(node, Tensor) else self.merge(torch.cat([self(child) for child in node], -1))
        )
        return out


@pytest.mark.parametrize(("leaf", "expected"), [(nn.Tanh(), set()), (Noisy(), {"random-forward"})])
@torch.no_grad()
def test_recursion(leaf: nn.Module, expected: set[str]) -> None:
    if isinstance(leaf, Noisy):
        leaf.head = nn.Linear(4, 4)
    x = batch()
    with watching() as g:
        Tree(leaf).eval()((x[0], ((x[1], x[2]), x[3])))
    assert rules(g) == expected
    assert [model.forwards for model in g.models] == [1]


# --- draws


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda x: F.dropout(x, 1e-9), {"random-forward"}),
        (lambda x: F.dropout(x, 0.0), set()),
        (lambda x: F.dropout(x, training=False), set()),
        (lambda x: x + torch.randn_like(x), {"random-forward"}),
        (lambda x: x + torch.randn(4, generator=torch.Generator()), set()),
        (lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1), {"random-forward"}),
        (lambda x: F.scaled_dot_product_attention(x, x, x), set()),
        (lambda x: torch.manual_seed(0) and x, {"random-forward"}),
        (lambda x: torch.empty_like(x).copy_(x), set()),
    ],
)
@torch.no_grad()
def test_what_draws(forward: Callable[[Tensor], Tensor], expected: set[str]) -> None:
    model = nn.Linear(4, 4).eval()
    model.forward = forward  # type: ignore[method-assign, assignment]
    with watching() as g:
        model(batch())
    assert rules(g) == expected


@torch.no_grad()
def test_what_is_drawn_between_forwards_is_nobodys() -> None:
    model = Net().eval()
    with watching() as g:
        for _ in range(3):
            model(torch.randn(2, 4))
            torch.multinomial(model(batch()).softmax(-1), 1)
    assert not rules(g)


@torch.no_grad()
def test_what_is_drawn_and_put_back_is_no_draw() -> None:
    def forward(x: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return x @ torch.randn(4, 4)

    model = nn.Linear(4, 4).eval()
    model.forward = forward  # type: ignore[method-assign, assignment]
    with watching() as g:
        model(batch())
    assert not rules(g)


class Forked(Dropper):
    """Draws in a part of itself, and puts the generator back."""

    def __init__(self) -> None:
        super().__init__()
        self.noisy = Noisy()

    def forward(self, x: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            out: Tensor = self.noisy(x)
        return out


@torch.no_grad()
def test_what_a_part_draws_may_be_put_back_by_the_whole() -> None:
    with watching() as g:
        Forked().eval()(batch())
    assert not rules(g)


# --- what guarding does to what it guards


class Sequence(nn.Module):
    """Takes the first of what a recurrent or an attention layer returns."""

    def __init__(self, layer: nn.Module, *further: Any) -> None:
        super().__init__()
        self.layer = layer
        self.further = further

    def forward(self, x: Tensor) -> Tensor:
        args = (x, x) if isinstance(self.layer, nn.MultiheadAttention) else ()
        out: Tensor = self.layer(x, *args)[0]
        return out


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.1, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: Net(), (8, 4)),
    "convolutional": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2)),
        (2, 3, 8, 8),
    ),
    "transformer": (transformer, (2, 5, 16)),
    "attention": (lambda: Sequence(nn.MultiheadAttention(16, 4, 0.1, batch_first=True)), (2, 5, 16)),
    "recurrent": (lambda: Sequence(nn.LSTM(16, 16, 2, dropout=0.2, batch_first=True)), (2, 5, 16)),
}
every_model = pytest.mark.parametrize(("make", "shape"), MODELS.values(), ids=MODELS)


@every_model
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_the_numbers_are_the_same_to_the_bit(
    make: Callable[[], nn.Module], shape: tuple[int, ...], training: bool
) -> None:
    """Outputs, random numbers, gradients, state: with the guard and without."""

    def run() -> list[Tensor]:
        torch.manual_seed(0)
        model, x = make().train(training), torch.randn(shape)
        with torch.inference_mode():
            inferred = model(x)
        trained = model(x)
        trained.sum().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        return [inferred, trained, *gradients, *model.state_dict().values(), torch.get_rng_state()]

    plain = run()
    with watching():
        guarded = run()
    assert all(torch.equal(a, b) for a, b in zip(plain, guarded, strict=True))


@every_model
def test_the_model_is_left_as_it_was(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    def facts() -> list[object]:
        return [
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.get_default_dtype(),
            torch.are_deterministic_algorithms_enabled(),
            [sorted(vars(module)) for module in model.modules()],
            [module.training for module in model.modules()],
            [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
            {name: len(value) for name, value in hooks.items() if isinstance(value, dict)},
            [(p.requires_grad, p.grad, p._version, p.data_ptr()) for p in model.parameters()],
        ]

    hooks = {name: value for name, value in vars(torch.nn.modules.module).items() if name.startswith("_global_")}
    model = make().eval()
    before = facts()
    with watching(model), torch.no_grad():
        model(torch.randn(shape))
    assert facts() == before


@every_model
def test_inputs_and_outputs_die_when_they_are_dropped(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    model = make().eval()
    gc.collect()
    gc.disable()
    try:
        with watching(model), torch.no_grad():
            for _ in range(2):
                x = torch.randn(shape)
                out = model(x)
                given, taken = weakref.ref(x), weakref.ref(out)
                del x, out
                assert given() is None
                assert taken() is None
    finally:
        gc.enable()


def test_an_input_that_made_the_forward_raise_dies_too() -> None:
    model = nn.Linear(4, 4).eval()
    gc.collect()
    gc.disable()
    try:
        with watching(model), torch.no_grad():
            x = batch(2, 3)
            given = weakref.ref(x)
            with suppress(RuntimeError):
                model(x)
            del x
            assert given() is None
    finally:
        gc.enable()


class Pipeline(nn.Module):
    """Keeps its local variables, as a debugger does that stands in it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        kept = locals()
        return self.net(x), kept


@torch.no_grad()
def test_local_variables_are_left_alone() -> None:
    model = Pipeline().eval()
    with guard():
        _, kept = model.forward(batch())
    assert {"self", "x"} <= set(kept)


def test_the_fast_path_of_the_transformer_is_taken() -> None:
    """Torch leaves it where anything overrides torch functions, or hooks a layer."""
    model = transformer().eval()
    x = torch.randn(2, 5, 16)
    with guard(), torch.inference_mode(), torch.profiler.profile() as profile:
        model(x)
    assert "aten::_transformer_encoder_layer_fwd" in {event.key for event in profile.key_averages()}
