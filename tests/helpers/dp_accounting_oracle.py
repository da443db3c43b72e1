"""Writes dp_accounting.json: what Google's dp-accounting says of compositions that the ledger makes.

It needs an environment of its own, since dp-accounting 0.6.0 wants attrs < 24, which other packages here do not:

    python -m venv oracle && oracle/bin/pip install dp-accounting==0.6.0
    oracle/bin/python tests/helpers/dp_accounting_oracle.py
"""

import json
import math
from pathlib import Path

from dp_accounting import (
    ComposedDpEvent,
    GaussianDpEvent,
    NeighboringRelation,
    PoissonSampledDpEvent,
    RandomizedResponseDpEvent,
    SelfComposedDpEvent,
)
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

# (noise multiplier, sample rate, releases), ..., and (epsilon, classes) of randomized response or None, and delta
CASES = [
    ([(1.0, 0.1, 100)], None, 1e-5),
    ([(0.7, 0.02, 2000)], None, 1e-6),
    ([(4.0, 1.0, 50)], None, 1e-5),
    ([(2.0, 0.05, 300), (5.0, 1.0, 20)], None, 1e-5),
    ([(3.0, 1.0, 10), (1.5, 0.1, 200), (8.0, 1.0, 100)], None, 1e-4),
    ([(10.0, 1.0, 40)], (2.0, 10), 1e-5),
    ([(6.0, 1.0, 10), (20.0, 1.0, 100)], (0.5, 4), 1e-5),
]
# Front and back noised separately, on one Poisson draw: (front, back, rate, steps)
TWO_CLIPS = [(1.4, 1.4, 0.1, 100), (1.0, 3.0, 0.05, 400), (5.0, 2.0, 1.0, 30)]


def event(gaussians, response):
    events = []
    for multiplier, rate, releases in gaussians:
        one = GaussianDpEvent(multiplier)
        events.append(SelfComposedDpEvent(one if rate == 1 else PoissonSampledDpEvent(rate, one), releases))
    if response is not None:
        epsilon, classes = response
        # With chance p the answer is drawn anew from all classes.
        events.append(RandomizedResponseDpEvent(classes / (math.exp(epsilon) + classes - 1), classes))
    return ComposedDpEvent(events)


def epsilons(composed, delta, rdp=True):
    # Randomized response knows no "add or remove".
    pld = PLDAccountant() if rdp else PLDAccountant(NeighboringRelation.REPLACE_SPECIAL)
    pld.compose(composed)
    found = {"pld": pld.get_epsilon(delta)}
    if rdp:
        accountant = RdpAccountant()
        accountant.compose(composed)
        found["rdp"] = accountant.get_epsilon(delta)
    return found


def two_clips(front, back, rate, steps):
    """Both Gaussians on one draw: a composition inside of the sampling."""
    both = ComposedDpEvent([GaussianDpEvent(front), GaussianDpEvent(back)])
    return SelfComposedDpEvent(both if rate == 1 else PoissonSampledDpEvent(rate, both), steps)


if __name__ == "__main__":
    cases = [
        {"gaussians": g, "response": r, "delta": d, "epsilon": epsilons(event(g, r), d, rdp=r is None)}
        for g, r, d in CASES
    ]
    clips = []
    for front, back, rate, steps in TWO_CLIPS:
        accountant = RdpAccountant()
        accountant.compose(two_clips(front, back, rate, steps))
        clips.append([front, back, rate, steps, accountant.get_epsilon(1e-5)])
    path = Path(__file__).with_name("dp_accounting.json")
    path.write_text(json.dumps({"cases": cases, "two_clips": clips}, indent=1) + "\n")
