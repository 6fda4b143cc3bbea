"""The pickles in PyTorch's files, read without torch and without running their code.

Pickles are programs that may call whatever they name. Here they can build plain values
and tensors; any other name becomes a `Placeholder`, which is neither imported nor run.
"""

import collections
import io
import pickle
import pickletools
import struct
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from vgg_flax.weights.containers import mapped_file

SIZE_LIMIT = 4 << 20  # bytes; a state dict of 1,000 tensors has 100 kB

STORAGES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_OPCODES = set(
    "PROTO FRAME STOP MARK POP POP_MARK DUP MEMOIZE GET BINGET LONG_BINGET "  # noqa: SIM905
    "PUT BINPUT LONG_BINPUT NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 "
    "LONG LONG1 LONG4 BINFLOAT BINSTRING SHORT_BINSTRING BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES EMPTY_TUPLE TUPLE TUPLE1 "
    "TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS EMPTY_SET "
    "ADDITEMS FROZENSET GLOBAL STACK_GLOBAL REDUCE NEWOBJ NEWOBJ_EX BUILD "
    "BINPERSID".split()
)
_MACHINE: dict[int, Any] = pickle._Unpickler.dispatch
# What pickle's machine and zipfile raise on damaged bytes.
_PICKLE_ERRORS = (
    pickle.UnpicklingError,
    struct.error,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    OverflowError,
    AssertionError,
    MemoryError,
    RecursionError,
)


class Storage(NamedTuple):
    """Elements `start` to `start + length` of the file's storage `key` of `total`."""

    key: str
    dtype: np.dtype
    total: int
    start: int
    length: int


class Tensor(NamedTuple):
    """A tensor as the pickle describes it; offset and strides count elements."""

    storage: Storage
    offset: Any
    shape: Any
    strides: Any


class Placeholder:
    """What a pickle's name stands for that is no plain value and no tensor.

    Attributes:
      name: the class or function, or what one of it would be.
      state: what the pickle would have given it.
    """

    def __init__(self, name: str, state: Any = None):
        self.name = name
        self.state = state

    def __call__(self) -> "Placeholder":
        return Placeholder(self.name)


class _Instructions(dict[int, Callable[..., None]]):
    """pickle's instructions that a checkpoint needs, by their byte."""

    def __missing__(self, opcode: int) -> Callable[..., None]:
        names = [op.name for op in pickletools.opcodes if ord(op.code) == opcode]
        raise pickle.UnpicklingError(
            f"it has the instruction {''.join(names) or hex(opcode)}, which no "
            "checkpoint needs"
        )


