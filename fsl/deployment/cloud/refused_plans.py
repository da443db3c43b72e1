"""Which plans separate nodes cannot carry out on a run's terms."""

from fsl.codecs.codec_maker import CANNOT_MOVE, CANNOT_MOVE_TAILS, codec_of
from fsl.deployment.cloud.terms import Terms
from fsl.errors import RunError
from fsl.messages.round_plan import RoundPlan


def refuse_plan(plan: RoundPlan, terms: Terms) -> None:
    """Raise RunError for plans that separate nodes cannot carry out, or that would reveal too much."""
    if terms.max_norm is not None and plan.privacy is not None:
        raise RunError(
            f"deployment.max_norm={terms.max_norm} in a run with privacy: who is lost would tell of an "
            "update's norm, which no ledger counts; leave it out, and bound updates by privacy.client.clip"
        )
    shared = plan.trainer is not None and not plan.trainer.locate().divisible
    if terms.max_norm is not None and shared and plan.fronts == "private":
        raise RunError(
            f"deployment.max_norm={terms.max_norm}: devices with fronts of their own and a back that they "
            "share send no update that could be measured; leave it out"
        )
    if plan.moves and plan.on_move == "restart" and not plan.reset_optimizer:
        raise RunError(
            "on_move=restart with optimizer.reset=false: a device that begins its round again at another edge has "
            "its optimizer's state at home; use on_move=migrate, or optimizer.reset=true"
        )
    if terms.roaming and plan.privacy is not None and plan.privacy.joint:
        raise RunError(
            "deployment.roaming=true with privacy.dp_sgd.clipping=joint: a step of the back waits for what its "
            "device says, and cannot move with it; use clipping=separate, or roaming=false"
        )
    trainer = None if plan.trainer is None else plan.trainer.build()
    if terms.roaming and trainer is not None and trainer.keeps and trainer.divisible:
        raise RunError(
            f"deployment.roaming=true: {type(trainer).__name__} keeps something of each device from round to "
            "round, which does not follow it to another edge; use roaming=false, or a trainer that keeps nothing"
        )
    for spec in (plan.up, plan.down) if terms.roaming and trainer is not None else ():
        codec = codec_of(spec)
        if not codec.movable or (codec.stateful and plan.tails):
            reason = CANNOT_MOVE_TAILS if codec.movable else CANNOT_MOVE
            raise RunError(f"deployment.roaming=true with codec {spec.text}: {reason}")
