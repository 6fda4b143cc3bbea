"""Loading a weight file: the peak of anonymous memory over the file's size.

Memory is RssAnon, sampled every 5 ms, above that of the process before `load`: the
file's own pages are mapped and can be dropped.
"""

import pathlib
import threading
import time
from typing import Any

from benchmarks.contenders import serve
from vgg_flax import loading  # the import is no part of the load


def prepare(spec: dict[str, Any]) -> tuple[serve.Run, dict[str, Any]]:
    """The work of `spec`; only its first repetition tells what a load takes."""
    path = pathlib.Path(spec["weights"])

    def run(_: int) -> tuple[float, dict[str, float]]:
        before, done = serve.status_mib("RssAnon"), threading.Event()
        peak = [before]

        def watch() -> None:
            while not done.wait(0.005):
                peak[0] = max(peak[0], serve.status_mib("RssAnon"))

        watcher = threading.Thread(target=watch)
        watcher.start()
        begin = time.perf_counter()
        loaded = loading.load(path)
        seconds = time.perf_counter() - begin
        done.set()
        watcher.join()
        above = max(peak[0], serve.status_mib("RssAnon")) - before
        del loaded
        size = path.stat().st_size / 2**20
        return above / size, {"seconds": seconds, "above_mib": above, "file_mib": size}

    return run, {}


if __name__ == "__main__":
    serve.serve(prepare)
