"""How far ahead is worked, in which order, and where it ends."""

from collections.abc import Iterator

import numpy as np
import pytest

from vgg_flax import parallel
from vgg_flax.parallel.ahead import ahead


class Counted:
    """Numbers, of which it knows how many were drawn."""

    def __init__(self, count: int):
        self.drawn, self._count = 0, count

    def __iter__(self) -> Iterator[int]:
        for i in range(self._count):
            self.drawn += 1
            yield i


@pytest.mark.parametrize("count", [0, 1, 3, 20])
def test_so_many_are_drawn_before_each_is_given_out(count: int) -> None:
    items, seen = Counted(10), []
    for item in ahead(items, count):
        seen.append(item)
        assert items.drawn == min(10, len(seen) + count)
    assert seen == list(range(10))


def test_nothing_is_drawn_before_it_is_asked_for() -> None:
    items = Counted(10)
    stream = ahead(items, 2)
    assert items.drawn == 0
    assert next(stream) == 0
    assert items.drawn == 3
    stream.close()
    assert items.drawn == 3


def test_an_error_comes_when_its_item_is_drawn() -> None:
    def failing() -> Iterator[int]:
        yield from range(3)
        raise ValueError("the fourth")

    stream = ahead(failing(), 1)
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(ValueError, match="the fourth"):
        next(stream)


def test_prefetch_has_the_next_batch_on_the_devices() -> None:
    items = Counted(6)
    batches = ({"x": np.full((8, 1), i)} for i in items)
    for i, batch in enumerate(parallel.prefetch(batches)):
        assert items.drawn == min(6, i + 2)
        assert batch["x"].shape == (8, 1, 1)
        assert (batch["x"] == i).all()
