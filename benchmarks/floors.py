"""What the engine is measured against: loops that do the same training with less around it, or with more.

Each takes a model, rows of data and how they are divided, trains as many steps of as many devices, and returns the
seconds of its rounds. What is made once for a run (a copy of the model, room for sums) is not in them.
"""

import copy
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset

import fsl
from fsl.data import TensorExamples
from fsl.settings.optimizer_settings import Optimizer

LR = 0.01
OPTIMIZER = Optimizer("torch.optim.SGD", lr=LR)


def examples(count: int, shape: tuple[int, ...]) -> TensorExamples:
    generator = torch.Generator().manual_seed(0)
    return TensorExamples(
        torch.randn(count, *shape, generator=generator), torch.randint(10, (count,), generator=generator)
    )


def plain_loop(model: nn.Module, data: TensorExamples, devices: int, batch_size: int, rounds: int) -> float:
    """One model trained on as many equal batches, without a federation: no model per device, and no average."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    share = len(data) // devices
    started = time.perf_counter()
    for _ in range(rounds):
        for device in range(devices):
            _train(model, optimizer, data, device * share, share, batch_size)
    return time.perf_counter() - started


def unsplit_rounds(model: nn.Module, data: TensorExamples, devices: int, batch_size: int, rounds: int) -> float:
    """The unsplit model federated, as a loop: each device loads the global weights, trains, and is averaged."""
    local = copy.deepcopy(model).train()
    shared = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    share = len(data) // devices
    started = time.perf_counter()
    for _ in range(rounds):
        sums = {name: torch.zeros_like(tensor) for name, tensor in shared.items()}
        for device in range(devices):
            local.load_state_dict(shared)
            optimizer = torch.optim.SGD(local.parameters(), lr=LR)
            _train(local, optimizer, data, device * share, share, batch_size)
            for name, tensor in local.state_dict().items():
                sums[name] += tensor * share
        shared = {name: tensor / len(data) for name, tensor in sums.items()}
    return time.perf_counter() - started


def _train(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: TensorExamples, first: int, share: int, batch_size: int
) -> None:
    for rows in (torch.randperm(share) + first).split(batch_size):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data.inputs[rows]), data.targets[rows]).backward()
        optimizer.step()


# The structure of the program that SplitFed's authors published (Thapa et al., AAAI 2022; their V1), in our own words:
# a device's front is a deep copy, and its data a DataLoader made anew; the edge copies a device's back before each
# batch, makes an optimizer for it, and keeps a copy afterwards; losses are read off each batch; averages go over copies
# of state_dicts. Theirs steps by Adam; here it is the optimizer of all others.


class _Rows(Dataset[tuple[Tensor, int]]):
    """A device's rows, one by one."""

    def __init__(self, data: TensorExamples, rows: list[int]):
        self.data, self.rows = data, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row = self.rows[index]
        return self.data.inputs[row], int(self.data.targets[row])


class _PublishedEdge:
    """A back for each device, all of them by copies."""

    def __init__(self, back: nn.Module, devices: int):
        self.backs = [back] * devices
        self.losses: list[float] = []

    def step(self, device: int, smashed: Tensor, targets: Tensor) -> Tensor:
        back = copy.deepcopy(self.backs[device]).train()
        optimizer = torch.optim.SGD(back.parameters(), lr=LR)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(back(smashed), targets)
        loss.backward()
        optimizer.step()
        self.losses.append(loss.item())
        self.backs[device] = copy.deepcopy(back)
        assert smashed.grad is not None
        return smashed.grad.clone().detach()


def published_rounds(model: nn.Module, data: TensorExamples, devices: int, batch_size: int, rounds: int) -> float:
    """SplitFed V1 by the structure of its authors' program, see above."""
    front, back = (segment.module for segment in fsl.split(copy.deepcopy(model)).segments)
    share = len(data) // devices
    started = time.perf_counter()
    for _ in range(rounds):
        edge, fronts = _PublishedEdge(back, devices), []
        for device in range(devices):
            own = copy.deepcopy(front).train()
            optimizer = torch.optim.SGD(own.parameters(), lr=LR)
            rows = _Rows(data, list(range(device * share, (device + 1) * share)))
            for inputs, targets in DataLoader(rows, batch_size, shuffle=True):
                optimizer.zero_grad()
                smashed = own(inputs)
                sent = smashed.clone().detach().requires_grad_(True)
                smashed.backward(edge.step(device, sent, targets))
                optimizer.step()
            fronts.append(copy.deepcopy(own.state_dict()))
        front.load_state_dict(_averaged(fronts))
        back.load_state_dict(_averaged([copy.deepcopy(one.state_dict()) for one in edge.backs]))
    return time.perf_counter() - started


def _averaged(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    mean = copy.deepcopy(states[0])
    for name in mean:
        for state in states[1:]:
            mean[name] += state[name]
        mean[name] = torch.div(mean[name], len(states))
    return mean


# The hardware's limit: matrix products and convolutions alone.

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::convolution", "aten::convolution_backward")


class _RecordedProducts(TorchDispatchMode):
    """Notes the products of a step, with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Callable[..., Any], tuple[Any, ...], Mapping[str, Any]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.name().partition(".")[0] in PRODUCTS:
            self.found.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def products(model: nn.Module, data: TensorExamples, devices: int, batch_size: int, rounds: int) -> float:
    """The products of the unsplit model's steps, forward and backward, of the same shapes, with nothing around them."""
    model = copy.deepcopy(model).train()
    recorded = _RecordedProducts()
    loss = nn.functional.cross_entropy
    with recorded:
        loss(model(data.inputs[:batch_size]), data.targets[:batch_size]).backward()
    steps = rounds * devices * -(-(len(data) // devices) // batch_size)
    with torch.inference_mode():
        started = time.perf_counter()
        for _ in range(steps):
            for function, args, options in recorded.found:
                function(*args, **options)
        return time.perf_counter() - started


# Flower's own simulation, with one client a node.


def flower_rounds(model: nn.Module, data: TensorExamples, clients: int, steps: int, rounds: int) -> float:
    """Returns the seconds per round of Flower's run_simulation, whose clients train the unsplit model."""
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    client, server = ClientApp(), ServerApp()
    inputs, targets = data.inputs.numpy(), data.targets.numpy()

    @client.train()
    def train(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        local = copy.deepcopy(model).train()
        local.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        optimizer = torch.optim.SGD(local.parameters(), lr=LR)
        first = int(context.node_config["partition-id"]) * steps * 8
        for start in range(first, first + steps * 8, 8):
            x, y = torch.from_numpy(inputs[start : start + 8]), torch.from_numpy(targets[start : start + 8])
            optimizer.zero_grad()
            nn.functional.cross_entropy(local(x), y).backward()
            optimizer.step()
        content = RecordDict()
        content["arrays"] = ArrayRecord(local.state_dict())
        content["metrics"] = MetricRecord({"num-examples": steps * 8})
        return Message(content, reply_to=message)

    seconds: list[float] = []

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=clients)
        arrays = ArrayRecord(model.state_dict())
        strategy.start(grid, arrays, num_rounds=1)  # starts the workers
        started = time.perf_counter()
        strategy.start(grid, arrays, num_rounds=rounds, train_config=ConfigRecord())
        seconds.append((time.perf_counter() - started) / rounds)

    run_simulation(
        server,
        client,
        clients,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": os.cpu_count() or 1},
        },
    )
    return seconds[0]
