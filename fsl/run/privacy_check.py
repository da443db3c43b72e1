"""What has a valid account, and what is refused because it has none."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from fsl.errors import ConfigError
from fsl.objective import CrossEntropy, Objective
from fsl.privacy.claims import ReleaseCounts, Setting, claim
from fsl.privacy.epsilon import solve
from fsl.privacy.ledger import EpsilonTarget, Ledger
from fsl.privacy.settings import DPSGD, Privacy
from fsl.privacy.trainer_accounts import declares_private, fronts_moved, has_private_step, unaccountable
from fsl.round.batches import sample_rate
from fsl.round.step_rules import trainer_in_words
from fsl.round.workload import Worker
from fsl.run.private_rounds import fixed_segments, most_ahead, rounds_ahead, trainers_of
from fsl.segments.calling import call
from fsl.segments.modes import evaluating, modes_of, normalises_over_rows, put_back, training_modes
from fsl.segments.tensor_trees import received
from fsl.settings.federation_settings import CloudStrategy, Federation
from fsl.split.placing import TOP
from fsl.trainers import EdgeTrainer

log = logging.getLogger(__name__)


def refuse_tied(worker: Worker) -> None:
    """Raise ConfigError where front and tail share trained weights: no account is of both uses."""
    if any(segment.borrows for segment in worker.segments.values()):
        raise ConfigError(
            "privacy: front and tail share trained weights, and what privacy bounds is worked out for weights of one "
            "segment; untie them (in models of transformers tie_word_embeddings=False), or leave privacy out"
        )


def refuse_several(worker: Worker) -> None:
    """Raise ConfigError where several tensors go in or cross the cut: no privacy is built for them."""
    data, front = worker.workload.data, worker.segments["front"].module
    inputs = data.blank(2).to(worker.accelerator)
    try:
        with evaluating(front), torch.no_grad(), torch.random.fork_rng(devices=[]):
            smashed = received(call(front, inputs))
    except Exception as error:
        log.debug("the front takes no blank input: %s", error)  # then the trial of rows says what is wrong
        return
    for what, values in (("the model takes", inputs), ("at the cut cross", smashed)):
        if not isinstance(values, Tensor):
            raise ConfigError(
                f"privacy: {what} several tensors ({', '.join(values.names)}), and what privacy bounds is worked out "
                "for one; use a model and a cut with one, or leave privacy out"
            )


def private_run(
    federation: Federation,
    strategy: CloudStrategy,
    model: nn.Module,
    objective: Objective,
    classes: int | None,
    samples: Sequence[int],
    path: Path | None,
    secure: bool,
    encrypted: bool,
    fitted: str = "",
) -> Federation:
    """A federation with its noise multiplier solved for, and a ledger; ConfigError for what has no valid account.

    `strategy` is bound to the federation; `samples` are the n_k by device; the ledger goes to `path`. `fitted`: why the
    model that the run starts from may know these data already, in words.
    """
    privacy = federation.privacy
    assert privacy is not None
    refuse_counts(privacy, objective)
    refuse_own_tests(federation)
    trainers = trainers_of(strategy, federation.training.rounds)
    refuse_model(privacy, model)
    tail = "tail" in federation.layouts
    if tail:
        refuse_with_tail(privacy)
        privacy = privacy if privacy.dp_sgd is None else replace(privacy, dp_sgd=privacy.dp_sgd.with_tail())
    elif privacy.dp_sgd is not None and privacy.dp_sgd.tail_share:
        raise ConfigError(
            f"privacy.dp_sgd.tail_share={privacy.dp_sgd.tail_share}: this model has no tail, which two cuts make; "
            "leave it out"
        )
    if TOP in federation.layouts:
        raise ConfigError(
            "privacy: accounts are of a front and a back, and places=[device, edge, cloud] has a third segment; give "
            "one cut"
        )
    for trainer in trainers.values():
        refuse_training(privacy, strategy, trainer, federation)
        refuse_labels(privacy, trainer, objective, classes)
        refuse_detector(privacy, strategy, trainer, classes, len(samples))
    if privacy.poisson:
        for device, held in enumerate(samples):
            sample_rate(held, federation.training.batch_size, device)
    fewest = min(samples)
    if privacy.private and privacy.delta >= 1 / fewest:
        log.warning(
            "privacy.delta=%g is not below 1/n=%.3g of the device with %d samples: at this delta a mechanism that "
            "publishes one sample at random would count as private; use 1e-5 or less",
            *(privacy.delta, 1 / fewest, fewest),
        )
    at_edges = [trainer for trainer in trainers.values() if trainer is not None]
    setting = Setting(
        privacy,
        strategy.fronts,
        bool(at_edges),
        federation.training.batch_size,
        federation.training.local_epochs,
        _spread(at_edges, strategy, federation),
        secure,
        encrypted,
        fixed_segments(model, federation.layouts),
        "" if privacy.public_front else fitted,
        tail,
    )
    target = None
    if privacy.dp_sgd is not None and privacy.dp_sgd.target_epsilon is not None:
        rounds = rounds_ahead(strategy, federation)
        target = _target(setting, samples, rounds)
        setting = replace(setting, privacy=_solved(setting, samples, rounds))
        log.info("noise multiplier %g for the epsilon asked for", setting.privacy.dp_sgd.noise_multiplier)  # type: ignore[union-attr]
    ledger = Ledger(setting, samples, path, frozenset(trainers))
    ledger.target = target
    return replace(federation, privacy=setting.privacy, ledger=ledger)


def refuse_with_tail(privacy: Privacy) -> None:
    """Raise ConfigError for mechanisms that have no form or account where the model has a tail."""
    for name in ("cut", "labels", "nopeek", "detector"):
        if getattr(privacy, name) is not None:
            raise ConfigError(
                f"privacy.{name}: two cuts make a tail, whose gradients reach the edge as they are, so {name} would "
                "bound nothing that it sees; give one cut, or use dp_sgd or client"
            )
    if privacy.joint:
        raise ConfigError(
            "privacy.dp_sgd.clipping=joint: one clip is over a front and a back, and two cuts make a tail; use "
            "clipping=separate, or give one cut"
        )


def refuse_counts(privacy: Privacy, objective: Objective) -> None:
    """ConfigError for weights that are exact counts of the targets: everybody gets them, and no account has them."""
    if objective.counted and (privacy.private or privacy.labels is not None):
        raise ConfigError(
            "objective: balanced weights are exact counts of the training targets, which everybody would get and no "
            "account covers; give public numbers as a list, or leave privacy out"
        )


def refuse_own_tests(federation: Federation) -> None:
    """ConfigError for scores on devices' own rows: they are exact, and no account has them."""
    if federation.evaluation.own:
        raise ConfigError(
            "evaluate_own: scores on devices' own rows are exact, and no account of privacy covers them; leave it out "
            "of a private run, or evaluate the finished model on each device"
        )


