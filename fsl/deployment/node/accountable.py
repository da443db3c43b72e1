"""Refuses private plans that this node would not compute as its ledger counts them.

The cloud checks a run before it starts (`fsl.run.privacy_check`), and a node does not rely on it: a plan may name other
classes, codecs or settings than those that the cloud checked.
"""

from collections.abc import Sequence

from fsl.deployment.node.node_settings import NodeSettings
from fsl.deployment.node.own_ledger import LEDGERS, OwnLedger, RoundAccount
from fsl.errors import ConfigError
from fsl.messages.round_plan import RoundPlan
from fsl.privacy.settings import Privacy
from fsl.privacy.trainer_accounts import declares_private, unaccountable
from fsl.round.front_device import Device
from fsl.round.rows import refuse_codecs
from fsl.round.workload import Worker
from fsl.run.privacy_check import refuse_labels, refuse_model, refuse_with_tail
from fsl.trainers import EdgeTrainer


def charged(settings: NodeSettings, plan: RoundPlan, worker: Worker, devices: Sequence[int]) -> RoundAccount | None:
    """Charge these devices for what they are about to release; None without devices or without privacy.

    ConfigError where a device would pass its owner's limit, or the node cannot keep the account.
    """
    if not devices or settings.state is None:
        return None
    refuse_unaccountable(plan, worker)
    workload = worker.workload
    same = settings.rows == "all"
    own = OwnLedger(settings.state / LEDGERS, workload.store.name, settings.limit, settings.accountant, same)
    return own.before(plan, workload.partition, devices, workload.allowed, tail="tail" in worker.chain)


def refuse_unaccountable(plan: RoundPlan, worker: Worker) -> None:
    """Raise ConfigError for a private plan under which a device would release what its ledger does not count."""
    privacy = plan.privacy
    if privacy is None or not privacy.private:
        return
    if privacy.dp_sgd is not None and privacy.dp_sgd.noise_multiplier is None:
        raise _refused("privacy.dp_sgd.target_epsilon: a round's plan must name the noise multiplier")
    kind = plan.device.locate(worker.workload.allowed)
    if plan.trainer is not None and (kind is not Device or plan.device.kwargs):
        raise _refused(
            f"device={plan.device.text}: only fsl.device.Device clips and adds noise as the account counts it"
        )
    trainer = None if plan.trainer is None else plan.trainer.build(worker.workload.allowed, EdgeTrainer)
    _refuse_trainer(plan, privacy, trainer)
    _refuse_codecs(plan, privacy, worker)
    if "tail" in worker.chain:
        _refuse_with_tail(privacy)
    refuse_model(privacy, worker.model)
    refuse_labels(privacy, trainer, worker.workload.objective, worker.workload.data.classes)


def _refuse_trainer(plan: RoundPlan, privacy: Privacy, trainer: EdgeTrainer | None) -> None:
    if trainer is None:
        if privacy.cut is not None or privacy.labels is not None:
            raise _refused("privacy.cut and privacy.labels protect what goes to an edge, and this plan has none")
        return
    name = type(trainer).__name__
    if trainer.keeps:
        raise _refused(f"trainer={name}: it keeps something of a round for the next, which no account counts")
    if privacy.client is not None and (not trainer.divisible or plan.fronts != "averaged"):
        raise _refused(f"privacy.client: with {name} and {plan.fronts} fronts others learn from a device unclipped")
    if privacy.dp_sgd is None:
        return
    if privacy.nopeek is not None:
        raise _refused("privacy.nopeek with dp_sgd: a sample's gradient would depend on the others of its batch")
    if not declares_private(type(trainer)):
        raise _refused(f"privacy.dp_sgd: the back of {name} has no private step")
    if (reason := unaccountable(trainer, privacy)) is not None:
        raise _refused(f"privacy.dp_sgd: {reason}")
    if privacy.joint and (not trainer.divisible or plan.moves):
        raise _refused("privacy.dp_sgd.clipping=joint: it needs a back per device, and devices that do not move")


def _refuse_with_tail(privacy: Privacy) -> None:
    try:
        refuse_with_tail(privacy)
    except ConfigError as error:
        raise _refused(str(error)) from error


def _refuse_codecs(plan: RoundPlan, privacy: Privacy, worker: Worker) -> None:
    if plan.trainer is None or privacy.dp_sgd is None:
        return
    try:
        refuse_codecs(worker.workload, plan.up, plan.down)
    except ConfigError as error:
        raise _refused(str(error)) from error


def _refused(why: str) -> ConfigError:
    return ConfigError(f"this node keeps no account of such a plan and takes no part: {why}")
