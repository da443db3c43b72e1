"""Answers about a model that a process has given already, for runs of the same model: they are half of a short run.

What `fsl.split.known_structures` can tell apart is known by its structure; models, losses and hooks of a test's own are
asked about each time, and so are the functions themselves in their own tests.
"""

from fsl.objective.classes import CrossEntropy
from fsl.split.known_structures import structure_of


def _of_model(model, example):
    return structure_of(model, example, {id(module): module.training for module in model.modules()})


def _of_objective(objective):
    return objective.mean_over if type(objective) is CrossEntropy and objective.plain else None


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
