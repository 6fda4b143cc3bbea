"""Several processes as one run: joining, agreeing on what is run and when to stop."""

import collections
import functools
import hashlib
import itertools
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax._src import clusters  # the only way to ask before initialising
from jax._src import distributed as distributed_state
from jax.experimental import multihost_utils

from vgg_flax.errors import ConfigError, VGGFlaxError

# A process that dies is noticed after so many seconds (JAX's own default: 100) and
# the others end so many later (300).
_HEARTBEAT_SECONDS, _SHUTDOWN_SECONDS = 30, 60
_ACT_MILLISECONDS = 600_000  # that the others wait for the first
_acts = itertools.count()


def initialize(where: str) -> None:
    """Joins the processes of this job; call it before anything asks for devices.

    Args:
      where: "auto": as JAX detects it (Slurm, Cloud TPU, GKE, Open MPI), and nothing
        elsewhere; "off": nothing; "ADDRESS:PORT,COUNT,INDEX": process INDEX of COUNT,
        with process 0 listening at the address.

    Raises:
      ConfigError: `where` is none of these.
    """
    join = functools.partial(
        jax.distributed.initialize,
        heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
    )
    if where == "off":
        return
    if where == "auto":
        if _in_cluster():
            join()
        return
    parts = re.fullmatch(r"(.+:\d+),(\d+),(\d+)", where)
    if parts is None or int(parts[3]) >= int(parts[2]):
        raise ConfigError(
            f"--distributed={where}: expected auto, off, or ADDRESS:PORT,COUNT,INDEX "
            "with INDEX from 0 to COUNT - 1, such as host0:1234,2,0"
        )
    join(parts[1], int(parts[2]), int(parts[3]))


def code_digest() -> str:
    """A hash of this package's source: equal where the code is."""
    digest = hashlib.sha256()
    for path in sorted(pathlib.Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def check_devices() -> None:
    """Sees that all processes have as many devices, as an even share of a batch needs.

    Raises:
      ConfigError: in all processes, naming how many each of them has.
    """
    counts = collections.Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{n} in process {i}" for i, n in sorted(counts.items()))
        raise ConfigError(
            f"the processes have different numbers of devices: {listed}; give each as "
            "many"
        )


def check_same(facts: dict[str, Any]) -> None:
    """Sees that all processes run the same: a difference would hang or spoil the run.

    Args:
      facts: what must be equal everywhere, with equal keys everywhere; any values.

    Raises:
      ConfigError: in all processes, naming the facts and processes that differ.
    """
    if jax.process_count() == 1:
        return
    digests = [
        np.frombuffer(hashlib.sha256(repr(v).encode()).digest()[:8], np.uint8)
        for v in facts.values()
    ]
    gathered = multihost_utils.process_allgather(np.stack(digests))  # [P, facts, 8]
    differing = np.any(gathered != gathered[:1], axis=2)  # [P, facts]
    if not differing.any():
        return
    names = [n for n, wrong in zip(facts, differing.any(axis=0), strict=True) if wrong]
    processes = np.flatnonzero(differing.any(axis=1)).tolist()
    here = ", ".join(f"{name}={facts[name]!r}" for name in names)
    raise ConfigError(
        f"processes {processes} differ from process 0 in {', '.join(names)}; here, "
        f"process {jax.process_index()}: {here}. Start all with one command and code"
    )


def by_first(act: Callable[[], None]) -> None:
    """Lets the first process act while the others wait for it, however long.

    Raises:
      VGGFlaxError: that of `act`; in the other processes, that it failed.
    """
    if jax.process_count() == 1:
        return act()
    key = f"vgg_flax/by_first/{next(_acts)}"
    if jax.process_index() == 0:
        try:
            act()
        except VGGFlaxError:
            coordinator().key_value_set(key, "failed")
            raise
        return coordinator().key_value_set(key, "done")
    # By the coordinator: collectives on CPUs give up after 30 s.
    if coordinator().blocking_key_value_get(key, _ACT_MILLISECONDS) != "done":
        raise VGGFlaxError("process 0 could not begin, and says why")


def coordinator() -> Any:
    """JAX's store of keys and values that all processes see; None of one process."""
    return distributed_state.global_state.client


def wait_for_all(name: str) -> None:
    """Returns when all processes have called this with that name."""
    multihost_utils.sync_global_devices(name)


def _in_cluster() -> bool:
    return any(
        kind.is_env_present()
        for kind in clusters.ClusterEnv._cluster_types
        if not kind.opt_in_only_method
    )
