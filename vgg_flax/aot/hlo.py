"""A scheduled program of XLA, read for what it moves between chips and when.

Only text goes in, so that this can be tested without a TPU. A collective that is
followed by its own end (`...-start`, `...-done`) runs beside what is scheduled between
the two; any other keeps the chip waiting. What is in a loop counts as often as the loop
turns, where the program says how often.
"""

import dataclasses
import logging
import math
import re
from collections.abc import Iterator

_BYTES = {
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2"), 1),
    **dict.fromkeys(("s16", "u16", "f16", "bf16"), 2),
    **dict.fromkeys(("s32", "u32", "f32"), 4),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 8),
}
_KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
# Operations that rename what is there already.
_IDLE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "-done")


@dataclasses.dataclass(frozen=True)
class Operation:
    """A line of the entry computation.

    Attributes:
      name: as the program has it.
      opcode: fusion, all-reduce, collective-permute-start, ...
      result_bytes: of the result: of all its arrays, or, where an exchange is begun,
        of the largest.
      touched_bytes: of the result and of what it is made of; 0: it moves nothing.
      operands: names.
      cycles: the compiler's own estimate; 0 where it gives none.
      flops: of its convolutions, which all products of matrices are to a TPU.
      text: the whole line, with the computations that it calls.
    """

    name: str
    opcode: str
    result_bytes: int
    touched_bytes: int
    operands: tuple[str, ...]
    cycles: int
    flops: int
    text: str


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between chips.

    Attributes:
      kind: all-reduce, all-gather, reduce-scatter, all-to-all, collective-permute.
      bytes: of the whole array: what goes in or what comes out, the larger.
      meanwhile: the operations that run between its start and its end; None: it is
        synchronous, and nothing does.
      pairs: of a permute, (source, target) by position among the program's devices.
      source: where in the JAX program it is from.
      times: how often it happens: the turns of the loop that it is in.
    """

    kind: str
    bytes: int
    meanwhile: tuple[Operation, ...] | None
    pairs: tuple[tuple[int, int], ...]
    source: str
    times: int = 1


def operations(text: str, computation: str | None = None) -> list[Operation]:
    """The operations of a computation in the order they are run.

    Args:
      text: the program.
      computation: a name; None: the entry.

    Raises:
      ValueError: the program is not scheduled.
    """
    if "is_scheduled=true" not in text[:10_000]:
        raise ValueError("the HLO module is not scheduled")
    bodies = _bodies(text)
    by_name: dict[str, Operation] = {}
    lines = bodies[computation] if computation else text[text.index("\nENTRY ") :]
    for line in lines.splitlines():
        match = re.match(r"\s+(?:ROOT )?%([\w.-]+) = (.+?) ([\w-]+)\((.*)", line)
        if match is None:
            continue
        name, shape, opcode, rest = match.groups()
        inner = _with_called(line, bodies)
        cycles = re.search(r'"estimated_cycles":"(\d+)"', rest)
        operands = tuple(re.findall(r"%([\w.-]+)", rest.split("), ")[0]))
        sizes = _array_bytes(shape) or [0]
        result_bytes = max(sizes) if "-start" in name else sum(sizes)
        taken = sum(by_name[o].result_bytes for o in operands if o in by_name)
        by_name[name] = Operation(
            name,
            opcode,
            result_bytes,
            0 if opcode.endswith(_IDLE) else result_bytes + taken,
            operands,
            int(cycles[1]) if cycles else 0,
            count_flops(inner),
            inner,
        )
    return list(by_name.values())


def schedule(
    text: str, computation: str | None = None
) -> Iterator[tuple[Operation, int]]:
    """What is run, each operation with how often: those of a loop, not the loop.

    Args:
      text: the program.
      computation: as in `operations`.

    Raises:
      ValueError: as `operations`.
    """
    for operation in operations(text, computation):
        if operation.opcode == "while":
            body, turns = _loop(text, operation)
            for inner, times in schedule(text, body):
                yield inner, times * turns
        else:
            yield operation, 1


def collectives(text: str, computation: str | None = None) -> list[Collective]:
    """The exchanges of a scheduled program, in the order they are begun.

    Those of a loop's body stand where the loop does.

    Args:
      text: the program.
      computation: as in `operations`.

    Raises:
      ValueError: as `operations`.
    """
    scheduled = operations(text, computation)
    begun: dict[str, int] = {}  # not yet ended
    by_start: dict[int, list[Collective]] = {}
    for i, operation in enumerate(scheduled):
        edge = _edge(operation)
        if edge == "done":
            # A fused exchange goes through the fusions between, and bears a number.
            keys = (_chain(operation), *operation.operands)
            first = begun.pop(next(k for k in keys if k in begun))
            between = tuple(scheduled[first + 1 : i])
            by_start[first] = [_collective(scheduled[first], between)]
        elif edge == "start":
            begun[_chain(operation) or operation.name] = i
        elif operation.opcode.startswith(_KINDS):
            by_start[i] = [_collective(operation, None)]
        elif operation.opcode == "while":
            body, turns = _loop(text, operation)
            by_start[i] = [
                dataclasses.replace(c, times=c.times * turns)
                for c in collectives(text, body)
            ]
    return [collective for i in sorted(by_start) for collective in by_start[i]]


def _collective(
    start: Operation, meanwhile: tuple[Operation, ...] | None
) -> Collective:
    kind = next(k for k in _KINDS if re.search(rf" {k}(-start)?\(", start.text))
    pairs = re.search(r"source_target_pairs=\{(\{.*?\})\}", start.text)
    source = re.search(r'op_name="([^"]*)"', start.text)
    return Collective(
        kind,
        start.result_bytes,
        meanwhile,
        tuple(
            (int(a), int(b))
            for a, b in re.findall(r"\{(\d+),(\d+)\}", pairs[0] if pairs else "")
        ),
        source[1] if source else "",
    )


def _loop(text: str, operation: Operation) -> tuple[str, int]:
    """The computation that a loop repeats, and how often."""
    names = dict(re.findall(r"(condition|body)=%([\w.-]+)", operation.text))
    condition = _bodies(text).get(names["condition"], "")
    # A loop of JAX counts from 0; TPU programs say how far in its condition alone.
    turns = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', operation.text)
    if turns is None and "direction=LT" in condition:
        turns = re.search(r"s32\[\]\S* constant\((\d+)\)", condition)
    if turns is None:
        logging.warning("the turns of loop %s are not known: 1", operation.name)
    return names["body"], int(turns[1]) if turns else 1


def _edge(operation: Operation) -> str | None:
    """Whether an exchange is begun ("start") or ended ("done") here."""
    kinds = "|".join(_KINDS)
    name = operation.name if operation.opcode == "fusion" else operation.opcode
    match = re.match(rf"(?:async-collective|{kinds})-(start|done)", name)
    return match[1] if match else None


def _chain(operation: Operation) -> str | None:
    match = re.search(r'chain_id="(\d+)"', operation.text)
    return f"chain {match[1]}" if match else None


def _with_called(line: str, bodies: dict[str, str]) -> str:
    """A line and, below it, the computations that it is made of, and theirs."""
    called = re.findall(r"(?:calls|to_apply)=%([\w.-]+)", line)
    inner = (_with_called(bodies.get(name, ""), bodies) for name in called)
    return "\n".join([line, *inner])


def _bodies(text: str) -> dict[str, str]:
    """The computations other than the entry, by name."""
    return {
        match[1]: match[2]
        for match in re.finditer(r"^%([\w.-]+) [^\n]*\{\n(.*?)^\}", text, re.M | re.S)
    }


def count_flops(lines: str) -> int:
    """Of the convolutions in `lines`, which define their operands too.

    As the compiler's own count: only where the window lies on pixels, for the fc6's
    gradient is a convolution of one pixel in a margin of six.
    """
    dims = {
        name: [int(n) for n in sizes.split(",") if n]
        for name, sizes in re.findall(r"%([\w.-]+) = \w+\[([\d,]*)\]", lines)
    }
    total = 0
    for name, image, kernel, rest in re.findall(
        r"%([\w.-]+) = \S+ convolution\(%([\w.-]+), %([\w.-]+)\)([^\n]*)", lines
    ):
        labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", rest)
        assert labels, rest
        sizes = [
            dict(zip(of, dims[array], strict=True))
            for of, array in zip(labels.groups(), (image, kernel, name), strict=True)
        ]
        window = dict(re.findall(r"(\w+)=([\dx_-]+)", rest.partition("window={")[2]))
        products = sizes[2]["b"] * sizes[2]["f"] * sizes[1]["i"]
        for i, side in enumerate(sorted(sizes[1].keys() - {"i", "o"})):
            products *= _meetings(
                *(sizes[k][side] for k in (0, 1, 2)),
                stride=_entry(window, "stride", i, "1"),
                margin=_entry(window, "pad", i, "0_0"),
                image_step=_entry(window, "lhs_dilate", i, "1"),
                kernel_step=_entry(window, "rhs_dilate", i, "1"),
            )
        total += 2 * products
    return total


def _entry(window: dict[str, str], name: str, i: int, default: str) -> int:
    """Of a window's `3x3`, `2x2`, `1_1x1_1`: side i, the first number of it."""
    text = window.get(name)
    return int((text.split("x")[i] if text else default).split("_")[0])


def _meetings(
    image: int,
    kernel: int,
    result: int,
    *,
    stride: int,
    margin: int,
    image_step: int,
    kernel_step: int,
) -> int:
    """Along one side: in how many pairs of result and kernel entry is there a pixel."""
    places = (
        at * stride + tap * kernel_step - margin
        for tap in range(kernel)
        for at in range(result)
    )
    return sum(
        0 <= p <= (image - 1) * image_step and p % image_step == 0 for p in places
    )


def _array_bytes(shape: str) -> list[int]:
    """Bytes of each array in a shape such as `(f32[3,4]{1,0}, u32[])`."""
    return [
        _BYTES[dtype] * math.prod(int(n) for n in dims.split(",") if n)
        for dtype, dims in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", shape)
        if dtype in _BYTES
    ]
