"""Measures on a small batch whether rows are samples: before a private run, and again where a device trains.

A clip bounds what one sample does only if nothing but its own row depends on it: at the cut, in each sample's gradient,
in the loss, and in what a model keeps. No list of classes finds all that mixes rows (batch normalisation,
`x - x.mean(0)`, batches whose first dimension is time, embeddings of positions, class weights under a mean), so this
module tries it.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from fsl import seeds
from fsl.codecs.codec_maker import codec_maker
from fsl.errors import ConfigError
from fsl.faults import trying
from fsl.importing.spec import Spec
from fsl.messages.round_plan import RoundPlan
from fsl.objective import Objective
from fsl.privacy.clip_rules import rule_named
from fsl.privacy.randomized_labels import CorrectedCrossEntropy
from fsl.privacy.settings import Privacy
from fsl.round.row_gradients import alike, refuse_gradients, refuse_loss
from fsl.round.row_trial import Pass, RowTrial
from fsl.round.workload import Worker, Workload

_ROWS = 6  # rows of the batch whose outputs it compares
_KINDS = 1100  # labels at most; more count as numbers
_REMEDY = "compute each row from its own input, the batch in the first dimension (model.norm=group for fsl's models)"


def refuse_mixed_rows(privacy: Privacy, workload: Workload, split: bool, up: Spec, down: Spec) -> None:
    """Raise ConfigError, in one line, where a row is no sample, so that the run's mechanisms would bound nothing.

    `split`: whether a strategy cuts the model, so that smashed data pass through the codecs `up` and `down`.
    """
    dp_sgd, cut = privacy.dp_sgd is not None, privacy.cut is not None and split
    if privacy.labels is not None and split and workload.data.train.targets.dim() != 1:
        raise ConfigError(
            f"privacy.labels: one label of a sample is randomized, and the training targets are of shape "
            f"{tuple(workload.data.train.targets.shape)}; give a class index for each sample, or leave privacy.labels "
            "out"
        )
    if privacy.dp_sgd is not None and privacy.dp_sgd.rule is not None:
        rule_named(privacy.dp_sgd.rule, workload.allowed)
    if dp_sgd and split:
        refuse_codecs(workload, up, down)
    if not (dp_sgd or cut or privacy.client is not None) or not len(workload.data.train):
        return  # an edge without data has nothing to measure; the devices' nodes have
    what = "privacy.dp_sgd" if dp_sgd else "privacy.cut" if cut else "privacy.client"
    with seeds.left_as_found(), seeds.pythons_generators(0):  # a data set may draw random numbers
        inputs, targets = workload.data.train.batch(_chosen(workload))
    if not isinstance(inputs, Tensor):
        raise ConfigError(
            f"{what}: the inputs are several tensors ({', '.join(inputs.names)}), and whether rows are samples is "
            "measured for one; give the model one tensor, or leave privacy out"
        )
    if dp_sgd or cut:
        _refuse_batches(workload, what)
        _refuse_augmentation(workload, inputs, what)
    trial = RowTrial(workload, alone=cut and not dp_sgd)
    inputs, targets = inputs.to(trial.accelerator), targets.to(trial.accelerator)
    names = list(trial.segments)
    compared = names if dp_sgd or cut else []
    with trying(f"{what}: {len(inputs)} training rows do not go through the model in training mode"):
        base = trial.forward(inputs)
    found = _refuse_outputs(trial, what, compared, base, inputs) if compared else []
    _refuse_buffers(what, base, found, compared)
    if dp_sgd:
        labels = privacy.labels if split else None
        objective = trained_by(workload.objective, labels is not None and labels.correct, privacy)
        refuse_loss(objective, base.outputs[names[-1]], targets, _kinds(workload))
        private = [name for name in names if privacy.segment(name, 1) is not None]
        refuse_gradients(trial, private, objective, inputs, targets)


def refuse_unmeasured(worker: Worker, plan: RoundPlan) -> None:
    """Raise ConfigError, in a real federation, where this node's rows are no samples; tries each privacy once.

    A simulation has tried it before its first round.
    """
    if plan.privacy is None or not worker.workload.secure:
        return
    split, asked = plan.trainer is not None, repr((plan.privacy, plan.trainer is not None, plan.up, plan.down))
    if asked not in worker.measured:
        refuse_mixed_rows(plan.privacy, worker.workload, split, plan.up, plan.down)
        worker.measured.add(asked)


def trained_by(objective: Objective, corrected: bool, privacy: Privacy) -> Objective:
    """Returns the back's objective: the run's, or the one corrected for randomized labels."""
    return CorrectedCrossEntropy(privacy.labels.epsilon) if corrected and privacy.labels is not None else objective


def refuse_codecs(workload: Workload, up: Spec, down: Spec) -> None:
    """Raise ConfigError for a codec that makes a row depend on other rows, of the same step or an earlier one."""
    for way, spec in (("up", up), ("down", down)):
        codec = codec_maker(spec, workload.allowed)()
        if not codec.rowwise:
            raise ConfigError(
                f"codec.{way}={spec.text}: it encodes a batch as a whole, so that one sample changes what becomes of "
                "the others, which no clip bounds; with privacy.dp_sgd use identity, float16, bfloat16, "
                "binary, topk, or int8, int4 or int2 with per=sample"
            )
        if codec.stateful:
            raise ConfigError(
                f"codec.{way}={spec.text}: it remembers rows of earlier steps, so that a sample changes what becomes "
                "of others later, which no clip bounds; with privacy.dp_sgd use a codec without state"
            )


def _chosen(workload: Workload) -> Tensor:
    """Choose row numbers from all over the training data, with different targets, and one with ignored targets."""
    targets, ignored = workload.data.train.targets, workload.objective.ignored
    rows = torch.linspace(0, len(targets) - 1, min(_ROWS, len(targets))).round().to(torch.int64).tolist()
    if targets.dim() == 1:
        _, kinds = targets.unique(return_inverse=True)
        first = torch.full((int(kinds.max()) + 1,), len(targets))
        first = first.scatter_reduce(0, kinds, torch.arange(len(targets)), "amin")
        rows = [*first[torch.linspace(0, len(first) - 1, min(_ROWS // 2, len(first))).round().long()].tolist(), *rows]
    if not targets.is_floating_point():
        flat = targets.reshape(len(targets), -1)
        rows = [int(flat.amin(1).argmin()), int(flat.amax(1).argmax()), *rows]  # with a value that stands for no label
        if ignored is not None:
            rows = [*flat.eq(ignored).any(1).nonzero()[:1, 0].tolist(), *rows]
    rows = list(dict.fromkeys(rows))
    return torch.tensor((rows * _ROWS)[:_ROWS])


def _kinds(workload: Workload) -> Tensor:
    """Returns the labels that rows may have, also where they are randomized; empty where targets are numbers."""
    targets, classes = workload.data.train.targets, workload.data.classes
    named = torch.arange(classes if workload.objective.takes_classes and classes is not None else 0)
    kinds = torch.cat([named, targets.flatten().unique().to(torch.int64)]).unique()
    return kinds[:0] if targets.is_floating_point() or len(kinds) > _KINDS else kinds


def _changed(inputs: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yields row numbers with a batch that has another sample there: one like the others, one far away, and zeros."""
    first, middle = 0, len(inputs) // 2
    shuffled = inputs[middle].flatten().roll(1).view(inputs.shape[1:])
    samples = [(first, shuffled), (middle, torch.zeros_like(shuffled))]
    if inputs.is_floating_point():
        samples.append((middle, -100 * shuffled))
    for row, sample in samples:
        changed = inputs.clone()
        changed[row] = sample
        if not torch.equal(changed, inputs):
            yield row, changed


