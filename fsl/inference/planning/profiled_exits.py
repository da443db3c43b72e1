"""Seconds of a model with exits as machines measured its backbone, in place of rates of multiply-adds."""

from collections.abc import Sequence

from fsl.argument_types import checks_types
from fsl.errors import ConfigError
from fsl.inference.exits import ExitCosts, ExitModel, ExitSeconds
from fsl.inference.planning.split_costs import SplitCosts
from fsl.inference.profiles import PLAIN, Encoding, ModelProfile
from fsl.inference.split_points import OUTPUT


@checks_types()
def profiled_exit_seconds(
    model: ExitModel,
    cut: str,
    costs: SplitCosts,
    *,
    codec: Encoding = PLAIN,
    rtt_seconds: float = 0.0,
    head_seconds: Sequence[float] | None = None,
    predictor_seconds: Sequence[float] | None = None,
) -> ExitSeconds:
    """Returns a model's seconds by its backbone's profiles: the device computes up to the cut, with an exit at the cut.

    `costs`: profiles of device and edge, of batches of one, whose points are all exits and the cut, of which the
    statistic counts; codecs, formats and power do not. A stage takes what heads, or tails, differ by between its ends.
    `codec`: how what crosses is written; its seconds and `rtt_seconds` are paid by rows that cross. `head_seconds` and
    `predictor_seconds`: of each exit on its side, where somebody measured them; else they are told by multiply-adds, at
    the rate of the whole backbone on that side, which is too little for small ones.

    ConfigError for profiles of another backbone or of larger batches, SplitError for a point that they do not have.
    """
    device, edge, exits = costs.device, costs.edge, model.exits
    if device.digest != model.points.digest():
        raise ConfigError(f"costs: they are of another model ({device.model}) or other weights; profile model.backbone")
    if device.batch != 1:
        raise ConfigError(f"costs: rows leave one by one, and profiles are of batches of {device.batch}; use batch=1")
    at = device.names.index(device.point(cut).name)
    behind = sum(device.names.index(device.point(name).name) <= at for name in exits) + (cut == OUTPUT)

    def passed(profile: ModelProfile, name: str, side: str) -> float:
        """Returns the seconds of the head, or of the tail, at a point."""
        return float(getattr(getattr(profile.point(name), side).seconds, costs.statistic))

    stages, before = [], None
    for k, name in enumerate((*exits, OUTPUT)):
        begins = 0.0 if before is None else passed(device, before, "head")
        if k < behind:
            taken = passed(device, name, "head") - begins
        elif k > behind:
            assert before is not None
            taken = passed(edge, before, "tail") - passed(edge, name, "tail")
        else:  # begun on the device, from the exit before to the cut, and ended on the edge
            taken = max(0.0, passed(device, cut, "head") - begins)
            taken += max(0.0, passed(edge, cut, "tail") - passed(edge, name, "tail"))
        stages.append(max(0.0, taken))
        before = name
    profiles = [device if k < behind else edge for k in range(len(exits))]
    heads = _given("head_seconds", head_seconds, exits) or _by_macs(model.costs.heads, profiles, costs.statistic)
    predictors = _given("predictor_seconds", predictor_seconds, exits) or _by_macs(
        model.costs.predictors, profiles, costs.statistic
    )
    return ExitSeconds(
        ExitCosts(tuple(stages), heads, predictors),
        crossing=behind,
        crossing_bytes=0.0 if cut == OUTPUT else codec.bytes_of(device.point(cut).crossing_bytes),
        link_s=rtt_seconds + codec.encode_seconds + codec.decode_seconds,
    )


def _given(name: str, seconds: Sequence[float] | None, exits: Sequence[str]) -> tuple[float, ...]:
    if seconds is not None and len(seconds) != len(exits):
        raise ConfigError(f"{name}: {len(seconds)} are given; give one for each of {', '.join(exits)}")
    return tuple(map(float, seconds or ()))


def _by_macs(macs: Sequence[float], profiles: Sequence[ModelProfile], statistic: str) -> tuple[float, ...]:
    """Returns the seconds of so many multiply-adds, each at the rate of the whole model on one machine."""
    found = []
    for count, profile in zip(macs, profiles):
        whole = profile.point(OUTPUT).head
        if count and not whole.macs:
            raise ConfigError("costs: the backbone has no multiply-adds, which tell no rate; give head_seconds")
        found.append(count * float(getattr(whole.seconds, statistic)) / whole.macs if count else 0.0)
    return tuple(found)
