"""The pickles in PyTorch's files, read without torch and without running their code.

Pickles are programs: these closed lists of instructions and of names let one say "a
dict of tensors" and nothing else, so nothing that a file brings is ever run.
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

from vgg_flax.weights import WeightsError
from vgg_flax.weights.containers import mapped_file

SIZE_LIMIT = 4 << 20  # bytes; a state dict of 1,000 tensors has 100 kB
STATE_DICT_ONLY = (
    "if it is yours, save it anew with torch.save(model.state_dict(), path)"
)

_DTYPES: dict[str, Any] = {
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
_PAIRS_LIMIT = 100_000
_OPCODES = set(
    "PROTO FRAME STOP MARK POP POP_MARK DUP MEMOIZE GET BINGET LONG_BINGET "  # noqa: SIM905
    "PUT BINPUT LONG_BINPUT NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 "
    "LONG LONG1 LONG4 BINFLOAT BINSTRING SHORT_BINSTRING BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES EMPTY_TUPLE TUPLE TUPLE1 "
    "TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS GLOBAL "
    "STACK_GLOBAL REDUCE BUILD BINPERSID".split()
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


class _Instructions(dict[int, Callable[..., None]]):
    """pickle's instructions that a dict of tensors needs, by their byte."""

    def __missing__(self, opcode: int) -> Callable[..., None]:
        names = [op.name for op in pickletools.opcodes if ord(op.code) == opcode]
        raise pickle.UnpicklingError(
            f"it has the instruction {''.join(names) or hex(opcode)}, which no dict of "
            "tensors needs"
        )


# pickle's machine in Python, whose instructions can be listed: the one in C would also
# take gigabytes for a damaged memo index. pickles here have some kilobytes.
class Unpickler(pickle._Unpickler):
    """One or more pickles, in which a tensor becomes a `Tensor`.

    Attributes:
      storages: all that the pickles named, by key.
    """

    stack: list[Any]
    memo: dict[int, Any]
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
        self._pairs = 0
        self._functions: dict[str, Callable[..., Any]] = {
            "collections.OrderedDict": self._ordered_dict,
            "torch._utils._rebuild_tensor": Tensor,
            "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
            "torch._utils._rebuild_parameter": _rebuild_parameter,
        }
        self.storages: dict[str, Storage] = {}

    def load_one(self) -> Any:
        """The next pickle's value; raises WeightsError."""
        self.memo.clear()  # each pickle numbers its memo from zero
        try:
            return self.load()
        except _PICKLE_ERRORS as error:
            raise self._mapped.damaged(
                f"its pickle cannot be read: {type(error).__name__}: {error}"
            ) from error

    def position(self) -> int:
        """The byte after the pickles that were loaded."""
        return self._source.tell()

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" in self._functions:
            return self._functions[f"{module}.{name}"]
        if module in ("torch", "torch.cuda") and name in _DTYPES:
            return np.dtype(_DTYPES[name])
        raise WeightsError(
            f"{self._mapped.path}: its pickle asks for {module}.{name}, which is "
            "neither a tensor nor a dict; refused, and nothing of it was run: do not "
            f"load it elsewhere unless you trust its source; {STATE_DICT_ONLY}"
        )

    def persistent_load(self, pid: Any) -> Storage:
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
            self._pairs += 1
            if self._pairs > _PAIRS_LIMIT:
                raise ValueError(f"more than {_PAIRS_LIMIT} entries")
            made[_checked_key(key)] = value
        return made

    def _load_build(self) -> None:
        state = self.stack.pop()  # the module versions of a state dict
        if not isinstance(self.stack[-1], collections.OrderedDict):
            raise ValueError(f"{type(state).__name__} given to what takes none")

    def _load_setitem(self) -> None:
        _checked_key(self.stack[-2])
        _MACHINE[pickle.SETITEM[0]](self)

    def _load_setitems(self) -> None:
        for key in self.stack[::2]:
            _checked_key(key)
        _MACHINE[pickle.SETITEMS[0]](self)

    dispatch[pickle.BUILD[0]] = _load_build
    dispatch[pickle.SETITEM[0]] = _load_setitem
    dispatch[pickle.SETITEMS[0]] = _load_setitems


def _checked_key(key: Any) -> Any:
    """Hashing a tuple of tuples, a million deep, would end the process."""
    if not isinstance(key, (str, int, float, bytes)):
        raise ValueError(f"a dict's key is a {type(key).__name__}")
    return key


def _rebuild_tensor_v2(
    storage: Any, offset: Any, shape: Any, strides: Any, *_: Any
) -> Tensor:
    return Tensor(storage, offset, shape, strides)


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


def is_count(value: Any) -> bool:
    """Whether it is an int that sizes, offsets and strides may have."""
    """Whether it is a number of elements, or of those before one."""
    return type(value) is int and 0 <= value < 1 << 48


def state_dict(file: mapped_file.MappedFile, root: Any) -> dict[str, Tensor]:
    """The one mapping of names to tensors: an entry of `root`, or `root` itself.

    A tensor beside such an entry (`{"state_dict": ..., "best_top1": ...}`) is left out.

    Raises:
      WeightsError: `root` is no dict, or several of its entries are such mappings.
    """
    if not isinstance(root, dict):
        raise WeightsError(
            f"{file.path} holds a {type(root).__name__}, not a dict of tensors; save "
            "it with torch.save(model.state_dict(), path)"
        )
    inner = {name: _tensors_in(v) for name, v in root.items() if isinstance(v, dict)}
    inner = {name: tensors for name, tensors in inner.items() if tensors}
    if len(inner) > 1:
        raise WeightsError(
            f"{file.path} holds several dicts of tensors, {sorted(map(str, inner))}; "
            "save the one you mean by itself: torch.save(torch.load(path)[NAME], other)"
        )
    return next(iter(inner.values())) if inner else _tensors_in(root)


def _tensors_in(mapping: dict[Any, Any]) -> dict[str, Tensor]:
    return {
        name: value
        for name, value in mapping.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }
