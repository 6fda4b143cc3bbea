"""Working a bounded number of things ahead."""

import collections
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterable[T], count: int) -> Iterator[T]:
    """`items` in their order, each given out when `count` more have been drawn.

    Drawing one is what begins its work: a batch sent to the devices, a step called, a
    task given to a thread. So `count` of these go on while the consumer is busy with
    one, and no more take up memory.
    """
    queue: collections.deque[T] = collections.deque()
    for item in items:
        queue.append(item)
        if len(queue) > count:
            yield queue.popleft()
    while queue:
        yield queue.popleft()
