"""One simulation on its way: from the first arrays over the rounds to what is written."""

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import Grid
from torch import Tensor, nn

from fsl.data import class_counts
from fsl.errors import ConfigError, RunError
from fsl.export.trained_model import Inputs, TrainedModel
from fsl.files import load_tensors, save_tensors, sync
from fsl.flower.records import check_dtypes, record_to_states, states_to_record
from fsl.importing.import_paths import path_of
from fsl.models.lora import has_adapters, save_adapter
from fsl.models.vertical_model import FRONT, VerticalModel
from fsl.privacy.leak_probe import leaks
from fsl.round.coded_cuts import with_codecs
from fsl.round.evaluation import evaluate
from fsl.round.workload import Worker, Workload, with_frozen, with_weights
from fsl.run.checkpoint import (
    STRATEGY,
    Checkpoint,
    CheckpointWriter,
    load_checkpoint,
    refuse_other_settings,
    versions_before,
)
from fsl.run.codec_check import check_codecs
from fsl.run.ignored import refuse_ragged
from fsl.run.kept_fronts import KeptFronts
from fsl.run.label import Label
from fsl.run.lost_words import refuse_untrained
from fsl.run.memory_check import check_memory
from fsl.run.observers import Observer, RoundLines, RunInfo, StopRun
from fsl.run.run_folder import RunFolder
from fsl.run.run_identity import weights_of
from fsl.run.run_log import RunLog
from fsl.run.summary import COLUMNS, remarks_on, summary_of
from fsl.segments.optimizer import OptimizerRecipe
from fsl.segments.states import State
from fsl.segments.tensor_trees import passed
from fsl.settings.early_stop import EarlyStop
from fsl.settings.federation_settings import CloudStrategy, Federation
from fsl.split.coded_model import codecs_of, uncoded
from fsl.split.cutting import join
from fsl.split.exit_tap import heads_of, plain_model, untap, without_heads
from fsl.split.placing import TOP
from fsl.trainers import EdgeTrainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What a simulation leaves: a row per round, the whole model where there is one, and states by segment."""

    metrics: list[dict[str, Any]]
    model: nn.Module | None
    states: dict[str, dict[str, Tensor]]
    trained: TrainedModel


class Simulation:
    """One run on its way: what was computed so far, and where it is written."""

    def __init__(
        self,
        federation: Federation,
        workload: Workload,
        worker: Worker,
        strategy: CloudStrategy,
        folder: RunFolder,
        observers: tuple[Observer, ...],
        settings: dict[str, Any],
        label: Label | None = None,
        stop: EarlyStop | None = None,
    ):
        self.federation = federation
        self.workload = workload
        self.worker = worker
        self.strategy = strategy
        self.folder = folder
        self.observers = observers
        self.layouts = dict(federation.layouts)
        self.first_round = 1
        self.best: dict[str, Any] | None = None
        self.rows: list[dict[str, Any]] = []
        self._frozen_saved = False
        self.settings = settings
        self.label = label or Label()
        self.stop = stop
        self.weights = ""  # a digest of those that the run began with
        self.checkpoints = CheckpointWriter(folder.checkpoint)
        self.kept_fronts = KeptFronts(worker.store)
        self.started = time.perf_counter()
        self.stopped: dict[str, Any] | None = None  # which observer ended the run before its last round, and why
        self.late: Exception | None = None  # what an observer raised at the end

    def check(self) -> None:
        """Refuse what cannot work, before anything is written."""
        for layout in self.layouts.values():
            check_dtypes(layout)
        if self.worker.skip_single and self.federation.training.batch_size == 1:
            raise ConfigError("batch_size=1: batch normalisation needs two rows; use a larger batch, or another norm")
        if self.strategy.fronts == "private" and self.workload.data.validation is not None:
            raise ConfigError(
                f"data.validation chooses the best model for all, but {type(self.strategy).__name__} gives each device "
                "a front of its own; set data.validation=0"
            )
        federation, allowed = self.federation, self.workload.allowed
        OptimizerRecipe(federation.optimizer.spec, allowed).build([nn.Parameter(torch.zeros(1))])
        trainer = self.strategy.trainer(1)
        if trainer is not None:
            refuse_ragged(self.workload.data, trainer.locate(allowed, EdgeTrainer), self.strategy)
        for number in range(max(1, len(self.workload.cuts))):
            check_codecs(federation, self.strategy, self.worker.at(number))
            check_memory(federation, self.strategy, self.worker.at(number))

    def begin(self, init_from: str | Path | None, resume: bool) -> None:
        """The arrays that the first round starts from: the model's, a file's, or a checkpoint's."""
        tensors = {name: segment.module.state_dict() for name, segment in self.worker.segments.items()}
        if init_from is not None:
            given = load_tensors(Path(init_from))  # of the model itself, or with a trained codec
            model = self.workload.model
            tensors |= {
                name: codecs_of(tensors[name]) | heads_of(model, tensors[name]) | given for name in self.worker.chain
            }
        self.weights = weights_of({k: t for name in self.worker.chain for k, t in tensors[name].items()})
        if resume:
            checkpoint = load_checkpoint(self.folder.checkpoint)
            refuse_other_settings(checkpoint.settings, self.settings, self.folder.path)
            label = checkpoint.label if checkpoint.label is not None else self.folder.read_summary()
            self.label = self.label.gone_on_with(label, self.folder.path)
            if checkpoint.round >= self.federation.training.rounds:
                log.warning(
                    "%s has %d rounds already, and rounds=%d: nothing is left to do; give more rounds to go on",
                    self.folder.path,
                    checkpoint.round,
                    self.federation.training.rounds,
                )
            frozen = self.folder.frozen_path
            once = load_tensors(frozen) if frozen.exists() else {}
            tensors = {
                name: {k.removeprefix(f"{name}."): v for k, v in checkpoint.tensors.items() if k.startswith(f"{name}.")}
                | once
                for name in self.layouts
            }
            self.strategy.load_state(checkpoint.strategy)
            self.kept_fronts.resumed(checkpoint.round, self.strategy.state())
            own = {k: v for k, v in checkpoint.tensors.items() if k.startswith(STRATEGY)}
            self.strategy.load_tensors({k.removeprefix(STRATEGY): v for k, v in own.items()})
            self.best = dict(checkpoint.best) if checkpoint.best else None
            self.first_round = checkpoint.round + 1
            self.folder.truncate_metrics(checkpoint.round)
            self.rows = self.folder.read_metrics()
        else:
            self.folder.refuse_if_used()
        states = {name: layout.pack(tensors[name]) for name, layout in self.layouts.items()}
        for name, layout in self.layouts.items():
            layout.frozen.load(tensors[name])
        if any(layout.frozen.replaced for layout in self.layouts.values()):
            self.workload = replace(self.workload, model=with_frozen(self.workload.model, self._frozen()))
        self.arrays = states_to_record(self.layouts, states)

    def run(self, open_grid: Callable[[], AbstractContextManager[Grid]], timeout: float) -> None:
        """All rounds that are left; `timeout` is the seconds that a node may take for one."""
        model, federation = self.workload.model, self.federation
        info = RunInfo(
            strategy=type(self.strategy).__name__,
            model=type(uncoded(model)).__name__,
            data=self.workload.data.name,
            devices=federation.training.devices,
            rounds=federation.training.rounds,
            first_round=self.first_round,
            folder=self.folder.path,
            class_counts=self.class_counts(),
            settings=self.settings,
            metrics=tuple(federation.metrics),
        )
        self._stop_early()  # where a run goes on that had ended, or was about to
        with ExitStack() as stack:
            stack.callback(self.checkpoints.close)
            if self.first_round <= federation.training.rounds:
                grid = stack.enter_context(open_grid())
                lines = RoundLines(stack.enter_context(RunLog(self.folder.path)).line)
                self.observers = (lines, *self.observers)
                try:
                    for observer in self.observers:
                        stack.callback(self._end_of, observer)
                        self._ask(observer, partial(observer.on_start, info), 0)
                    self._stop_if_asked()
                    self.strategy.start(
                        grid,
                        self.arrays,
                        federation.training.rounds,
                        timeout,
                        evaluate_fn=self.evaluate,
                        first_round=self.first_round,
                        on_round=self.end_round,
                    )
                except StopRun as stop:
                    self._note_stop(self.strategy, stop, self.rows[-1]["round"] if self.rows else 0)

    def _ask(self, observer: Observer, hook: Callable[[], None], round: int) -> None:
        """Call an observer's hook; where it asks to stop, the others are called first."""
        try:
            hook()
        except StopRun as stop:
            self._note_stop(observer, stop, round)

    def _note_stop(self, who: object, stop: StopRun, round: int) -> None:
        if self.stopped is None:
            self.stopped = {"by": type(who).__name__, "round": round, "reason": " ".join(str(stop).split())}

    def _stop_early(self) -> None:
        """Note where a figure of the rounds so far has stopped getting better; RunError where no round can have it."""
        if self.stop is None or not self.rows:
            return
        metric = self.stop.metric
        if any(self.strategy.evaluates(row["round"]) for row in self.rows) and not any(metric in r for r in self.rows):
            known = ", ".join(key for key, value in self.rows[-1].items() if isinstance(value, int | float))
            raise RunError(
                f"stop.metric={metric}: no round so far has it, so that it would never stop; there are {known}"
            )
        if (reason := self.stop.reason(self.rows, self.strategy.evaluates)) is not None:
            self._note_stop(self.stop, StopRun(reason), self.rows[-1]["round"])

    def _stop_if_asked(self) -> None:
        if self.stopped is not None:
            raise StopRun(self.stopped["reason"])

    def _end_of(self, observer: Observer) -> None:
        """An observer that fails at the end is told of when all else is written."""
        try:
            observer.on_end()
        except StopRun:
            return  # it has ended
        except Exception as error:
            self.late = self.late or error

    def class_counts(self) -> np.ndarray | None:
        """Samples of each class on the first devices, for a picture; None where targets are no class labels."""
        data, partition = self.workload.data, self.workload.partition
        targets = data.train.targets
        if data.classes is None or data.classes > _CLASSES or targets.dim() != 1 or targets.is_floating_point():
            return None
        if self.federation.placement is not None:  # then nodes have data of their own
            return None
        return class_counts(partition, targets.numpy(), range(min(partition.devices, _PICTURED)), data.classes)

    def evaluate(self, round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """The global model on test and validation data, at the cloud."""
        if self.strategy.fronts == "private" or not self.strategy.evaluates(round):
            return None
        states = record_to_states(arrays, self.layouts, self.worker.accelerator)
        modules = self._install(states)
        whole, codecs = modules, self.federation.evaluated_codecs(cut=self.strategy.trainer(round) is not None)
        if codecs:
            rows = self.federation.training.batch_size
            whole = with_codecs(self.worker, codecs.get("up"), codecs.get("down"), rows)
        scores: dict[str, int | float | list[int] | list[float]] = {}
        data = self.workload.data
        for prefix, examples in (("", data.test), ("validation_", data.validation)):
            if examples is None:
                continue
            workload = self.workload
            score = evaluate(whole, examples, workload.objective, self.worker.accelerator, workload.metrics)
            scores |= score.columns(prefix) | score.exit_columns(prefix)
        if data.test is not None and self.federation.probe is not None and self.strategy.trainer(round) is not None:
            scores |= leaks(modules[0], data.test, self.federation.probe, round)
        return MetricRecord(scores)

    def end_round(self, round: int, arrays: ArrayRecord, metrics: MetricRecord) -> None:
        """Write a round's row, begin its checkpoint, and tell the observers."""
        self.arrays = arrays
        named = {"loss": None, "accuracy": None, "sim_seconds": None, "energy_joules": None, **metrics}
        named |= self.strategy.remarks()
        row = {"round": round, **{key: named.pop(key, None) for key in COLUMNS}, **named}
        self._keep_best(row)
        self.folder.append_metrics(row)
        self._save_frozen()
        state = self.strategy.state()
        checkpoint = Checkpoint(round, self._tensors(), state, self.settings, self.best, self.label.to_json())
        self.checkpoints.write(checkpoint, partial(self.strategy.checkpointed, state))
        if self.strategy.fronts == "private" or not self.federation.optimizer.reset or "kept" in state:
            self.checkpoints.wait()  # what nodes may delete in the next round depends on it
        if self.strategy.fronts == "private":
            self.kept_fronts.checkpointed(state)
        self.rows.append(row)
        for observer in self.observers:
            self._ask(observer, partial(observer.on_round, dict(row)), round)  # one may write into it
        self._stop_early()
        self._stop_if_asked()

    def finish(self, more: Callable[[Result], None] = lambda result: None) -> Result:
        """Write the final model, `more`, and the summary; UntrainedError, then, where no device finished a round.

        A run without a summary has not finished.
        """
        states = self._states()
        model = None
        if self.strategy.fronts == "private":
            save_tensors(self.folder.back_path, join({n: states[n] for n in ("back", TOP) if n in states}))
            self._publish_fronts()
            if self.worker.parties and self.federation.placement is None:
                model = self._of_all_parties(states)
        else:
            whole = self._whole(states)
            save_tensors(self.folder.model_path, without_heads(self.workload.model, whole))
            model = untap(with_weights(self.workload.model, whole, self.worker.accelerator))
            if has_adapters(model):
                save_adapter(model, self.folder.adapter_path)
        if isinstance(model, VerticalModel):  # it takes batches without a party, too
            model.measure(passed(self.workload.data.blank(2).to(self.worker.accelerator)))
        if "head" in states:
            save_tensors(self.folder.head_path, states["head"])
        result = Result(self.rows, model, states, self._trained(states))
        more(result)
        self.folder.write_summary(
            summary_of(
                self.rows,
                seed=self.federation.training.seed,
                best=self.best,
                classes=self.workload.data.classes,
                bound=self.workload.objective.divergence_bound(self.workload.data.classes),
                stopped=self.stopped,
                label=self.label,
                metrics=tuple(self.federation.metrics),
                weights=self.weights,
                settings=self.settings,
                seconds=time.perf_counter() - self.started,
            )
        )
        refuse_untrained(self.rows)
        if self.late is not None:
            raise self.late
        return result

    def _trained(self, states: Mapping[str, Mapping[str, Tensor]]) -> TrainedModel:
        data, private = self.workload.data, self.strategy.fronts == "private"
        return TrainedModel(
            module=plain_model(self.workload.model),
            cuts=() if self.workload.cuts else self.worker.cuts,
            places=None if self.workload.places is None else tuple(self.workload.places),
            states={name: without_heads(self.workload.model, state) for name, state in states.items()},
            devices=self.folder.front_owners() if private else None,
            front_of=self.folder.front,
            inputs=partial(Inputs.of, data.train if data.test is None else data.test),
            facts={
                "classes": data.classes,
                "seed": self.federation.training.seed,
                "strategy": str(path_of(type(self.strategy))),
                "rounds": self.rows[-1]["round"] if self.rows else 0,
            },
            remarks=remarks_on(
                self.federation.privacy is not None and self.federation.privacy.cut is not None,
                self.federation.wire.up_spec.target,
            ),
        )

    def _install(self, states: Mapping[str, State]) -> list[nn.Module]:
        """Put states into the model's segments; their modules in order."""
        for name, segment in self.worker.chain.items():
            segment.hold(states[name])
        return self.worker.modules

    def _states(self) -> dict[str, dict[str, Tensor]]:
        states = record_to_states(self.arrays, self.layouts)
        return {name: self.layouts[name].whole(state) for name, state in states.items()}

    def _frozen(self) -> dict[str, Tensor]:
        return {key: tensor for name in self.layouts for key, tensor in self._frozen_of(name).items()}

    def _save_frozen(self) -> None:
        """Write the frozen parameters beside the checkpoints, once: no round changes them."""
        if not self._frozen_saved and (frozen := self._frozen()):
            self.folder.frozen_path.parent.mkdir(parents=True, exist_ok=True)
            save_tensors(self.folder.frozen_path, frozen)
        self._frozen_saved = True

    def _tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of each round: what is trained, and the strategy's own tensors."""
        states = record_to_states(self.arrays, self.layouts)
        named = {name: self.layouts[name].unpack(state) for name, state in states.items()}
        tensors = {f"{name}.{key}": t for name, state in named.items() for key, t in state.items()}
        return tensors | {f"{STRATEGY}{key}": tensor for key, tensor in self.strategy.tensors().items()}

    def _whole(self, states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return join({name: states[name] for name in self.worker.chain})

    def _of_all_parties(self, states: Mapping[str, Mapping[str, Tensor]]) -> nn.Module:
        """Write and return the model with every party's front as it is: a simulation may put them together."""
        whole = dict(self._whole(states))  # with the first fronts of parties that never trained
        for device, round in self.strategy.kept().items():
            whole |= self._private(device, round)
        save_tensors(self.folder.model_path, whole)
        return with_weights(self.workload.model, whole, self.worker.accelerator)

    def _private(self, device: int, round: int) -> dict[str, Tensor]:
        """A device's private front, with its tail if it has one."""
        store, parties = self.worker.store, self.worker.parties
        front = f"{FRONT}{parties[device]}" if parties else "front"
        tensors = dict(store.load(f"fronts/{device}", round) or {}) | self._frozen_of(front)
        if "tail" in self.worker.chain and (not parties or store.path(f"tails/{device}", round).exists()):
            tensors |= dict(store.load(f"tails/{device}", round) or {}) | self._frozen_of("tail")
        return tensors

    def _keep_best(self, row: dict[str, Any]) -> None:
        score = row.get("validation_accuracy", row.get("validation_loss"))
        if score is None:
            return
        better = -score if "validation_accuracy" not in row else score
        if self.best is None or better > self.best["score"]:
            self.best = {"round": row["round"], "score": better}
            best = without_heads(self.workload.model, self._whole(self._states()))
            save_tensors(self.folder.best_path, best, {"round": str(row["round"])})

    def _frozen_of(self, segment: str) -> dict[str, Tensor]:
        return {key: tensor.detach() for key, tensor in self.layouts[segment].frozen.tensors.items()}

    def _publish_fronts(self) -> None:
        self.folder.fronts.mkdir(parents=True, exist_ok=True)
        written = []
        kept = self.strategy.kept()
        for device, round in kept.items():
            if self.federation.placement is not None and not self.worker.store.path(f"fronts/{device}", round).exists():
                continue  # it stays on its device
            path = self.folder.front_path(device)
            save_tensors(path, self._private(device, round), durable=False)
            written.append(path)
        sync(written)
        # A finished run's folder holds no rows of the data; what takes their place is on the disk by now.
        self.kept_fronts.finished(self.strategy.state(), versions_before(self.folder.checkpoint))


_PICTURED = 100  # devices
_CLASSES = 1000  # more cannot be told apart in a picture
