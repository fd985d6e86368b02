"""Programs that are compiled once for a loss, a distance and shapes, and called eagerly again.

`jax.jit` takes two functions for the same if they are one object. A loss such as
`losses.supcon(0.1)` is a new object wherever it is written, so eager calls would compile it each
time and keep every program. Here two functions are the same if they have the same code and close
over equal values. Traced values, as where a gradient by a temperature is taken, and arrays of one
number become arguments (`closures`), and any others of their type fit the program. A function that
closes over something else, as over an array of several entries, gets a program of its own, which is
dropped after the call.
"""

import dis
import enum
import functools
import inspect
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from types import CodeType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_PROGRAMS = 64
"""Number of programs in the cache; the least recently called one is dropped first."""

_TYPES = {bool, int, float, complex, str, bytes, type(None)}
_VALUES = (np.generic, np.dtype, enum.Enum)


class Identified:
    """A function that equals others of the same code and the same values.

    Attributes:
      function: the function that is called.
      identity: what it is compared by.
    """

    def __init__(self, function: Callable[..., Any], identity: Hashable) -> None:
        self.function, self.identity = function, identity

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identified) and self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)


class Unidentified:
    """A function that can not be compared with others; it has no hash.

    Attributes:
      function: the function that is called.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)


def identified(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function comparable by its code and by the values that it closes over.

    Args:
      function: any callable.

    Returns:
      A callable with the same results: `Identified`, or `Unidentified` if the function holds a
      value that has no identity of its own, as an array or a mutable object.
    """
    return identified_with_arguments(function, function, (), None)


def identified_with_arguments(
    converted: Callable[..., Any],
    function: Callable[..., Any],
    arguments: Sequence[jax.Array],
    program: Hashable,
) -> Callable[..., Any]:
    """Makes a function comparable that takes as arguments what another closes over.

    Args:
      converted: the function, which computes `program`.
      function: the function that it was made from.
      arguments: the arrays that `function` closes over and `converted` takes.
      program: what `function` was traced to, which depends on settings of JAX too, such as the
        default precision of products.

    Returns:
      A callable with the results of `converted`, `Identified` or `Unidentified`.
    """
    try:
        identity = _identity(function, _Outer(arguments=tuple(arguments)))
    except (_NoIdentity, RecursionError):
        return Unidentified(converted)
    return Identified(converted, (identity, program))


def is_tracing() -> bool:
    """Returns True where a program is being traced, and False in an eager call."""
    # A new array is traced inside of `jax.jit` alone.
    return isinstance(jnp.zeros(()), jax.core.Tracer)


def program_or_part(function: Callable[..., Any], *static: Any) -> Callable[..., Any]:
    """Compiles a function, or makes it a part of the program that is being traced."""
    # There a program of its own would be traced twice, once by itself and once for its derivative.
    return functools.partial(function, *static) if is_tracing() else compiled(function, *static)


def compiled(function: Callable[..., Any], *static: Any) -> Callable[..., Any]:
    """Compiles a function for leading arguments that are not arrays.

    Args:
      function: takes the arguments `static` and then trees of arrays.
      *static: arguments that the program is compiled for.

    Returns:
      The function of the remaining arguments under `jax.jit`; the same one for equal arguments, as
      long as it is cached.
    """
    try:
        return _cached_program(function, *static)
    except TypeError:  # An argument has no hash.
        return _program(function, *static)


def _program(function: Callable[..., Any], *static: Any) -> Callable[..., Any]:
    # A partial function of its own: programs live as long as the function that was compiled.
    program = functools.partial(function, *static)
    program.__name__ = function.__name__  # type: ignore[attr-defined]
    return jax.jit(program)


_cached_program = functools.lru_cache(maxsize=_PROGRAMS)(_program)


class _NoIdentity(Exception):
    pass


class _Same:
    """Equal for one object alone, which lives as long as what it identifies."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


class _Outer(NamedTuple):
    """The surroundings of a value: the functions that hold it, and which of their values count."""

    functions: tuple[Any, ...] = ()
    arguments: tuple[Any, ...] = ()
    """Arrays that become arguments, of which only the types count."""


def _identity(value: Any, outer: _Outer) -> Hashable:
    """Returns a value that is equal for values that a function computes the same with."""
    if isinstance(value, jax.Array):
        for index, one in enumerate(outer.arguments):
            if one is value:
                return "argument", index, jax.typeof(value)
        raise _NoIdentity
    if type(value) in _TYPES or isinstance(value, _VALUES):
        # 0.0 equals -0.0 and 1 equals True, but they are different to a function; NaN equals none.
        return type(value), repr(value)
    if type(value) in (tuple, list) or (isinstance(value, tuple) and hasattr(value, "_fields")):
        return type(value), tuple(_identity(one, outer) for one in value)
    if type(value) is dict:
        pairs = [(_identity(key, outer), _identity(one, outer)) for key, one in value.items()]
        return dict, tuple(pairs)
    if isinstance(value, functools.partial):
        return functools.partial, _identity((value.func, value.args, value.keywords), outer)
    if inspect.isfunction(value):
        return _identity_of_function(value, outer)
    # Modules, and what a module that is imported holds by its own name, stay as they are.
    if inspect.ismodule(value) or _is_of_a_module(value):
        return _Same(value)
    raise _NoIdentity


def _identity_of_function(function: Any, outer: _Outer) -> Hashable:
    if function in outer.functions:
        return "recursive", outer.functions.index(function)
    outer = outer._replace(functions=(*outer.functions, function))
    home = str(function.__globals__.get("__name__"))
    is_of_a_library = home.split(".")[0] in ("contrastive_jax", "jax")
    if not is_of_a_library and _is_of_a_module(function):
        return _Same(function)
    try:
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
    except ValueError:  # A cell that is empty yet.
        raise _NoIdentity from None
    code = function.__code__
    read = []
    if not is_of_a_library:
        # A value that a function reads may be another at the next call, as in a notebook.
        names = sorted({*_names(code)} & {*function.__globals__})
        read = [(name, function.__globals__[name]) for name in names]
    attributes = {name: one for name, one in vars(function).items() if name != "__wrapped__"}
    held = (cells, function.__defaults__, function.__kwdefaults__, read, attributes)
    return code, _Same(function.__globals__), _identity(held, outer)


def _names(code: CodeType) -> Iterator[str]:
    """Yields the names that a function and the functions inside it may read from their module."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield str(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _is_of_a_module(value: Any) -> bool:
    """Returns whether an imported module has this object by its own name, like a function."""
    name = getattr(value, "__module__", None)
    if name == "__main__" or not callable(value):
        return False
    module = sys.modules.get(name or "")
    return (
        module is not None and getattr(module, str(getattr(value, "__name__", "")), None) is value
    )
