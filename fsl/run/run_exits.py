"""Early exits of a run: checked before it, trained in it or behind it, and kept in its folder."""

import copy
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fsl.codecs.codec_maker import codec_of
from fsl.data import VerticalData
from fsl.errors import ConfigError
from fsl.importing.description import describe
from fsl.inference.exits import ExitModel, collect_outputs, save_exits, train_exits
from fsl.inference.exits.exit_choice import Exits
from fsl.inference.exits.exits_in_training import exit_model, refuse_cut_inside, with_exits
from fsl.inference.exits.leaving import leaving_confidence, rows_for_heads
from fsl.models.lora import has_adapters
from fsl.models.vertical_model import VerticalModel
from fsl.objective import CrossEntropy, Objective, Segmentation, TokenClassification
from fsl.round.workload import Workload
from fsl.run.preflight import fit
from fsl.run.run_folder import RunFolder
from fsl.run.training import Result
from fsl.settings.federation_settings import CloudStrategy, Federation
from fsl.split.coding import learned_in
from fsl.split.cutting import split, told_as

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunExits:
    """The exits of one run; `exits` None: it has none, and nothing here does anything."""

    exits: Exits | None
    federation: Federation
    strategy: CloudStrategy

    @staticmethod
    def of(given: Exits | Mapping[str, Any] | None, federation: Federation, strategy: CloudStrategy) -> "RunExits":
        """Read what a user gave; ConfigError for a run in which such exits are not built."""
        if given is not None and not isinstance(given, Exits | Mapping):
            raise ConfigError(f"exits={given!r}: give heads by points, as {{'pool1': 'conv'}}, or a fsl.Exits")
        exits = Exits(given) if isinstance(given, Mapping) and given else given or None
        assert exits is None or isinstance(exits, Exits)
        found = RunExits(exits=exits, federation=federation, strategy=strategy)
        if exits is not None:
            found._refuse()
        return found

    def identity(self) -> dict[str, str]:
        """Returns exits as settings of a run tell them."""
        return {} if self.exits is None else {"exits": describe(self.exits)}

    def put_into(self, workload: Workload, several: bool) -> Workload:
        """Returns the workload with the exits that learn in the run; ConfigError where these or others cannot be had.

        `several`: devices are cut at different places.
        """
        exits, seed = self.exits, self.federation.training.seed
        if exits is None:
            return workload
        if isinstance(workload.model, VerticalModel) or isinstance(workload.data, VerticalData):
            raise ConfigError("exits: a VerticalModel's rows are at several parties; leave exits out")
        _refuse_objective(workload.objective)
        blank = workload.data.blank(3)
        tried, heads = copy.deepcopy((workload.model, dict(exits.heads)))
        with told_as(lambda point: f"exits.{point}"):
            _try_to_keep(ExitModel(tried, heads, blank, confidence=exits.confidence, seed=seed))
        if exits.how != "joint":
            return workload
        if several:
            raise ConfigError("exits, with cuts: heads lie on one side of a cut for all devices; leave out one of them")
        cuts = split(copy.deepcopy(workload.model), workload.cut, blank, workload.places).cuts
        if len(cuts) > 1:
            raise ConfigError(
                f"exits, with cut={', '.join(cuts)}: labels are on one side, and heads on the others could not "
                "learn; give one cut, or train heads behind the run by how=frozen"
            )
        refuse_cut_inside(list(exits.heads), cuts)
        return replace(workload, model=with_exits(workload.model, exits.heads, blank, weights=exits.weights, seed=seed))

    def keep(self, result: Result, workload: Workload, folder: RunFolder) -> None:
        """Write a finished run's exits into its folder, with the confidence from which rows leave.

        Those that did not learn in the run are trained first.
        """
        exits, data = self.exits, workload.data
        if exits is None or result.model is None:
            return
        if not all(bool(tensor.isfinite().all()) for tensor in _joined(result.states).values()):
            log.warning("exits: the trained weights are not finite, so that no exits are written")
            return
        seed, objective = self.federation.training.seed, fit(workload, data.classes).objective
        train, held = rows_for_heads(data, seed)
        if exits.how == "joint":
            found = exit_model(workload.model, _joined(result.states), data.blank(3), exits.confidence)
            if data.validation is None:
                log.warning(
                    "exits: the confidence from which rows leave is chosen on training rows, of which heads are too "
                    "sure; data.validation=0.1 holds rows out for it"
                )
        else:
            model, heads = copy.deepcopy((result.model, dict(exits.heads)))  # users' own heads stay as they are
            found = ExitModel(model.cpu().eval(), heads, data.blank(3), confidence=exits.confidence, seed=seed)
            train_exits(
                found,
                train,
                how=exits.how,
                objective=objective,
                distillation=exits.distillation,
                epochs=exits.afterwards("epochs"),
                batch_size=exits.afterwards("batch_size"),
                learning_rate=exits.afterwards("learning_rate"),
                seed=seed,
            )
        beta = leaving_confidence(collect_outputs(found, held, objective=objective), found, exits.within)
        save_exits(folder.path, found, thresholds=beta, overwrite=True)

    def _refuse(self) -> None:
        exits, federation = self.exits, self.federation
        assert exits is not None
        if self.strategy.fronts == "private":
            raise ConfigError(
                f"exits: with {type(self.strategy).__name__} each device has a front of its own, and exits of a run "
                "belong to one model; leave them out, and train them by fsl-exits run=... front=... on one device's"
            )
        if learned := learned_in(codec_of(federation.wire.up_spec)):
            raise ConfigError(f"exits, with codec.up={learned[0].name}: a trained codec beside exits is not built")
        if exits.how != "joint" and federation.placement is not None:
            raise ConfigError(
                f"exits.how={exits.how}: heads are trained on training rows, which stay on devices in a real "
                "federation; use how=joint"
            )
        if exits.how == "joint" and federation.privacy is not None:
            raise ConfigError(
                "exits, with privacy: heads that learn in a private run are not built; leave out one of them"
            )
        if exits.how != "joint" and federation.privacy is not None:
            raise ConfigError(
                f"exits.how={exits.how}, with privacy: heads would learn from training rows without it; train them by "
                "fsl-exits on rows that need no protection"
            )


def _try_to_keep(model: ExitModel) -> None:
    """ConfigError for a model that could not be written with its exits once it is trained."""
    if has_adapters(model.backbone):
        raise ConfigError("exits, with lora: what is written with exits is a plain model; leave out one of them")
    with tempfile.TemporaryDirectory(prefix="fsl-exits-") as folder:
        save_exits(folder, model)


def _refuse_objective(objective: Objective) -> None:
    many = isinstance(objective, Segmentation | TokenClassification)  # classes a row
    if many or not isinstance(objective, CrossEntropy):
        raise ConfigError(
            f"exits: the objective is {type(objective).__name__}, and exits of runs are of classes, one a row, whose "
            "confidence says when rows leave; make others with fsl.inference.exits.ExitModel"
        )


def _joined(states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {key: tensor for name, state in states.items() if name != "head" for key, tensor in state.items()}
