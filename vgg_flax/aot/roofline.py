"""What a compiled program will cost: memory, FLOPs, exchanges and whether they hide."""

import collections
import importlib.metadata
from collections.abc import Sequence
from typing import Any

from vgg_flax.aot import hlo
from vgg_flax.aot.program import Program


def report(program: Program) -> dict[str, Any]:
    """What the compiler says of `program`, JSON-like.

    `collectives` are in the order they begin. One is hidden for the share of its
    roofline time that the operations between its start and its end cover: these are
    taken at the compiler's own estimate of cycles or, where that is less and they
    don't multiply matrices, at the time their bytes take at full memory bandwidth.
    """
    chip, compiled, config = program.chip, program.compiled, program.config
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    text = compiled.as_text()
    exchanges = [_exchange(program, c) for c in hlo.collectives(text)]
    schedule = list(hlo.schedule(text))
    flops = sum(operation.flops * times for operation, times in schedule)
    cycles = sum(operation.cycles * times for operation, times in schedule)
    # The compiler counts what is in a loop once: its count, times what loops repeat.
    touched = cost["bytes accessed"] * (
        sum(operation.touched_bytes * times for operation, times in schedule)
        / sum(operation.touched_bytes for operation, _ in schedule)
    )
    state_bytes = sum(
        size for kind, size in program.argument_bytes.items() if kind != "batch"
    )
    compute_s = flops / chip.peak_flops
    memory_s = touched / chip.memory_bandwidth
    exposed_s = sum(e["seconds"] * (1 - e["hidden"]) for e in exchanges)
    step_s = max(compute_s, memory_s) + exposed_s
    return {
        "program": program.name,
        "variant": config.model.variant,
        "dtype": config.model.dtype,
        "shard_fc": config.shard_fc,
        "remat": config.remat,
        "accumulation_steps": config.optimizer.accumulation_steps,
        "chip": chip.name,
        "chips": len(program.devices),
        "per_chip_batch": program.per_chip_batch,
        "image_size": list(program.image_size),
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("vgg-flax", "jax", "jaxlib", "flax", "libtpu")
        },
        "memory": {
            **program.argument_bytes,
            "temporary": memory.temp_size_in_bytes,
            "code": memory.generated_code_size_in_bytes,
            "peak": memory.peak_memory_in_bytes,
            "chip": chip.memory_bytes,
        },
        "donation": {
            "state": state_bytes if program.name == "train" else 0,
            "aliased": memory.alias_size_in_bytes,
            "complete": program.name != "train"
            or memory.alias_size_in_bytes >= state_bytes,
        },
        "flops": {"step": flops, "image": flops / program.per_chip_batch},
        "bytes_accessed": touched,
        "parameter_bytes": program.parameter_bytes,
        "collectives": exchanges,
        "exchanged_bytes": sum(e["bytes"] for e in exchanges),
        "exposed_bytes": round(sum(e["bytes"] * (1 - e["hidden"]) for e in exchanges)),
        "roofline": {
            "is": "an estimate from published peaks; nothing was run",
            "compute_seconds": compute_s,
            "memory_seconds": memory_s,
            "exposed_exchange_seconds": exposed_s,
            "step_seconds": step_s,
            "compiler_seconds": cycles / chip.clock,  # its own guess, exchanges apart
            "images_per_second": program.per_chip_batch * len(program.devices) / step_s,
        },
    }


def _exchange(program: Program, collective: hlo.Collective) -> dict[str, Any]:
    """A line of the report: see `report`."""
    chip = program.chip

    def seconds(operation: hlo.Operation) -> float:
        estimate = operation.cycles / chip.clock
        if operation.flops:
            return estimate
        return min(estimate, operation.touched_bytes / chip.memory_bandwidth)

    needed = exchange_seconds(program, collective)
    covered = sum(seconds(operation) for operation in collective.meanwhile or ())
    hidden = 1.0 if not needed else min(1.0, covered / needed)
    return {
        "kind": collective.kind,
        "bytes": collective.bytes * collective.times,
        "asynchronous": collective.meanwhile is not None,
        "seconds": needed * collective.times,
        "covered_seconds": covered * collective.times,
        "hidden": hidden,
        "source": collective.source,
    }


def exchange_seconds(program: Program, collective: hlo.Collective) -> float:
    """A lower bound: a permute by its busiest link, others by all links of a chip.

    Gathering N parts, or reducing to them, moves (N - 1) / N of the bytes through each
    chip, and an all-reduce does both.
    """
    chip, count = program.chip, len(program.devices)
    if collective.kind == "collective-permute":
        load = _busiest_link(program, collective.pairs)
        return collective.bytes * load / chip.link_bandwidth
    passes = 2 if collective.kind == "all-reduce" else 1
    share = passes * (count - 1) / count
    return collective.bytes * share / (chip.links * chip.link_bandwidth)


def _busiest_link(program: Program, pairs: Sequence[tuple[int, int]]) -> int:
    """How many messages share a link when each goes along one axis after the other."""
    places = [tuple(device.coords) for device in program.devices]
    sides = [max(axis) + 1 for axis in zip(*places, strict=True)]
    loads: collections.Counter[Any] = collections.Counter()
    for source, target in pairs:
        here, there = list(places[source]), places[target]
        for axis, side in enumerate(sides):
            away = (there[axis] - here[axis]) % side
            ring = side >= program.chip.smallest_ring
            forward = away <= side // 2 if ring else there[axis] >= here[axis]
            direction = 1 if forward else -1
            while here[axis] != there[axis]:
                loads[(*here, axis, direction)] += 1
                here[axis] = (here[axis] + direction) % side
    return max(loads.values(), default=0)