def _refuse_batches(workload: Workload, what: str) -> None:
    """Raise ConfigError for data whose batch() mixes rows; not where it draws them anew each time."""
    train, rows = workload.data.train, _chosen(workload)
    if len(train) < 2:
        return
    other = rows.clone()
    other[-1] = next(row for row in range(len(train)) if row != int(rows[-1]))

    def read(numbers: Tensor) -> Tensor:
        with seeds.left_as_found(), seeds.pythons_generators(0):
            return train.batch(numbers)[0]

    base, again, changed = read(rows), read(rows), read(other)
    if torch.equal(base, again) and not torch.equal(base[:-1], changed[:-1]):
        raise ConfigError(
            f"{what}: batch() of the training data makes a row depend on the other rows that are asked for, so that a "
            "sample changes what no clip bounds; make each row of its own number"
        )


def _refuse_augmentation(workload: Workload, inputs: Tensor, what: str) -> None:
    augmentation = workload.augmentation
    if augmentation is None:
        return

    def augmented(rows: Tensor) -> Tensor:
        return augmentation(rows.clone(), torch.Generator().manual_seed(0))

    with trying(f"{what}: {len(inputs)} training rows do not go through the augmentation"):
        base = augmented(inputs)
        mixed = [row for row, changed in _changed(inputs) if not _others_alike(augmented(changed), base, row)]
    if mixed or len(base) != len(inputs):
        raise ConfigError(
            f"{what}: the augmentation mixes the rows of a batch, so that one sample changes what becomes of the "
            "others, which no clip bounds; augment each row by itself"
        )


