"""Interpreter of the pickle format for dictionaries of tensors, whose time and memory are bounded by limits.

Python's unpickler can call any function by name, fill gigabytes of memory because of a few bytes (such as a memo with a
large index), and overflow the C stack when it hashes nested tuples. This interpreter of the opcodes, which
`pickletools` parses, creates only numbers, strings, tuples, lists, sets and dictionaries. Everything else is created by
the functions of a `Factory`.
"""

from __future__ import annotations

import functools
import pickletools
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, Protocol

from caption_jax.errors import UserError

MAX_OPERATIONS = 1_000_000  # a network of 1,000 tensors, with the state of its optimizer, needs about 150,000
_MAX_INTEGER_BYTES = 32
_MAX_HASHED_INTEGER = 2**61 - 1  # of larger integers, arbitrarily many have the same hash
_MAX_KEY_ITEMS = 16

_VALUES = (
    *("INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)
_STRINGS = ("STRING", "BINSTRING", "SHORT_BINSTRING")  # of Python 2
_NEW_VALUES: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_TUPLE_SIZES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_GETS, _PUTS = ("GET", "BINGET", "LONG_BINGET"), ("PUT", "BINPUT", "LONG_BINPUT")
_IGNORED = ("PROTO", "FRAME")
_MARK = object()


class PickleError(ValueError):
    """The content is damaged, exceeds a limit or is not supported."""


class Factory(Protocol):
    """Creates the objects that are not numbers, strings or containers."""

    def find(self, module: str, name: str) -> Any:
        """Returns the replacement of a class or function."""

    def call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        """Returns the replacement of the result of a call; `function` can be any object of the pickle."""

    def load_persistent(self, reference: Any) -> Any:
        """Returns the replacement of an object outside the pickle, such as a storage."""

    def set_state(self, instance: Any, state: Any) -> None:
        """Sets the attributes of an object, which can be any object of the pickle."""


def read_pickle(file: IO[bytes], factory: Factory) -> Any:
    """Reads one pickle from a file, which is then positioned after it.

    Args:
        file: a file in memory or memory-mapped file, whose `read` never allocates more than its content.
        factory: creates all other objects.

    Raises:
        PickleError: the pickle is damaged, exceeds a limit or has an unsupported opcode.
    """
    return _Interpreter(factory).run(_parse(file))


def insert(target: dict[Any, Any], items: Iterable[Any]) -> None:
    """Sets alternating keys and values of a dictionary.

    Raises:
        PickleError: a key is neither a string, number or `None` nor a short tuple of these.
    """
    iterator = iter(items)
    for key, value in zip(iterator, iterator, strict=True):
        _check_key(key)
        target[key] = value


def _parse(file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """Yields the name and the argument of each opcode up to STOP."""
    operations = pickletools.genops(file)
    for _ in range(MAX_OPERATIONS):
        try:
            opcode, argument, _ = next(operations)
        except StopIteration:
            return
        except Exception as error:  # damaged arguments raise errors of several types
            raise PickleError(f"it is damaged: {error}") from error
        yield opcode.name, argument
    raise PickleError(f"it has more than {MAX_OPERATIONS:,} objects: save the state dict alone")


def _check_key(key: Any) -> None:
    if isinstance(key, tuple) and len(key) <= _MAX_KEY_ITEMS:
        if any(isinstance(item, tuple) for item in key):
            raise PickleError("nested tuples cannot be keys of a dictionary")
        for item in key:
            _check_key(item)
    elif isinstance(key, int):
        if abs(key) >= _MAX_HASHED_INTEGER:
            raise PickleError("large integers cannot be keys of a dictionary")
    elif key is not None and not isinstance(key, str | bytes | float) and type(key).__hash__ is not object.__hash__:
        raise PickleError(f"a {type(key).__name__} cannot be a key of a dictionary")


class _Interpreter:
    """Stack machine; the stack contains `_MARK` where a list of items starts."""

    def __init__(self, factory: Factory) -> None:
        self._factory = factory
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._operations: dict[str, Callable[[Any], Any]] = {
            **{name.removeprefix("_op_").upper(): getattr(self, name) for name in dir(self) if name.startswith("_op_")},
            **dict.fromkeys(_VALUES, self._push_value),
            **dict.fromkeys(_STRINGS, lambda argument: self._stack.append(argument.encode("latin-1").decode("utf-8"))),
            **dict.fromkeys(_GETS, lambda argument: self._stack.append(self._memo[int(argument)])),
            **dict.fromkeys(_PUTS, lambda argument: self._memo.update({int(argument): self._stack[-1]})),
            **{name: functools.partial(self._push_new, make) for name, make in _NEW_VALUES.items()},
            **{name: functools.partial(self._push_short_tuple, size) for name, size in _TUPLE_SIZES.items()},
            **dict.fromkeys(_IGNORED, lambda argument: None),
        }

    def run(self, operations: Iterator[tuple[str, Any]]) -> Any:
        try:
            for name, argument in operations:
                if name == "STOP":
                    return self._stack.pop()
                if name not in self._operations:
                    raise PickleError(f"it has the unsupported opcode {name}")
                self._operations[name](argument)
        except (PickleError, UserError):  # of the factory
            raise
        except (IndexError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise PickleError(f"it is damaged: {error!r}") from error
        raise PickleError("it is truncated")

    def _push_value(self, value: Any) -> None:
        """Pushes a number or string, unless it is an integer with which computing takes long."""
        if type(value) is int and value.bit_length() > 8 * _MAX_INTEGER_BYTES:
            raise PickleError(f"it has an integer of more than {_MAX_INTEGER_BYTES} bytes")
        self._stack.append(value)

    def _push_new(self, make: Callable[[], Any], _: Any) -> None:
        self._stack.append(make())

    def _push_short_tuple(self, size: int, _: Any) -> None:
        items = [self._stack.pop() for _ in range(size)]
        self._push_tuple(items[::-1])

    def _pop_to_mark(self) -> list[Any]:
        items = []
        while (item := self._stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def _push_tuple(self, items: list[Any]) -> None:
        if any(item is _MARK for item in items):
            raise PickleError("it is damaged: a tuple without an end")
        self._stack.append(tuple(items))

    def _op_mark(self, _: Any) -> None:
        self._stack.append(_MARK)

    def _op_pop(self, _: Any) -> None:
        self._stack.pop()

    def _op_pop_mark(self, _: Any) -> None:
        self._pop_to_mark()

    def _op_dup(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def _op_memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _op_tuple(self, _: Any) -> None:
        self._push_tuple(self._pop_to_mark())

    def _op_list(self, _: Any) -> None:
        self._stack.append(self._pop_to_mark())

    def _op_dict(self, _: Any) -> None:
        items = self._pop_to_mark()
        self._stack.append({})
        self._set_items(items)

    def _op_frozenset(self, _: Any) -> None:
        items = self._pop_to_mark()
        self._stack.append(set())
        self._add_items(items)

    def _op_append(self, _: Any) -> None:
        self._extend([self._stack.pop()])

    def _op_appends(self, _: Any) -> None:
        self._extend(self._pop_to_mark())

    def _op_setitem(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_items([key, value])

    def _op_setitems(self, _: Any) -> None:
        self._set_items(self._pop_to_mark())

    def _op_additems(self, _: Any) -> None:
        self._add_items(self._pop_to_mark())

    # Items of other objects, which the factory creates, are ignored.

    def _extend(self, items: list[Any]) -> None:
        if isinstance(target := self._stack[-1], list):
            target.extend(items)

    def _set_items(self, items: list[Any]) -> None:
        if isinstance(target := self._stack[-1], dict):
            insert(target, items)

    def _add_items(self, items: list[Any]) -> None:
        if isinstance(target := self._stack[-1], set):
            for item in items:
                _check_key(item)
            target.update(items)

    def _op_global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(self._factory.find(module, name))

    def _op_stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise PickleError("it is damaged: the name of a class is not a string")
        self._stack.append(self._factory.find(module, name))

    def _op_inst(self, argument: str) -> None:
        arguments = tuple(self._pop_to_mark())
        self._op_global(argument)
        self._stack.append(self._factory.call(self._stack.pop(), arguments))

    def _op_obj(self, _: Any) -> None:
        function, *arguments = self._pop_to_mark()
        self._stack.append(self._factory.call(function, tuple(arguments)))

    def _op_reduce(self, _: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(arguments, tuple):
            raise PickleError("it is damaged: the arguments of a call are not a tuple")
        self._stack.append(self._factory.call(function, arguments))

    def _op_newobj(self, _: Any) -> None:
        self._op_reduce(None)

    def _op_newobj_ex(self, _: Any) -> None:
        self._stack.pop()  # keyword arguments
        self._op_reduce(None)

    def _op_build(self, _: Any) -> None:
        state = self._stack.pop()
        self._factory.set_state(self._stack[-1], state)

    def _op_persid(self, argument: str) -> None:
        self._stack.append(self._factory.load_persistent(argument))

    def _op_binpersid(self, _: Any) -> None:
        self._stack.append(self._factory.load_persistent(self._stack.pop()))
