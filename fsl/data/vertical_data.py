"""Vertically partitioned data: several parties hold different features of the same people, and one has the labels."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fsl import seeds
from fsl.argument_types import checks_types
from fsl.data.alignment import Alignment, as_alignment, common_ids
from fsl.data.examples import Examples
from fsl.data.items import dense, input_tensor, target_tensor
from fsl.data.task import TaskData
from fsl.data.tree_examples import TreeExamples
from fsl.errors import DataError
from fsl.importing.digests import digest_text
from fsl.models.vertical_model import check_parties
from fsl.quoting import short

log = logging.getLogger(__name__)
EDGE = "edge"  # who has the labels, if no party does


@dataclass(frozen=True, eq=False)
class PartyTable:
    """One party's rows: ids (N,), texts or whole numbers; features (N, ...); and labels (N, ...), if it has them."""

    ids: Any
    features: Any
    labels: Any = None


@dataclass(frozen=True, eq=False)
class EdgeLabels:
    """Labels (N, ...) that the edge has, by id (N,)."""

    ids: Any
    labels: Any


@checks_types(error=DataError, leave=("parties", "labels", "alignment"))
@dataclass(frozen=True, eq=False)
class VerticalData:
    """What each party holds, in any order of rows; `labels` are at a party, by its name, or at the edge.

    `alignment` finds the people that all have: "clear", "psi", or an `fsl.data.Alignment`. Rows then are in the order
    of ids, which a run shuffles by its seed: the order in which a party holds them changes nothing.
    """

    parties: Mapping[str, PartyTable]
    labels: str | EdgeLabels
    alignment: Alignment | type[Alignment] | str = "clear"
    name: str = "vertical"
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.parties, Mapping) or not self.parties:
            raise DataError("parties: give a PartyTable for each party, as {'bank': PartyTable(ids, features)}")
        check_parties("parties", list(self.parties))
        if EDGE in self.parties:
            raise DataError(f"parties: '{EDGE}' names who runs the back; choose another name for that party")
        for party, table in self.parties.items():
            if not isinstance(table, PartyTable):
                raise DataError(f"parties: '{party}' is {short(table)}; give an fsl.data.PartyTable(ids, features)")
        if isinstance(self.labels, EdgeLabels):
            return
        holders = [party for party, table in self.parties.items() if table.labels is not None]
        had = f"labels are at {', '.join(holders)}" if holders else "no party has any; give PartyTable(..., labels=...)"
        if not isinstance(self.labels, str) or self.labels not in self.parties:
            raise DataError(
                f"labels={short(self.labels)}: it is a party's name ({', '.join(self.parties)}) or an "
                f"fsl.data.EdgeLabels(ids, labels); {had}"
            )
        if self.labels not in holders:
            raise DataError(f"labels={self.labels!r}: that party has no labels; {had}")

    @checks_types(error=DataError, leave=("test",))
    def task(self, test: "VerticalData | None" = None, double: bool = False) -> "VerticalTask":
        """Align the rows of training and, if given, test data; returns them as a task, in order of ids.

        Floats become float32; with `double`, for models of float64, float64 stays as it is.
        """
        if test is not None:
            self._refuse_unlike(test)
        train, shared, people = self._aligned(double)
        tested, others = None, list[str]()
        if test is not None:
            tested, _, others = test._aligned(double)
        holder = self.labels if isinstance(self.labels, str) else None
        labels = train.targets.dim() == 1 and not train.targets.is_floating_point()
        classes = int(train.targets.max()) + 1 if labels else None
        return VerticalTask(
            self.name,
            train,
            tested,
            classes,
            class_names=self.class_names,
            parties=tuple(self.parties),
            label_party=holder,
            left_out=shared,
            people=digest_text(json.dumps([people, others])),
        )

    @checks_types(error=DataError)
    def divided(self, test_share: float, seed: int = 0) -> "tuple[VerticalData, VerticalData]":
        """Divide the people that all parties have into training and test data, drawn from the seed by id."""
        ids = common_ids(as_alignment(self.alignment), self._ids())
        count = round(len(ids) * test_share) if 0 < test_share < 1 else 0
        if not 0 < count < len(ids):
            raise DataError(f"test_share={test_share}: a share in (0, 1) that leaves rows on both sides of {len(ids)}")
        order = torch.randperm(len(ids), generator=seeds.torch_generator(seed, "validation")).tolist()
        held = {ids[place] for place in order[:count]}
        return self._only(set(ids) - held), self._only(held)

    def _only(self, wanted: set[str]) -> "VerticalData":
        parties = {}
        for party, table in self.parties.items():
            ids = _ids(party, table.ids)
            rows = [row for row, one in enumerate(ids) if one in wanted]
            features = _dense(f"the features of '{party}'", table.features, len(ids))[rows]
            own = None if table.labels is None else _dense(f"the labels of '{party}'", table.labels, len(ids))[rows]
            parties[party] = PartyTable([ids[row] for row in rows], features, own)
        labels = self.labels
        if isinstance(labels, EdgeLabels):
            ids = _ids(EDGE, labels.ids)
            rows = [row for row, one in enumerate(ids) if one in wanted]
            given = _dense(f"the labels of '{EDGE}'", labels.labels, len(ids))
            labels = EdgeLabels([ids[row] for row in rows], given[rows])
        return replace(self, parties=parties, labels=labels)

    def _ids(self) -> dict[str, list[str]]:
        found = {party: _ids(party, table.ids) for party, table in self.parties.items()}
        if isinstance(self.labels, EdgeLabels):
            found[EDGE] = _ids(EDGE, self.labels.ids)
        return found

    def _aligned(self, double: bool) -> tuple[TreeExamples, dict[str, int], list[str]]:
        ids = self._ids()
        common = common_ids(as_alignment(self.alignment), ids)
        places = {party: {one: row for row, one in enumerate(own)} for party, own in ids.items()}
        rows = {party: torch.tensor([at[one] for one in common], dtype=torch.int64) for party, at in places.items()}
        left_out = {party: len(own) - len(common) for party, own in ids.items()}
        if any(left_out.values()):
            told = ", ".join(f"{count} of {len(ids[party])} at {party}" for party, count in left_out.items() if count)
            log.warning("%d people are known to all parties; rows of others are left out: %s", len(common), told)
        inputs = {
            party: _tensor(f"the features of '{party}'", table.features, len(ids[party]), double)[rows[party]]
            for party, table in self.parties.items()
        }
        holder = EDGE if isinstance(self.labels, EdgeLabels) else self.labels
        given = self.labels.labels if isinstance(self.labels, EdgeLabels) else self.parties[self.labels].labels
        targets = _tensor(f"the labels of '{holder}'", given, len(ids[holder]), double, target=True)[rows[holder]]
        return TreeExamples(inputs, targets), left_out, common

    def _refuse_unlike(self, test: "VerticalData") -> None:
        if not isinstance(test, VerticalData):
            raise DataError(f"test_data={short(test)}: with a VerticalData for training, give one for testing too")
        if tuple(test.parties) != tuple(self.parties):
            raise DataError(
                f"training data are of {', '.join(self.parties)}, test data of {', '.join(test.parties)}; give the "
                "same parties in the same order"
            )


@checks_types(error=DataError)
@dataclass(frozen=True)
class VerticalTask(TaskData):
    """A task whose inputs are features by party, aligned: row j of every party is of one person.

    `label_party`: the party that has the labels; None: the edge has them. `left_out`: rows of each party that are of
    nobody whom all parties know. `people`: a digest of the ids in their order, by which parties on several machines
    tell that they hold the same; empty where the task holds nobody's rows. `held`: the party whose features these are,
    or "edge", where those of others are zeros in their shape, and labels of others zeros, too; None: all are here.
    """

    parties: tuple[str, ...] = ()
    label_party: str | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    people: str = ""
    held: str | None = None

    @property
    def party_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of one row of each party's features."""
        inputs = self.train.inputs  # type: ignore[attr-defined]
        return {party: tuple(inputs[party].shape[1:]) for party in self.parties}

    def scaled_by_training(self) -> "VerticalTask":
        """Returns the task with each column minus its mean, over its deviation, in the training rows."""
        train = self.train
        assert isinstance(train, TreeExamples)
        means = {party: values.mean(dim=0) for party, values in train.inputs.items()}
        deviations = {party: values.std(dim=0, correction=0) for party, values in train.inputs.items()}

        def scaled(examples: Examples) -> TreeExamples:
            assert isinstance(examples, TreeExamples)
            inputs = {
                party: (values - means[party]) / torch.where(deviations[party] > 0, deviations[party], 1.0)
                for party, values in examples.inputs.items()
            }
            return TreeExamples(inputs, examples.targets)

        tested = None if self.test is None else scaled(self.test)
        return replace(self, train=scaled(train), test=tested, scaled=True)

    def seen_at(self, who: str) -> "VerticalTask":
        """Returns what one party holds, or the edge: its own features and labels, zeros in the place of others'."""
        if who != EDGE and who not in self.parties:
            raise DataError(f"party={short(who)}: there are {', '.join(self.parties)}, and {EDGE}")
        labelled = who == (EDGE if self.label_party is None else self.label_party)

        def own(examples: Examples) -> TreeExamples:
            assert isinstance(examples, TreeExamples)
            inputs = {p: v if p == who else torch.zeros_like(v[:1]).expand_as(v) for p, v in examples.inputs.items()}
            return TreeExamples(inputs, examples.targets if labelled else torch.zeros_like(examples.targets))

        tested = None if self.test is None else own(self.test)
        return replace(self, train=own(self.train), test=tested, held=who)

    def shuffled(self, seed: int) -> "VerticalTask":
        """Returns the task with training rows in the order that this seed gives."""
        order = torch.randperm(len(self.train), generator=seeds.torch_generator(seed, "alignment"))
        return replace(self, train=self.train.subset(order))