def _target(setting: Setting, samples: Sequence[int], rounds: Counter[int]) -> EpsilonTarget:
    dp_sgd = setting.privacy.dp_sgd
    assert dp_sgd is not None
    assert dp_sgd.target_epsilon is not None

    def solved(held: Mapping[int, int]) -> float:
        found = _solved(setting, [held.get(device, planned) for device, planned in enumerate(samples)], rounds).dp_sgd
        assert found is not None
        assert found.noise_multiplier is not None
        return found.noise_multiplier

    return EpsilonTarget(dp_sgd.target_epsilon, dict(rounds), dict(enumerate(samples)), solved)


def _spread(trainers: Sequence[EdgeTrainer], strategy: CloudStrategy, federation: Federation) -> int:
    """How many devices' fronts one sample moves in a step, in the worst of all rounds."""
    if all(fronts_moved(trainer, federation.training.devices) == 1 for trainer in trainers):
        return 1
    return max(fronts_moved(trainer, most_ahead(strategy, federation)) for trainer in trainers)


def _solved(setting: Setting, samples: Sequence[int], rounds: Counter[int]) -> Privacy:
    privacy = setting.privacy
    assert privacy.dp_sgd is not None
    target = privacy.dp_sgd.target_epsilon
    assert target is not None
    ledger = Ledger(setting, samples, None)
    release_counts = {
        ReleaseCounts(samples[k]).more(n * ledger.steps(samples[k]), n * setting.passes, n)
        for k, n in rounds.items()
        if n
    }

    def cost(multiplier: float) -> float:
        tried = replace(setting, privacy=privacy.with_multiplier(multiplier))
        claims = [claim("model", tried, released) for released in release_counts]
        unbounded = next((found.unbounded for found in claims if found.epsilon is None), None)
        if unbounded:
            raise ConfigError(
                f"privacy.dp_sgd.target_epsilon={target}: no noise multiplier reaches it, "
                f"since against who gets the model it is unbounded: {unbounded}"
            )
        return max(found.epsilon or 0.0 for found in claims)

    return privacy.with_multiplier(solve(target, cost))


