"""How many samples each device holds (n_k), as a ledger counts them: its members' own numbers, not planned ones."""

import logging
from collections.abc import Mapping
from dataclasses import replace

from fsl.errors import RunError
from fsl.privacy.claims import ReleaseCounts, claim
from fsl.privacy.ledger import EpsilonTarget, Ledger

log = logging.getLogger(__name__)
_ROUNDING = 1 + 1e-9


def take_counts(ledger: Ledger, samples: Mapping[int, int]) -> None:
    """These devices hold so many samples from now on.

    A device that held another number in earlier rounds is counted by the fewest: a sample's Poisson rate is the largest
    then, in all of its steps.
    """
    ledger.samples = {**_as_mapping(ledger), **samples}
    for device, count in samples.items():
        released = ledger.release_counts.get(device)
        if released is not None and count < released.samples:
            ledger.release_counts[device] = replace(released, samples=count)


def take_members(ledger: Ledger, samples: Mapping[int, int], first: bool) -> dict[int, str]:
    """Count by the members' own n_k from now on; returns which of them cannot train under this account, and why.

    RunError where there are such when the run begins (`first`).
    """
    setting, planned, target = ledger.setting, _as_mapping(ledger), ledger.target
    fewest = min(samples.values(), default=0)
    if samples and setting.privacy.private and setting.privacy.delta >= 1 / fewest > 1 / min(planned.values()):
        log.warning(
            "privacy.delta=%g is not below 1/n=%.3g of a device whose node holds %d samples: use a smaller one",
            *(setting.privacy.delta, 1 / fewest, fewest),
        )
    take_counts(ledger, samples)
    refused = _too_few_for_batches(ledger, samples)
    said = ""
    if target is not None and not refused:
        refused = _beyond(ledger, samples, target)
        if refused and first:
            multiplier = target.solve(_as_mapping(ledger))
            said = f"; for these members privacy.dp_sgd.noise_multiplier={multiplier:.4g} reaches it, give that instead"
    if refused and first:
        shown = [f"device {device}: {reason}" for device, reason in list(refused.items())[:3]]
        more = f" (and {len(refused) - 3} more)" if len(refused) > 3 else ""
        raise RunError(f"{'; '.join(shown)}{more}{said}. Nothing was released")
    return refused


def _too_few_for_batches(ledger: Ledger, samples: Mapping[int, int]) -> dict[int, str]:
    setting = ledger.setting
    return {
        device: f"its node holds {held} samples, fewer than batch_size={setting.batch_size}, and a Poisson rate is 1 "
        f"at most; use batch_size={held} or less, or give it more"
        for device, held in samples.items()
        if setting.privacy.poisson and setting.batch_size > held
    }


def _beyond(ledger: Ledger, samples: Mapping[int, int], target: EpsilonTarget) -> dict[int, str]:
    costs = {device: _whole_run(ledger, device, target) for device in samples}
    return {
        device: f"its node holds {samples[device]} samples, and privacy.dp_sgd.target_epsilon={target.epsilon:g} was "
        f"solved for {target.planned[device]}: the run would cost {cost:.4g}"
        for device, cost in costs.items()
        if not cost <= target.epsilon * _ROUNDING
    }


def _whole_run(ledger: Ledger, device: int, target: EpsilonTarget) -> float:
    """What the device's planned rounds come to with the n_k that it has, or the fewest that it had."""
    rounds = target.rounds.get(device, 0)
    released = ledger.release_counts.get(device, ReleaseCounts(ledger.samples[device]))
    fewest = min(released.samples, ledger.samples[device])
    steps = max(ledger.steps(fewest), ledger.steps(ledger.samples[device]))
    whole = ReleaseCounts(fewest).more(rounds * steps, rounds * ledger.setting.passes, rounds)
    found = claim("model", ledger.setting, whole).epsilon
    return float("inf") if found is None else found


def _as_mapping(ledger: Ledger) -> dict[int, int]:
    held = ledger.samples
    return dict(held) if isinstance(held, Mapping) else dict(enumerate(held))
