"""Under DP-SGD a clip of a segment's gradient and a rate by step come after the noise: they cost no privacy."""

from dataclasses import replace

import pytest
import torch
from fsl.strategies import PSL, FedAvg, SplitFedV1

from fsl.privacy import DPSGD, Privacy
from fsl.segments.learning_rate import Schedule
from tests.helpers.runs import SGD, assert_same_bits, run
from tests.helpers.small import small_model

CLIPPED = replace(SGD, clip_norm={"front": 0.05, "back": 0.1})
BY_STEP = replace(CLIPPED, schedule=Schedule(cosine=True, per="step"))


@pytest.mark.parametrize("clipping", ["separate", pytest.param("joint", marks=pytest.mark.shows)])
def test_without_noise_and_with_a_clip_no_sample_reaches_it_is_the_clip_of_the_mean(clipping):
    privacy = Privacy(dp_sgd=DPSGD(noise_multiplier=0.0, clip=1e6, clipping=clipping, sampling="shuffle"), losses=True)
    private = run(SplitFedV1(), optimizer=BY_STEP, privacy=privacy)
    plain = run(SplitFedV1(), optimizer=BY_STEP)
    for segment, tensors in plain.states.items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(private.states[segment][name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("clipping", ["separate", "joint"])
def test_a_noised_gradient_is_clipped_in_splitfed_v1_as_in_fedavg(clipping):
    privacy = Privacy(dp_sgd=DPSGD(noise_multiplier=1.0, clipping=clipping))
    given = {"optimizer": BY_STEP, "privacy": privacy, "rounds": 1}
    split, whole = run(SplitFedV1(), **given), run(FedAvg(), **given)
    assert_same_bits(split.model.state_dict(), whole.model.state_dict())
    loud = run(SplitFedV1(), **given | {"optimizer": SGD})
    assert travelled(split) < 0.5 * travelled(loud)


def travelled(found):
    """How far the model went."""
    start = small_model().state_dict()
    return sum(float((tensor - start[name]).norm()) for name, tensor in found.model.state_dict().items())


def test_the_account_is_the_same():
    given = {"privacy": Privacy(dp_sgd=DPSGD(noise_multiplier=1.0)), "rounds": 1}
    rows = [run(PSL(), optimizer=optimizer, **given).metrics[0] for optimizer in (SGD, CLIPPED, BY_STEP)]
    epsilons = [{k: v for k, v in row.items() if k.startswith("epsilon")} for row in rows]
    assert epsilons[0]
    assert epsilons[0] == epsilons[1] == epsilons[2]
