"""Answers about a model that a process has given already, for runs of the same model: they are half of a short run.

What `fsl.split.known_structures` can tell apart is known by its structure; models, losses and hooks of a test's own are
asked about each time, and so are the functions themselves in their own tests. Models and losses of `KNOWN_HELPERS` are
told apart as those of fsl: they go by their attributes alone.
"""

from types import FunctionType

import torch

from fsl.split import known_structures
from fsl.split.known_structures import structure_of

KNOWN_HELPERS = ("tests.helpers.causal", "tests.helpers.crossing")


def known_helpers(patch):
    """A model of `KNOWN_HELPERS` is traced once in a process, as one of transformers is."""
    patch.setattr(known_structures, "_PACKAGES", (*known_structures._PACKAGES, *KNOWN_HELPERS))


def _of_model(model, example):
    return structure_of(model, example, {id(module): module.training for module in model.modules()})


def _of_objective(objective):
    if not type(objective).__module__.startswith("fsl.objective."):
        return None
    try:
        return type(objective), tuple((name, _of_value(value)) for name, value in sorted(vars(objective).items()))
    except TypeError:
        return None


def _of_value(value):
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), tuple(value.flatten().tolist())
    if isinstance(value, FunctionType) and not value.__module__.startswith(("torch.", *KNOWN_HELPERS)):
        raise TypeError(f"{value.__name__} may be any")
    return known_structures._plain(value)


def refused_once(refuse):
    """`refuse_unfaithful`, which is not asked again about what it has let through."""
    passed = set()

    def asked(model, worker, inputs, targets, loss):
        where = worker.workload.cut, worker.cuts, worker.workload.places, worker.accelerator, *worker.segments
        shape = tuple(targets.shape), targets.dtype
        known = _of_model(model, inputs), _of_objective(getattr(loss, "__self__", None))
        if None in known or (*known, where, shape) not in passed:
            refuse(model, worker, inputs, targets, loss)
            if None not in known:
                passed.add((*known, where, shape))

    return asked


def measured_once(measure):
    """`segment_costs`, which is not measured again."""
    found = {}

    def asked(model, cut, examples, objective, head=None, places=None):
        known = _of_model(model, examples.blank(3)), _of_objective(objective)
        if head is not None or None in known:
            return measure(model, cut, examples, objective, head, places)
        where = cut if cut is None or isinstance(cut, str) else tuple(cut), places and tuple(places)
        shape = examples.targets.shape[1:], examples.targets.dtype
        if (*known, where, shape) not in found:
            found[*known, where, shape] = measure(model, cut, examples, objective, head, places)
        return found[*known, where, shape]

    return asked
