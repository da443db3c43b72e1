"""Reads finished runs from their folders as targets of attacks."""

from collections.abc import Mapping
from pathlib import Path

import torch
from fsl.simulations.attacks.model_history import states_by_round
from fsl.simulations.one_run import simulate_config
from fsl.strategies import SplitStrategy
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor, nn

from fsl import seeds
from fsl.attacks import Target
from fsl.codecs.codec_choice import build_codecs
from fsl.codecs.codec_maker import codec_of
from fsl.data import TaskData, divide
from fsl.data.own_tests import with_own_tests
from fsl.errors import ConfigError
from fsl.files import load_tensors
from fsl.importing.building import build
from fsl.importing.spec import Spec
from fsl.messages.round_plan import Fronts
from fsl.quoting import override_value, shell_line
from fsl.run.config import (
    RunConfig,
    build_data,
    build_model,
    build_objective,
    build_places,
    build_privacy,
    read_config,
)
from fsl.run.run_folder import RunFolder
from fsl.segments.calling import call
from fsl.settings.federation_settings import Federation
from fsl.split.coding import coded
from fsl.split.cutting import split


class AdversaryEdges(SplitStrategy):
    """A federation whose edges are the adversary's; fronts as in the attacked run."""

    def __init__(self, fronts: Fronts, edges: Spec):
        super().__init__()
        self.fronts, self.edges = fronts, edges

    def trainer(self, round: int) -> Spec:
        """Returns the adversary's edge trainer."""
        return self.edges


def read_target(folder: Path, device: int) -> Target:
    """Read a finished run and one of its devices; ConfigError where there is no such run or device."""
    run = RunFolder(folder)
    config = config_of(run)
    top = read_config(config)
    training = top.training
    if top.cuts is not None:
        raise ConfigError(f"{folder}: its devices are cut at different places, and attacks are built for one cut")
    if not 0 <= device < training.devices:
        raise ConfigError(f"victim={device}: {folder} has devices 0 to {training.devices - 1}")
    strategy: SplitStrategy = build("strategy", top.strategy)
    if getattr(strategy, "vertical", False):
        raise ConfigError(
            f"{folder}: it is vertical split learning, and attacks on what several parties send are not built"
        )
    strategy.bind(Federation(run=folder.name, training=training))
    data, _ = build_data(top.data, training.seed)
    rule = build("partition", top.partition)
    partition = with_own_tests(
        divide(data, rule, training.devices, training.samples_per_device, training.seed),
        top.evaluation.own,
        training.seed,
        len(data.train),
    )
    rows = partition.indices(device)
    private = strategy.fronts == "private"
    cut = strategy.trainer(1) is not None
    front, *backs = _trained(run, top, data, device if private else None)
    if cut and "cloud" in (build_places(top.model) or ()):
        raise ConfigError(
            f"{folder}: its last segment is at a server above the edges, and attacks on such are not built"
        )
    with torch.no_grad():
        if not isinstance(call(front, data.blank(2)), Tensor):
            raise ConfigError(f"{folder}: several tensors cross its cut, and attacks are built for one")
    every = [rows] if private else [partition.indices(k) for k in range(training.devices)]

    def blank() -> nn.Module:
        seed = seeds.derive(training.seed, "attack", segment="front")
        return _segments(top, data, seed)[0]

    def rerun(edges: Spec, out: Path, rounds: int | None) -> Mapping[str, Tensor]:
        if strategy.fronts == "merged":
            raise ConfigError(
                f"{folder}: its fronts are merged as they come, and an attack whose edges train by "
                "a rule of their own is not built for that; attack a run of splitfed_v2 or vanilla"
            )
        again = _quiet(config, rounds or training.rounds)
        found = simulate_config(again, out, progress=False, strategy=AdversaryEdges(strategy.fronts, edges))
        return found.front(device) if private else found.states["front"]

    def history(out: Path) -> list[tuple[nn.Module, nn.Module]]:
        again: SplitStrategy = build("strategy", top.strategy)
        states = states_by_round(_quiet(config, training.rounds), again, device, private, out)
        return [_halves(top, data, tensors) for tensors in states]

    return Target(
        data=data,
        front=front,
        back=nn.Sequential(*backs).eval(),
        cut=cut,
        blank=blank,
        device=device,
        rows=rows,
        members=torch.cat(every),
        objective=build_objective(top.objective).fit(data.train.targets),
        privacy=build_privacy(top.privacy),
        seed=training.seed,
        batch_size=training.batch_size,
        fronts=strategy.fronts,
        edges=training.edges,
        answered=cut and not strategy.local_loss,
        rerun=rerun,
        history=history,
        passes=training.local_epochs,
        total_rounds=training.rounds,
        folder=folder / "attacks",
        up=build_codecs(top.codec)["up"],
        tail=cut and len(backs) > 1,
    )


def _quiet(config: DictConfig, rounds: int) -> DictConfig:
    """Returns the configuration that repeats a run for `rounds` rounds, without trackers and pictures."""
    again = config.copy()
    with open_dict(again):
        again.rounds = rounds
        again.evaluate_every, again.trackers, again.resume = 0, {}, None
        again.metrics, again.stop = None, {}
        again.backend = {"name": "inline"}
    return again


def _halves(top: RunConfig, data: TaskData, tensors: Mapping[str, Tensor]) -> tuple[nn.Module, nn.Module]:
    front, *backs = _with(_segments(top, data, top.training.seed), tensors)
    return front, nn.Sequential(*backs).eval()


def _with(modules: list[nn.Module], tensors: Mapping[str, Tensor]) -> list[nn.Module]:
    for module in modules:
        known = module.state_dict()
        module.load_state_dict({name: tensors[name] for name in known})
    return modules


def config_of(run: RunFolder) -> DictConfig:
    """Returns the configuration of a finished run; ConfigError where a folder has none, or is of no finished one."""
    path = run.path / ".hydra" / "config.yaml"
    if not path.exists():
        raise ConfigError(f"{run.path} is no run of fsl-simulate: it has no .hydra/config.yaml; give the folder of one")
    if not run.summary_path.exists():
        go_on = shell_line(["fsl-simulate", f"resume={override_value(str(run.path))}"])
        raise ConfigError(f"{run.path} has not finished; go on with it ({go_on}, and the same options) first")
    config = OmegaConf.load(path)
    assert isinstance(config, DictConfig)
    return config


def _trained(run: RunFolder, top: RunConfig, data: TaskData, device: int | None) -> list[nn.Module]:
    """Returns the segments with the run's final weights; the front is this device's own, if one is given."""
    if device is None:
        tensors = load_tensors(run.model_path)
    else:
        path = run.fronts / f"{device}.safetensors"
        if not path.exists():
            raise ConfigError(f"victim={device}: it has no front in {run.fronts}, since it never trained; take another")
        tensors = load_tensors(run.back_path) | load_tensors(path)
    return _with(_segments(top, data, top.training.seed), tensors)


def _segments(top: RunConfig, data: TaskData, seed: int) -> list[nn.Module]:
    model, cut = build_model(top.model, data, seed, build_objective(top.objective))
    cuts = tuple(cut) if isinstance(cut, list) else cut
    up = codec_of(build_codecs(top.codec)["up"])
    model = coded(model, cuts, build_places(top.model), up, data.blank(3), seed)
    return [segment.module.eval() for segment in split(model, cuts).segments]
