"""Working a bounded number of things ahead."""

import collections
import concurrent.futures
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

S = TypeVar("S")
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


def in_threads(function: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """`function` of each item, in order; threads work a bounded number ahead."""
    threads = min(16, os.cpu_count() or 1)
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    futures = (pool.submit(function, item) for item in items)
    try:
        for future in ahead(futures, 2 * threads - 1):
            yield future.result()
    finally:  # a stop does not wait for what is no longer wanted
        pool.shutdown(cancel_futures=True)
