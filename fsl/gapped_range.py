"""Numbers in order with gaps, as the ids of a million devices of which a few are away."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import overload


class GappedRange(Sequence[int]):
    """The whole numbers from 0 to `end` - 1 but for `gaps`, in order, as a range has them: memory for the gaps alone.

    `gaps`: such numbers in order, each once.
    """

    def __init__(self, end: int, gaps: Iterable[int]) -> None:
        self.end, self.gaps = end, tuple(gaps)
        self._before = [gap - place for place, gap in enumerate(self.gaps)]  # how many numbers there are below each gap

    def __len__(self) -> int:
        return self.end - len(self.gaps)

    @overload
    def __getitem__(self, place: int) -> int: ...

    @overload
    def __getitem__(self, place: slice) -> list[int]: ...

    def __getitem__(self, place: int | slice) -> int | list[int]:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        index = range(len(self))[place]  # from the end, where it is negative; IndexError as of any sequence
        return index + bisect_right(self._before, index)

    def __contains__(self, number: object) -> bool:
        try:
            whole = range(self.end).index(number)  # type: ignore[arg-type]  # it takes NumPy's numbers, as `in` does
        except ValueError:
            return False
        place = bisect_left(self.gaps, whole)
        return place == len(self.gaps) or self.gaps[place] != whole

    def __iter__(self) -> Iterator[int]:
        first = 0
        for gap in self.gaps:
            yield from range(first, gap)
            first = gap + 1
        yield from range(first, self.end)
