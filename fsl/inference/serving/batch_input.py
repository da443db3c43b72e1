"""Reads the questions of a batch into the tensors that a model takes, and tells those apart that cannot be."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from fsl.errors import WireError
from fsl.inference.serving.question import WaitingQuestion
from fsl.messages.frames import tensor_bytes
from fsl.messages.inference_records import whole_payload
from fsl.segments.tensor_trees import Values


@dataclass(frozen=True)
class BatchInput:
    """Questions of one point with what they hold, in order; `misfits` are those that hold something else, and why."""

    questions: Sequence[WaitingQuestion]
    values: Values | None  # of all together, where they were read so
    parts: Sequence[Values] = ()  # of each, where not
    misfits: Sequence[tuple[WaitingQuestion, str]] = ()

    @property
    def rows(self) -> int:
        """The rows of all its questions."""
        return sum(one.rows for one in self.questions)

    def joined(self) -> Values:
        """Returns the values of all questions; SplitError where these cannot be joined."""
        if self.values is not None:
            return self.values
        return self.questions[0].writer.gate.joined(self.parts, self.rows)

    def each(self) -> "Iterator[BatchInput]":
        """Yields each question on its own."""
        sizes = [one.rows for one in self.questions]
        parts = self.parts if self.values is None else self.values.split(sizes)
        for one, part in zip(self.questions, parts, strict=True):
            yield BatchInput([one], part)


def read_batch(questions: Sequence[WaitingQuestion]) -> BatchInput:
    """Returns what a batch's questions hold."""
    if questions and (values := _read_at_once(questions)) is not None:
        return BatchInput(questions, values)
    kept: list[WaitingQuestion] = []
    parts: list[Values] = []
    misfits: list[tuple[WaitingQuestion, str]] = []
    for one in questions:
        try:
            parts.append(one.writer.decode(whole_payload(one.message, one.data), one.rows))
            kept.append(one)
        except WireError as error:
            misfits.append((one, str(error)))
        except Exception as error:  # of a codec, for what somebody sent
            misfits.append((one, f"{type(error).__name__}: {error}"))
    return BatchInput(kept, None, parts, misfits)


def _read_at_once(questions: Sequence[WaitingQuestion]) -> Tensor | None:
    """Returns the values of questions that each are one tensor by no codec, as their point wants them; else None.

    Each is copied once, from where it came into its place in the batch.
    """
    if not all(one.writer.is_plain(one.message.values, one.rows, len(one.data)) for one in questions):
        return None
    gate = questions[0].writer.gate
    values, start = gate.empty(sum(one.rows for one in questions)), 0
    memory = tensor_bytes(values)
    for one in questions:
        memory[start : start + len(one.data)] = one.data
        start += len(one.data)
    return values if gate.is_finite(values) else None