@checks_types(error=DataError)
def vertical(
    table: Any,
    labels: Any,
    *,
    parties: Mapping[str, Sequence[Any]],
    ids: Any = None,
    labels_at: str = EDGE,
    name: str = "vertical",
) -> VerticalData:
    """Divide one table by columns among parties, for a simulation.

    `table`: arrays by column name, a data frame, or an array (N, columns) whose columns are numbers from 0 on.
    `labels` (N, ...): given to the party `labels_at`, or to the edge. `ids` (N,): row numbers by default.
    """
    if not isinstance(parties, Mapping) or not parties:
        raise DataError("parties: give each party's columns, as {'bank': ['age', 'income'], 'shop': ['visits']}")
    columns = {party: [_column(table, party, column) for column in own] for party, own in parties.items()}
    if empty := next((party for party, own in columns.items() if not own), None):
        raise DataError(f"parties: '{empty}' has no column; give it one at least")
    used: dict[Any, str] = {}
    for party, own in parties.items():
        for column in own:
            if column in used:
                raise DataError(
                    f"column {column!r} is given to '{used[column]}' and to '{party}'; give it to one party"
                )
            used[column] = party
    count = len(next(iter(columns.values()))[0])
    known: Any = range(count) if ids is None else ids
    if labels_at != EDGE and labels_at not in parties:
        raise DataError(f"labels_at={labels_at!r}: it is {EDGE} or one of the parties {', '.join(parties)}")
    tables = {
        party: PartyTable(known, torch.stack(own, dim=1), labels if party == labels_at else None)
        for party, own in columns.items()
    }
    return VerticalData(tables, EdgeLabels(known, labels) if labels_at == EDGE else labels_at, name=name)


def _column(table: Any, party: str, column: Any) -> Tensor:
    if isinstance(table, np.ndarray | Tensor):
        width = table.shape[1] if table.ndim == 2 else 0
        if not isinstance(column, int) or not 0 <= column < width:
            raise DataError(f"parties: '{party}' is given column {column!r}; the table has columns 0 to {width - 1}")
        values: Any = table[:, column]
    else:
        if not isinstance(table, Mapping) and not hasattr(table, "columns"):
            raise DataError(f"table={short(table)}: give arrays by column name, a data frame, or an array (N, columns)")
        names = list(getattr(table, "columns", table))
        if column not in names:
            raise DataError(
                f"parties: '{party}' is given column {column!r}; the table has {', '.join(map(str, names))}"
            )
        values = table[column]
    try:
        return dense(values.to_numpy() if hasattr(values, "to_numpy") else np.asarray(values)).to(torch.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"column {column!r} of '{party}' holds no numbers ({error}); encode it as numbers") from None


def _ids(party: str, given: Any) -> list[str]:
    """Returns a party's ids as texts: 7 and "7" are one person."""
    values = given.tolist() if hasattr(given, "tolist") else list(given) if isinstance(given, Iterable) else None
    if not isinstance(values, list):
        raise DataError(f"the ids of '{party}' are a {type(given).__name__}; give a list, with an id for each row")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, str | int | np.integer):
            raise DataError(f"'{party}' has the id {short(value)}; ids are texts or whole numbers")
    texts = [str(value) for value in values]
    if len(set(texts)) < len(texts):
        seen: set[str] = set()
        twice = next(one for one in texts if one in seen or seen.add(one))  # type: ignore[func-returns-value]
        raise DataError(f"'{party}' has id {twice!r} {texts.count(twice)} times; keep one row for each person")
    return texts


def _dense(what: str, given: Any, count: int) -> Tensor:
    """Returns values as a tensor of so many rows."""
    try:
        found = dense(given.to_numpy() if hasattr(given, "to_numpy") else given)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} cannot be used: {error}; give numbers") from None
    if not found.dim() or len(found) != count:
        raise DataError(
            f"{what} have {len(found) if found.dim() else 'no'} rows, and there are {count} ids; give one each"
        )
    return found


def _tensor(what: str, given: Any, count: int, double: bool, target: bool = False) -> Tensor:
    values = _dense(what, given, count)
    try:
        return (target_tensor if target else input_tensor)(values, double)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} cannot be used: {error}; give numbers") from None


def inputs_of(examples: Examples, party: str) -> Tensor:
    """Returns one party's features (N, ...) of aligned examples."""
    assert isinstance(examples, TreeExamples)
    return examples.inputs[party]


def of_parties_alone(examples: Examples, parties: Sequence[str]) -> Examples:
    """Returns aligned examples with the features of these parties, and of no others."""
    assert isinstance(examples, TreeExamples)
    return TreeExamples(
        {party: examples.inputs[party] for party in examples.inputs if party in parties}, examples.targets
    )
