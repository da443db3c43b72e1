"""How many samples each device holds (n_k), as a ledger counts them: its members' own numbers, not a planned partition's."""

from collections.abc import Mapping
from dataclasses import replace

from fsl.privacy.ledger import Ledger


def take_counts(ledger: Ledger, samples: Mapping[int, int]) -> None:
    """These devices hold so many samples from now on.

    A device that held another number in earlier rounds is counted by the fewest: a sample's Poisson rate is the largest
    then, in all of its steps.
    """
    held = ledger.samples if isinstance(ledger.samples, Mapping) else dict(enumerate(ledger.samples))
    ledger.samples = {**held, **samples}
    for device, count in samples.items():
        tally = ledger.tallies.get(device)
        if tally is not None and count < tally.samples:
            ledger.tallies[device] = replace(tally, samples=count)
