"""Puts cuts in the order in which a model's forward comes to them."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from fsl.errors import SplitError
from fsl.segments.calling import call
from fsl.segments.modes import evaluating
from fsl.segments.tensor_trees import Values
from fsl.split.cutting import possible_cuts


def in_order(model: nn.Module, cuts: Sequence[str], example: Values) -> tuple[str, ...]:
    """Returns these cuts, each once, in the order in which their modules end in a forward pass over `example`.

    SplitError for a name that the model does not have, and for a module that its forward does not call.
    """
    ended: list[str] = []
    modules = dict(model.named_modules(remove_duplicate=False))

    def note(name: str, *_: Any) -> None:
        if name not in ended:
            ended.append(name)

    with ExitStack() as hooks:
        for cut in dict.fromkeys(cuts):
            if not cut or cut not in modules:
                raise SplitError(
                    f"cut={cut!r} cannot be made: the model has no module of that name; possible cuts: "
                    f"{', '.join(possible_cuts(model, example))}"
                )
            hooks.callback(modules[cut].register_forward_hook(partial(note, cut)).remove)
        with torch.no_grad(), torch.random.fork_rng(devices=[]), evaluating(model):
            call(model, example)
    if missed := [cut for cut in dict.fromkeys(cuts) if cut not in ended]:
        raise SplitError(f"cut={missed[0]!r} cannot be made: the model's forward does not call that module")
    return tuple(ended)
