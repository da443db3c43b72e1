"""The Grids: what Flower keeps to itself, nodes that die, runs side by side, and Flower's own engine as the oracle."""

import importlib
import os
import queue
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity
from fsl.strategies import CycleSL, SplitFedV1, SplitFedV2, SplitFedV3, VanillaSL

import fsl
from fsl.errors import ConfigError, DeviceError, RunError
from fsl.flower.inline_grid import InlineGrid
from fsl.flower.ray_grid import RayGrid, RayOptions
from fsl.importing.spec import Spec
from fsl.round.front_device import Device
from fsl.run.app import server_app, workload_app
from fsl.trainers import Replicated
from tests.helpers.runs import KEPT, assert_same_run, run
from tests.helpers.small import small_model


def echo_app() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message, context):
        return Message(message.content, reply_to=message)

    return app


def test_flower_still_keeps_its_task_identity_where_we_set_it():
    # A release that moves these must be looked at: fsl/flower/internals.py is the one file to change.
    assert {"_task_id", "_run_id", "_node_id"} <= vars(TaskIdentity).keys()
    before = (TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id)
    with InlineGrid(echo_app) as outer:
        with InlineGrid(echo_app) as inner:
            message = Message(RecordDict(), 1, "train")
            (reply,) = inner.send_and_receive([message])
            assert reply.metadata.run_id == inner.run_id != outer.run_id
            assert reply.metadata.reply_to_message_id == message.metadata.message_id
        Message(RecordDict(), 1, "train")
    assert (TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id) == before


def test_pushed_messages_are_pulled_once():
    with InlineGrid(echo_app, nodes=2) as grid:
        ids = list(grid.push_messages([Message(RecordDict(), node, "train") for node in grid.get_node_ids()]))
        assert len(list(grid.pull_messages(ids))) == 2
        assert list(grid.pull_messages(ids)) == []


@pytest.mark.slow
def test_two_runs_in_one_process_do_not_disturb_each_other():
    model = small_model("batch", 0.3)  # built here: building draws from the process's generator
    alone = [run(SplitFedV1(), model, seed=seed) for seed in (1, 2)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda seed: run(SplitFedV1(), model, seed=seed), (1, 2)))
    for one, other in zip(alone, together):
        assert_same_run(one, other)


PLACE = (
    r"^run mine, round 1, device 0, step 0: ArithmeticError: no such luck \(\S*test_grids.py, line \d+, in forward\)"
)


class FailingLayer(torch.nn.Module):
    def forward(self, values):
        if len(values) > 8:  # as many rows are tried before the run
            raise ArithmeticError("no such luck")
        return values


@pytest.mark.parametrize("place", ["front", "back"])
def test_a_failure_names_run_round_device_and_step(place, tmp_path):
    model = small_model()
    (model.conv if place == "front" else model.head).append(FailingLayer())
    with pytest.raises(DeviceError, match=PLACE):
        run(SplitFedV1(), model, out=tmp_path / "mine", evaluate_every=0)


class KillNode(fsl.Observer):
    """Ends a node's process (as kill -9 does) after a round."""

    def __init__(self, grid_of, nodes, after):
        self.grid_of, self.nodes, self.after = grid_of, nodes, after

    def on_round(self, row):
        if row["round"] == self.after:
            pids = self.grid_of().pids()
            for node in self.nodes:
                os.kill(pids[node], signal.SIGKILL)


@dataclass(frozen=True)
class WatchedRay(fsl.Backend):
    """A Ray backend that tells which Grid it opened."""

    def open(self, workload, nodes):
        grid = super().open(workload, nodes)
        opened.append(grid)
        return grid


opened: list[RayGrid] = []
ON_RAY = {"nodes": 2, "backend": WatchedRay("ray", address="auto", cpus=0.5), "devices": 4, "rounds": 3}
ON_ONE = ON_RAY | {"nodes": 1}  # a node's process takes four seconds to come up


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy",
    [pytest.param(SplitFedV1(), id="averaged", marks=pytest.mark.shows), pytest.param(SplitFedV3(), id="private")],
)
def test_a_node_that_dies_is_skipped_for_a_round_and_comes_back(strategy, ray_cluster, caplog, tmp_path):
    killer = KillNode(lambda: opened[-1], [2], after=1)
    result = run(strategy, out=tmp_path / "run", observers=[killer], **ON_RAY)
    assert [row["devices"] for row in result.metrics] == [4, 2, 4]
    assert [row["failed_nodes"] for row in result.metrics] == [0, 1, 0]
    assert "node-2 died" in caplog.text


@pytest.mark.slow
def test_with_all_nodes_dead_the_run_ends_and_can_be_resumed(ray_cluster, tmp_path):
    inline = {"devices": 4, "rounds": 3, "optimizer": KEPT}
    killer = KillNode(lambda: opened[-1], [1], after=2)
    with pytest.raises(RunError, match=r"round 3: every node is gone"):
        run(SplitFedV3(), out=tmp_path / "run", observers=[killer], **inline | ON_ONE)
    assert_same_run(run(SplitFedV3(), **inline), run(SplitFedV3(), out=tmp_path / "run", resume=True, **inline))