# pickle's machine in Python, whose instructions can be listed: the one in C would also
# take gigabytes for a damaged memo index. pickles here have some kilobytes.
class Unpickler(pickle._Unpickler):
    """One or more pickles, in which a tensor becomes a `Tensor`.

    Attributes:
      storages: all that the pickles named, by key.
    """

    # Of pickle's machine, which its stubs leave out.
    stack: list[Any]
    memo: dict[int, Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    dispatch = _Instructions(
        (ord(op.code), _MACHINE[ord(op.code)])
        for op in pickletools.opcodes
        if op.name in _OPCODES
    )

    def __init__(self, file: mapped_file.MappedFile, stream: io.BytesIO):
        # Python 2 pickled its names as bytes.
        super().__init__(stream, encoding="utf-8")
        self._mapped = file
        self._source = stream
        self._functions: dict[str, Callable[..., Any]] = {
            "collections.OrderedDict": self._ordered_dict,
            "collections.Counter": _dict_of,
            "collections.defaultdict": _dict_of,
            "torch.Size": _first,
            "torch._utils._rebuild_tensor": Tensor,
            "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
            "torch._utils._rebuild_parameter": _first,
            "torch._utils._rebuild_parameter_with_state": _first,
            "torch._tensor._rebuild_from_type_v2": self._rebuild_from_type,
        }
        self.storages: dict[str, Storage] = {}

    def load_one(self) -> Any:
        """The next pickle's value; raises WeightsError."""
        self.memo.clear()  # each pickle numbers its memo from zero
        start = self._source.tell()
        try:
            value = self.load()
        except _PICKLE_ERRORS as error:
            raise self._mapped.damaged(
                f"its pickle cannot be read: {type(error).__name__}: {error}"
            ) from error
        self._mapped.spend(self._source.tell() - start, "bytes of pickles")
        return value

    def position(self) -> int:
        """The byte after the pickles that were loaded."""
        return self._source.tell()

    def find_class(self, module: str, name: str) -> Any:
        self._spend(len(module) + len(name))
        if f"{module}.{name}" in self._functions:
            return self._functions[f"{module}.{name}"]
        if module in ("torch", "torch.cuda") and name in STORAGES:
            return np.dtype(STORAGES[name])
        return Placeholder(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        self._spend(len(pid))
        if pid[0] == "module":  # a class with its source, before torch 1.6
            return pid[1]
        kind, dtype, key, _, total, *rest = pid
        is_storage = kind == "storage" and isinstance(dtype, np.dtype)
        if not is_storage or not isinstance(key, str) or not is_count(total):
            raise ValueError("a storage without type, key or number of elements")
        storage = self.storages.setdefault(key, Storage(key, dtype, total, 0, total))
        if storage[1:3] != (dtype, total):
            raise ValueError(f"storage {key} is described in two ways")
        if not rest or rest[0] is None:
            return storage
        _, start, length = rest[0]  # a storage that is part of another
        if not (is_count(start) and is_count(length) and start + length <= total):
            raise ValueError(f"storage {key} has a part that it does not hold")
        return storage._replace(start=start, length=length)

    def _ordered_dict(self, pairs: Iterable[Any] = ()) -> Any:
        made = collections.OrderedDict()
        for key, value in pairs:  # Python 2 gave them here, not one by one
            made[self._checked_key(key)] = value
        return made

    def _rebuild_from_type(self, function: Any, _: Any, args: Any, __: Any) -> Any:
        if function not in (Tensor, _rebuild_tensor_v2, _first):
            return Placeholder("torch.Tensor")
        return self._call(function, args)  # of a class of one's own, or with attributes

    def _call(self, function: Any, args: Any) -> Any:
        if isinstance(function, Placeholder):
            return function()  # whatever the arguments, which may be very many
        if not isinstance(args, tuple):
            raise TypeError(f"arguments that are a {type(args).__name__}")
        self._spend(len(args))
        return function(*args)

    def _spend(self, steps: int) -> None:
        """Of an instruction that handles what may be long, once more."""
        self._mapped.spend(10 + steps, "values in its pickle, repetitions counted")

    def _load_reduce(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        self.append(self._call(function, args))

    def _load_build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, Placeholder):
            made.state = state
        elif not isinstance(made, dict):  # the module versions of a state dict
            raise ValueError(f"{type(state).__name__} given to what takes none")

    def _load_new_with_names(self) -> None:
        self.stack.pop()
        self._load_reduce()

    def _load_set(self) -> None:
        self.append(Placeholder("set"))  # whose values would have to be hashed

    def _load_frozen_set(self) -> None:
        self.pop_mark()
        self._load_set()

    def _load_append(self) -> None:
        value = self.stack.pop()
        self._extend([value])

    def _load_appends(self) -> None:
        self._extend(self.pop_mark())

    def _load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key], [value])

    def _load_setitems(self) -> None:
        items = self.pop_mark()
        self._update(items[::2], items[1::2])

    def _extend(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], Placeholder):
            self.stack[-1].extend(values)

    def _update(self, keys: list[Any], values: list[Any]) -> None:
        if not isinstance(self.stack[-1], Placeholder):
            for key, value in zip(keys, values, strict=True):
                self.stack[-1][self._checked_key(key)] = value

    def _checked_key(self, key: Any) -> Any:
        """Hashing a tuple of tuples, a million deep, would end the process."""
        parts = key if isinstance(key, tuple) else (key,)
        self._spend(len(parts))
        for part in parts:
            if isinstance(part, int):
                self._spend(part.bit_length() // 64)
            elif not isinstance(part, (str, float, bytes, type(None), Placeholder)):
                raise ValueError(f"a dict's key is a {type(key).__name__}")
        return key

    dispatch |= {
        pickle.BUILD[0]: _load_build,
        pickle.REDUCE[0]: _load_reduce,
        pickle.NEWOBJ[0]: _load_reduce,
        pickle.NEWOBJ_EX[0]: _load_new_with_names,
        pickle.EMPTY_SET[0]: _load_set,
        pickle.FROZENSET[0]: _load_frozen_set,
        pickle.APPEND[0]: _load_append,
        pickle.APPENDS[0]: _load_appends,
        pickle.ADDITEMS[0]: _load_appends,
        pickle.SETITEM[0]: _load_setitem,
        pickle.SETITEMS[0]: _load_setitems,
    }


def _first(value: Any, *_: Any) -> Any:
    return value


def _dict_of(*args: Any) -> dict[Any, Any]:
    """A Counter of a dict, or an empty defaultdict of a type."""
    return args[-1] if args and isinstance(args[-1], dict) else {}


def _rebuild_tensor_v2(
    storage: Any, offset: Any, shape: Any, strides: Any, *_: Any
) -> Tensor:
    return Tensor(storage, offset, shape, strides)


def is_count(value: Any) -> bool:
    """Whether it is a number of elements, or of those before one."""
    return type(value) is int and 0 <= value < 1 << 48
