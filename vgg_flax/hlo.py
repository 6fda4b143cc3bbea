"""A scheduled program of XLA, read for what it moves between chips and when.

Only text goes in, so that this can be tested without a TPU. A collective that is
followed by its own end (`...-start`, `...-done`) runs beside what is scheduled between
the two; any other keeps the chip waiting. What is in a loop counts as often as the loop
turns, where the program says how often.
"""

import dataclasses
import math
import re

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


@dataclasses.dataclass(frozen=True)
class Operation:
    """A line of the entry computation.

    Attributes:
      name: as the program has it.
      opcode: fusion, all-reduce, collective-permute-start, ...
      result_bytes: of the result: of all its arrays, or, where an exchange is begun,
        of the largest.
      touched_bytes: of the result and of what it is made of.
      operands: names.
      cycles: the compiler's own estimate; 0 where it gives none.
      matrix: whether it multiplies matrices or convolves.
      text: the whole line, with the computations that it calls.
    """

    name: str
    opcode: str
    result_bytes: int
    touched_bytes: int
    operands: tuple[str, ...]
    cycles: int
    matrix: bool
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
    found: dict[str, Operation] = {}
    lines = bodies[computation] if computation else text[text.index("\nENTRY ") :]
    for line in lines.splitlines():
        match = re.match(r"\s+(?:ROOT )?%([\w.-]+) = (.+?) ([\w-]+)\((.*)", line)
        if match is None:
            continue
        name, shape, opcode, rest = match.groups()
        called = re.findall(r"(?:calls|to_apply)=%([\w.-]+)", rest)
        inner = "\n".join([line, *(bodies.get(body, "") for body in called)])
        cycles = re.search(r'"estimated_cycles":"(\d+)"', rest)
        operands = tuple(re.findall(r"%([\w.-]+)", rest.split("), ")[0]))
        sizes = _array_bytes(shape) or [0]
        result_bytes = max(sizes) if "-start" in name else sum(sizes)
        taken = sum(found[o].result_bytes for o in operands if o in found)
        found[name] = Operation(
            name,
            opcode,
            result_bytes,
            result_bytes + taken,
            operands,
            int(cycles[1]) if cycles else 0,
            re.search(r" (convolution|dot)\(", inner) is not None,
            inner,
        )
    return list(found.values())


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
    found: dict[int, list[Collective]] = {}
    for i, operation in enumerate(scheduled):
        edge = _edge(operation)
        if edge == "done":
            # A fused exchange goes through the fusions between, and bears a number.
            keys = (_chain(operation), *operation.operands)
            first = begun.pop(next(k for k in keys if k in begun))
            between = tuple(scheduled[first + 1 : i])
            found[first] = [_collective(scheduled[first], between)]
        elif edge == "start":
            begun[_chain(operation) or operation.name] = i
        elif operation.opcode.startswith(_KINDS):
            found[i] = [_collective(operation, None)]
        elif operation.opcode == "while":
            body = re.search(r"body=%([\w.-]+)", operation.text)
            turns = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', operation.text)
            inner = collectives(text, body[1] if body else None)
            times = int(turns[1]) if turns else 1
            found[i] = [dataclasses.replace(c, times=c.times * times) for c in inner]
    return [collective for i in sorted(found) for collective in found[i]]


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


def _edge(operation: Operation) -> str | None:
    """Whether an exchange is begun ("start") or ended ("done") here."""
    kinds = "|".join(_KINDS)
    name = operation.name if operation.opcode == "fusion" else operation.opcode
    match = re.match(rf"(?:async-collective|{kinds})-(start|done)", name)
    return match[1] if match else None


def _chain(operation: Operation) -> str | None:
    match = re.search(r'chain_id="(\d+)"', operation.text)
    return f"chain {match[1]}" if match else None


def _bodies(text: str) -> dict[str, str]:
    """The computations other than the entry, by name."""
    return {
        match[1]: match[2]
        for match in re.finditer(r"^%([\w.-]+) [^\n]*\{\n(.*?)^\}", text, re.M | re.S)
    }


def _array_bytes(shape: str) -> list[int]:
    """Bytes of each array in a shape such as `(f32[3,4]{1,0}, u32[])`."""
    return [
        _BYTES[dtype] * math.prod(int(n) for n in dims.split(",") if n)
        for dtype, dims in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", shape)
        if dtype in _BYTES
    ]