def refuse_model(privacy: Privacy, model: nn.Module) -> None:
    """ConfigError for modules that differential privacy cannot train, in the words of Opacus's validator."""
    if privacy.dp_sgd is None and privacy.client is None:
        return
    from opacus.validators import ModuleValidator  # Opacus takes a while to import

    before = modes_of(model)
    try:
        put_back(modes := training_modes(model))
        model.training = True  # which Opacus asks of the root
        errors = ModuleValidator.validate(model)
        if errors:
            words = str(errors[0]).split(". ")[0]
            raise ConfigError(
                f"privacy: the model has a module that cannot be trained privately: {words}. Use model.norm=group, or "
                "opacus.validators.ModuleValidator.fix(model) for a model of your own"
            )
        put_back(modes)
        _refuse_modes(model, privacy)
    finally:
        put_back(before)


def _refuse_modes(model: nn.Module, privacy: Privacy) -> None:
    """ConfigError for modules whose mode, which Opacus does not look at, would leave them unprotected."""
    for name, module in model.named_modules():
        norm = isinstance(module, nn.modules.batchnorm._NormBase)
        if normalises_over_rows(module) or (norm and module.training and module.running_mean is not None):
            raise ConfigError(
                f"privacy: '{name}' is a {type(module).__name__} that takes statistics over the batch, so that a "
                "sample changes what no clip bounds. Use model.norm=group, or put it in eval()"
            )
        if privacy.dp_sgd is not None and not module.training:
            trained = next((key for key, p in module.named_parameters(recurse=False) if p.requires_grad), None)
            if trained is not None:
                raise ConfigError(
                    f"privacy.dp_sgd: '{name}' is in evaluation mode and its {trained} is trained, and Opacus finds no "
                    "sample's gradient there; put it in train(), or freeze it with requires_grad_(False)"
                )


def refuse_training(
    privacy: Privacy, strategy: CloudStrategy, trainer: EdgeTrainer | None, federation: Federation
) -> None:
    """ConfigError for algorithms and settings under which what is clipped is not what one sample contributes."""
    name = type(strategy).__name__
    if trainer is not None and trainer.keeps and privacy.private:
        raise ConfigError(
            f"privacy: the edge trainer of {name} keeps something of a round for the next, and what is learnt from it "
            "again has no account; use a trainer that keeps nothing"
        )
    if privacy.client is not None:
        if trainer is not None and not trainer.divisible:
            raise ConfigError(
                f"privacy.client: {name} has a back that devices share, which learns from each of them unclipped; use "
                "a strategy with a back per device (splitfed_v1), or privacy=dp_sgd"
            )
        if strategy.fronts != "averaged":
            raise ConfigError(
                f"privacy.client: {name} has {strategy.fronts} fronts, and only averaged updates can be noised at the "
                "cloud; use splitfed_v1"
            )
        if federation.aggregator is not None:
            raise ConfigError("privacy.client: the noise is that of a sum of updates; use aggregator=mean")
    if privacy.cut is not None and trainer is None:
        raise ConfigError(f"privacy.cut: {name} has no cut; use privacy=dp_sgd, or a strategy that splits the model")
    if privacy.labels is not None and trainer is None:
        raise ConfigError(f"privacy.labels: with {name} no labels leave a device; use privacy=dp_sgd")
    if privacy.nopeek is not None and trainer is None:
        raise ConfigError(f"privacy.nopeek: {name} has no smashed data; use a strategy that splits the model")
    if (privacy.dp_sgd is not None or privacy.cut is not None or privacy.nopeek is not None) and strategy.local_loss:
        raise ConfigError(f"privacy: devices of {name} train by a loss of their own, which has no private form here")
    if privacy.dp_sgd is not None:
        _refuse_dp_sgd(privacy, privacy.dp_sgd, name, trainer, federation)


