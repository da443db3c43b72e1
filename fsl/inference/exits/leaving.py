"""From which confidence rows leave at a model's exits: chosen on rows that heads have not learnt from."""

import torch

from fsl import seeds
from fsl.data import Examples, TaskData
from fsl.inference.exits.exit_model import ExitModel
from fsl.inference.exits.exit_outputs import ExitOutputs

NEVER = 2.0  # above every confidence: nobody leaves, and no head is computed
_GRID = (*(k / 20 for k in range(8, 20)), 0.97, 0.98, 0.99, 0.995, 0.999)
_HELD_OUT = 0.1  # of the training rows, where there are no validation rows


def rows_for_heads(data: TaskData, seed: int) -> tuple[Examples, Examples]:
    """Returns rows to train heads on, and rows that they do not see: validation rows, or a tenth of the training's."""
    train = data.train.of_one_length()
    if data.validation is not None:
        return train, data.validation.of_one_length()
    order = torch.randperm(len(train), generator=seeds.torch_generator(seed, "rows that exits do not see"))
    held = max(1, round(_HELD_OUT * len(train)))
    return train.subset(order[held:]), train.subset(order[:held])


def leaving_confidence(outputs: ExitOutputs, model: ExitModel, within: float) -> float:
    """Returns the confidence of fewest multiply-adds that loses at most `within` of accuracy; or `NEVER`."""
    whole = outputs.means()[-1]
    found = [(NEVER, float(sum(model.costs.stages)))]
    for beta in _GRID:
        replay = outputs.replay(beta)
        if replay.quality(outputs) >= whole - within:
            found.append((beta, float(replay.cost(model.costs).mean())))
    return min(found, key=lambda one: one[1])[0]