@pytest.mark.slow
def test_nodes_that_ray_cannot_place_are_refused_at_the_start(ray_cluster):
    with pytest.raises(ConfigError, match=r"nodes=3 cannot be placed: each wants 1 CPU .* room for 2"):
        RayGrid(echo_app, 3, RayOptions(address="auto"))
    with pytest.raises(ConfigError, match="nodes=1 cannot be placed: each wants 1 CPU and 1 GPU"):
        RayGrid(echo_app, 1, RayOptions(address="auto", gpus=1))


def test_ray_may_come_up_at_the_second_try_and_is_given_up_then(monkeypatch):
    tries = []

    def slow(**_):
        tries.append(1)
        raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr("fsl.flower.ray_session.ray.is_initialized", lambda: False)  # other tests' Ray stays as it is
    monkeypatch.setattr("fsl.flower.ray_session.ray.shutdown", lambda: None)
    monkeypatch.setattr("fsl.flower.ray_session.ray.init", slow)
    with pytest.raises(RunError, match="Ray did not start within 30 s, twice: the machine is very busy"):
        RayGrid(echo_app, 1, RayOptions())
    assert len(tries) == 2


def made_here():
    """Classes that no other process can import."""

    class Trainer(Replicated):
        pass

    class Rule(Device):
        pass

    return Trainer, Rule


class NamesLocalClasses(SplitFedV1):
    """Names classes of its own, others in later rounds."""

    def trainer(self, round):
        kind, _ = made_here()
        return Spec(self.path(kind))

    def device_rule(self, round):
        _, kind = made_here()
        return Spec(self.path(kind))


def test_classes_of_a_function_are_found_in_this_process():
    assert_same_run(run(SplitFedV1()), run(NamesLocalClasses()))


@pytest.mark.slow
def test_classes_of_a_function_and_a_module_of_the_user_reach_the_nodes_on_ray(ray_cluster, tmp_path, monkeypatch):
    (tmp_path / "of_a_user.py").write_text("import torch\n\n\nclass Softer(torch.nn.Softplus):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    model, options = small_model("batch", 0.3), {"optimizer": KEPT}
    model.head.append(importlib.import_module("of_a_user").Softer())
    inline = run(SplitFedV1(), model, devices=4, rounds=3, **options)
    assert_same_run(inline, run(NamesLocalClasses(), model, **ON_ONE, **options))


@pytest.mark.slow
def test_a_failure_on_ray_brings_its_place_and_its_traceback(ray_cluster, tmp_path):
    model = small_model()
    model.head.append(FailingLayer())
    place = r"round 1, device \d, step 0: ArithmeticError: no such luck \(.*test_grids.py, line \d+, in forward\)"
    with pytest.raises(DeviceError, match=place):
        run(SplitFedV2(), model, out=tmp_path / "mine", evaluate_every=0, **ON_ONE)
    assert "in forward" in (tmp_path / "mine" / "traceback.txt").read_text()


@pytest.mark.slow
def test_what_cannot_be_sent_to_ray_is_refused_before_a_round(ray_cluster, tmp_path):
    model = small_model()
    model.lock = threading.Lock()
    copies = {"__deepcopy__": lambda self, memo: small_model()}  # a class of its own: the segments' is left alone
    model.__class__ = type("Locked", (type(model),), copies)
    with pytest.raises(ConfigError, match=r"backend=ray: the model, .* cannot be sent .*lock.*backend=inline"):
        run(SplitFedV1(), model, **ON_RAY)


@dataclass(frozen=True)
class FlowersEngine(fsl.Backend):
    """Flower's own simulation engine, run in a thread of its own."""

    @contextmanager
    def open(self, workload, nodes):
        from flwr.simulation import run_simulation

        grids: queue.Queue = queue.Queue()
        done = threading.Event()

        def main(grid):
            grids.put(grid)
            done.wait(120)

        resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": 2}}
        engine = threading.Thread(
            target=run_simulation,
            args=(server_app(main), workload_app(workload), nodes),
            kwargs={"backend_config": resources},
        )
        engine.start()
        try:
            grid = grids.get(timeout=60)
            while len(list(grid.get_node_ids())) < nodes:
                done.wait(0.1)
            yield grid
        finally:
            done.set()
            engine.join(60)
            assert not engine.is_alive()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "strategy",
    [VanillaSL(), SplitFedV3(), CycleSL(passes=2, window=2)],
    ids=lambda s: type(s).__name__,
)  # relayed, private, averaged
@pytest.mark.shows  # each starts an engine and a Ray; one strategy, with all that is kept: test_flower_run.py
def test_flowers_own_engine_gives_the_same_run(strategy, tmp_path, no_ray):
    options = {"model": small_model("batch", 0.3), "devices": 4, "edges": 2, "optimizer": KEPT, "rounds": 2}
    ours = run(strategy, **options)
    flowers = run(strategy, nodes=2, backend=FlowersEngine(), out=tmp_path / "run", **options)
    assert_same_run(ours, flowers)