def _refuse_dp_sgd(
    privacy: Privacy, dp_sgd: DPSGD, name: str, trainer: EdgeTrainer | None, federation: Federation
) -> None:
    if privacy.nopeek is not None:
        raise ConfigError(
            "privacy: with nopeek a sample's gradient depends on the others of its batch, so that a clip of its own "
            "bounds nothing; use dp_sgd without nopeek"
        )
    if trainer is None:
        return
    if not declares_private(type(trainer)):
        if has_private_step(type(trainer)):
            raise ConfigError(
                f"privacy.dp_sgd: the trainer {type(trainer).__name__} inherits private = True, which was said of "
                "another step; where its own clips what each sample contributes, say private = True in its body, with "
                "spread() and unaccountable()"
            )
        raise ConfigError(
            f"privacy.dp_sgd: {trainer_in_words(trainer, name)} has no private step; use splitfed_v1, splitfed_v2, "
            "splitfed_v3, vanilla, psl, sglr or fedavg, or say private = True in the body of a trainer of "
            "your own whose learners come from bench.borrow()"
        )
    if (reason := unaccountable(trainer, privacy)) is not None:
        raise ConfigError(f"privacy.dp_sgd: {reason}")
    if dp_sgd.clipping == "joint" and (not trainer.divisible or federation.mobility is not None):
        raise ConfigError(
            "privacy.dp_sgd.clipping=joint: it needs a back per device (splitfed_v1) and mobility=none, since a step "
            "of the back waits for what its device says; use clipping=separate"
        )


def refuse_detector(
    privacy: Privacy, strategy: CloudStrategy, trainer: EdgeTrainer | None, classes: int | None, devices: int
) -> None:
    """ConfigError where even an honest edge's cut gradients would not depend on a device's labels."""
    if privacy.detector is None:
        return
    name = type(strategy).__name__
    if trainer is None or strategy.local_loss:
        raise ConfigError(f"privacy.detector: devices of {name} get no cut gradients to watch; leave it out")
    if fronts_moved(trainer, devices) > 1:
        raise ConfigError(
            f"privacy.detector: {name} averages cut gradients over devices (phi > 0), so that they do not depend on "
            "one device's labels; use phi=0, or leave the detector out"
        )
    if classes is None:
        raise ConfigError("privacy.detector: this run's targets are no class labels; leave the detector out")


def refuse_labels(privacy: Privacy, trainer: EdgeTrainer | None, objective: Objective, classes: int | None) -> None:
    """ConfigError where labels are no classes."""
    if privacy.labels is None or trainer is None:
        return
    if classes is None or not isinstance(objective, CrossEntropy):
        raise ConfigError(
            f"privacy.labels: randomized response is over classes, and the objective is {type(objective).__name__}; "
            "use cross-entropy, or leave privacy.labels out"
        )
    if privacy.labels.correct and not objective.plain:
        raise ConfigError(
            "privacy.labels.correct: the correction is of plain cross-entropy, and this run's has class weights, label "
            "smoothing, ignored targets or another dimension of classes, which it would drop; use "
            "privacy.labels.correct=false, or plain cross-entropy"
        )