def _refuse_outputs(trial: RowTrial, what: str, compared: list[str], base: Pass, inputs: Tensor) -> list[Pass]:
    """Raise ConfigError where a segment's output of a row depends on other rows; returns the passes it compared."""
    for name in compared:
        output = base.outputs[name]
        if not isinstance(output, Tensor) or not output.dim() or len(output) != len(inputs):
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ConfigError(
                f"{what}: of {len(inputs)} samples {_at(trial, name)} come {shape}, which has no row for each of them, "
                f"so that a clip of rows bounds no sample; {_REMEDY}"
            )
    passes = []
    for row, changed in _changed(inputs):
        if (found := trial.tried(changed)) is None:
            continue
        passes.append(found)
        for name in compared:
            if not _others_alike(found.outputs[name], base.outputs[name], row):
                raise ConfigError(
                    f"{what}: another sample in one row changes other rows {_at(trial, name)}, "
                    f"{_where(trial, inputs, changed, row)}, so that no clip bounds what a sample does; {_REMEDY}"
                )
    fewer = len(inputs) - 3
    if (found := trial.tried(inputs[:fewer])) is not None:
        for name in compared:
            if not alike(found.outputs[name], base.outputs[name][:fewer], 1e-3):
                raise ConfigError(
                    f"{what}: {fewer} samples {_at(trial, name)} are others than in a batch of {len(inputs)}, so that "
                    f"a sample changes the others by being drawn, which no clip bounds; {_REMEDY}"
                )
    return passes


def _at(trial: RowTrial, name: str) -> str:
    return "at the cut" if name == next(iter(trial.segments)) else f"behind the {name}"


def _refuse_buffers(what: str, base: Pass, others: list[Pass], compared: list[str]) -> None:
    """Refuse running statistics and counters, which a model releases, or which reach later rows, without a clip."""
    own = tuple(f"{name}." for name in compared)
    changed = [name for name in base.lasting if name.startswith(own)]
    changed += [
        name
        for name, tensor in base.transient.items()
        if name.startswith(own) and any(not alike(found.transient.get(name), tensor) for found in others)
    ]
    if not compared:  # privacy clips whole updates: all numbers in them that are floats
        changed = [name for name, tensor in base.lasting.items() if not tensor.is_floating_point()]
    if changed:
        segment, _, name = changed[0].partition(".")
        raise ConfigError(
            f"{what}: a batch changes the buffer '{name}' of the {segment}, which holds something of its samples that "
            "no clip bounds; use layers without running statistics (model.norm=group), or put those in eval()"
        )


def _others_alike(found: object, base: Tensor, row: int) -> bool:
    if not isinstance(found, Tensor) or found.shape != base.shape:
        return False
    others = torch.arange(len(base), device=base.device) != row
    return alike(found[others], base[others])


def _where(trial: RowTrial, inputs: Tensor, changed: Tensor, row: int) -> str:
    """Find the first module that carries a change from one row to another."""
    for (name, module, one), (_, _, other) in zip(trial.watched(inputs), trial.watched(changed)):
        if one.dim() and len(one) == len(inputs) and not _others_alike(other, one, row):
            return f"first in {name} ({type(module).__name__})"
    return "somewhere in its forward"
