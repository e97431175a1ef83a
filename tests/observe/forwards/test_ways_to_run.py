"""A model is observed however it is run."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.func import functional_call, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

from tests.nets import Dropper, Net, Noisy, batch, compiled_in_place, only, rules, watching

pytestmark = [
    pytest.mark.usefixtures("fresh"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]

Run = Callable[[nn.Module, Tensor], object]


def threaded(model: nn.Module, x: Tensor) -> None:
    def work() -> None:
        with torch.no_grad():  # grad mode is thread-local
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


@every_way
def test_a_clean_model_is_clean(run: Run) -> None:
    with watching() as g, torch.no_grad():
        run(Dropper().eval(), batch())
    assert not rules(g)


@every_way
def test_a_forgotten_eval_is_reported(run: Run) -> None:
    with watching() as g, torch.no_grad():
        run(Dropper(), batch())
    assert any("drop (Dropout)" in subject for subject in only(g, "train-mode").subjects)


@every_way
def test_a_forgotten_no_grad_is_reported(run: Run) -> None:
    with watching() as g:
        run(Dropper().eval(), batch())
    disables_grad_itself = run in (threaded, bare_thread, WAYS["in inference mode"])
    assert rules(g) == (set() if disables_grad_itself else {"grad-mode"})


@every_way
def test_a_draw_in_eval_mode_is_reported(run: Run) -> None:
    model: nn.Module = Noisy().eval()
    if run is WAYS["forward called directly"]:
        model = nn.Sequential(model)  # `model.forward(x)` itself is not observed, its submodules are
    with watching() as g, torch.no_grad():
        run(model, batch())
    violation = only(g, "random-forward")
    assert violation.cause is not None
    assert violation.cause.source == "return F.dropout(self.head(x))"


class Noise(nn.Module):
    """Draws in training mode only, through an attribute whose name does not show it."""

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
    "hidden behind an attribute": (Noise, lambda m: m.train()),
    "compiled": (lambda: torch.compile(Dropper(), backend="eager"), lambda m: m.train()),
    "compiled, a part of it": (lambda: torch.compile(Dropper(), backend="eager"), lambda m: m._orig_mod.drop.train()),
    "compiled in place": (lambda: compiled_in_place(Dropper()), lambda m: m.train()),
    "scripted": (lambda: script(Dropper()), lambda m: m.train()),
    "set by a hook": (lambda: with_a_hook(lambda drop: drop.train()), lambda m: None),
}


@pytest.mark.parametrize(("make", "train"), TRAINING.values(), ids=TRAINING)
@torch.no_grad()
def test_a_draw_of_a_module_in_training_mode_is_reported_as_train_mode(
    make: Callable[[], Any], train: Callable[[Any], object]
) -> None:
    model = nn.Sequential(nn.Linear(4, 4), make()).eval()
    train(model[1])
    with watching() as g:
        model(batch())
    assert rules(g) == {"train-mode"}


class Typed(Dropper):
    """Names torch's `__call__` for type checkers, as some advise; so its calls do not reach a patched one."""

    __call__ = nn.Module.__call__


@torch.no_grad()
def test_a_class_that_aliases_the_call_of_torch_is_observed() -> None:
    with watching() as g:
        Typed()(batch())
    assert only(g, "train-mode").model == "Typed"
    with watching() as g:
        Typed().eval()(batch())
    assert not rules(g)


@torch.no_grad()
def test_calls_from_all_threads_are_counted() -> None:
    model, interval = nn.Dropout(0.1), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with watching() as g, ThreadPoolExecutor(4) as pool:
            for future in [pool.submit(model, torch.ones(1)) for _ in range(2000)]:
                future.result()
    finally:
        sys.setswitchinterval(interval)
    assert only(g, "train-mode").count == 2000


@torch.no_grad()
def test_a_model_created_inside_vmap_is_clean() -> None:
    def predict(scale: Tensor) -> Tensor:
        net = nn.LayerNorm(4, bias=False).eval()
        net.weight = None  # type: ignore[assignment]
        net.register_buffer("scale", scale)
        out: Tensor = net(torch.ones(2, 4)) * scale
        return out

    with watching() as g:
        assert vmap(predict)(torch.ones(3, 4)).shape == (3, 2, 4)
    assert not rules(g)


def test_no_grad_does_not_affect_a_worker_thread() -> None:
    model = Dropper().eval()
    with watching() as g, torch.no_grad(), ThreadPoolExecutor(1) as pool:
        pool.submit(model, batch()).result()
    violation = only(g, "grad-mode")
    assert violation.at is not None
    assert "no_grad() only affects the thread that enters it" in violation.finding
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


@pytest.mark.filterwarnings("ignore")  # warnings of torch
@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("distribute", DISTRIBUTED.values(), ids=DISTRIBUTED)
@pytest.mark.parametrize("watched", [True, False], ids=["watched", "not watched"])
@torch.no_grad()
def test_a_distributed_model_is_observed(distribute: Callable[[nn.Module], Any], watched: bool) -> None:
    model = distribute(Net()).eval()
    with watching(*[model] if watched else []) as g:
        model(batch())
        model(batch())
    assert not rules(g)
    with watching() as g:
        model.train()(batch())
    assert "train-mode" in rules(g)
