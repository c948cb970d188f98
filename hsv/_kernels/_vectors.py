"""Vectors of eight double-precision numbers as a type that compiled kernels compute with.

LLVM turns each operation into one instruction where the processor has registers of 512 bits, and into two or four elsewhere. A kernel
written with vectors does not depend on what the compiler recognises in loops. Nothing is contracted or reordered: ``fma`` is
one rounding wherever it stands, every other operation is what IEEE 754 says.
"""

import operator
from collections.abc import Callable
from typing import Any

import llvmlite.ir as ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

_function: Callable[[Callable[..., Any]], Callable[..., Any]] = (
    intrinsic  # its own type shows the typing context, which callers do not pass
)

LANES = 8
_DOUBLE = ir.DoubleType()
_LLVM = ir.VectorType(_DOUBLE, LANES)
_INT = ir.IntType(32)


class Vector(types.Type):
    """The type of eight numbers in one register."""

    def __init__(self) -> None:
        super().__init__("Vector8")


vector = Vector()


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _LLVM)


def _place(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    data = context.make_array(signature.args[0])(context, builder, args[0]).data
    return builder.bitcast(builder.gep(data, [args[1]]), ir.PointerType(_LLVM))


@_function
def load(typingctx: Any, array: Any, index: Any) -> Any:
    """Eight numbers of a flat float64 array from `index` on; no bounds are checked."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_place(context, builder, signature, args), align=8)

    return vector(array, types.intp), codegen


@_function
def store(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """Write eight numbers into a flat float64 array from `index` on; no bounds are checked."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], _place(context, builder, signature, args), align=8)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), codegen


def _llvm_function(builder: Any, name: str, n_arguments: int) -> Any:
    kind = ir.FunctionType(_LLVM, [_LLVM] * n_arguments)
    return cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{LANES}f64")


@_function
def splat(typingctx: Any, x: Any) -> Any:
    """Eight times the same number."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        one = builder.insert_element(ir.Constant(_LLVM, ir.Undefined), args[0], ir.Constant(_INT, 0))
        same = ir.Constant(ir.VectorType(_INT, LANES), None)
        return builder.shuffle_vector(one, ir.Constant(_LLVM, ir.Undefined), same)

    return vector(types.float64), codegen


@_function
def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """``a b + c``, rounded once."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.call(_llvm_function(builder, "fma", 3), args)

    return vector(vector, vector, vector), codegen


@_function
def sqrt(typingctx: Any, a: Any) -> Any:
    """Square roots."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.call(_llvm_function(builder, "sqrt", 1), args)

    return vector(vector), codegen


@_function
def absolute(typingctx: Any, a: Any) -> Any:
    """Absolute values."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.call(_llvm_function(builder, "fabs", 1), args)

    return vector(vector), codegen


@_function
def where_less(typingctx: Any, a: Any, b: Any, x: Any, y: Any) -> Any:
    """``x`` in the lanes where ``a < b``, ``y`` in the others."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", args[0], args[1]), args[2], args[3])

    return vector(vector, vector, vector, vector), codegen


@_function
def any_less(typingctx: Any, a: Any, b: Any) -> Any:
    """Whether ``a < b`` in any lane."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        mask = builder.bitcast(builder.fcmp_ordered("<", args[0], args[1]), ir.IntType(LANES))
        return builder.icmp_unsigned("!=", mask, ir.Constant(ir.IntType(LANES), 0))

    return types.boolean(vector, vector), codegen


@_function
def total(typingctx: Any, a: Any) -> Any:
    """The sum of the lanes, in pairs."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value, width = args[0], LANES
        while width > 1:
            width //= 2
            halves = [
                ir.Constant(ir.VectorType(_INT, width), list(range(begin, begin + width))) for begin in (0, width)
            ]
            undefined = ir.Constant(value.type, ir.Undefined)
            value = builder.fadd(*(builder.shuffle_vector(value, undefined, half) for half in halves))
        return builder.extract_element(value, ir.Constant(_INT, 0))

    return types.float64(vector), codegen


@_function
def totals(typingctx: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any) -> Any:
    """The sums of the lanes of eight vectors, as one vector: neighbours first, then pairs, then halves."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def fold(x: Any, y: Any, width: int) -> Any:
            """Sums of neighbouring groups of `width` lanes, those of x and of y in turn."""
            starts = [begin + lanes for begin in range(0, LANES, 2 * width) for lanes in (0, LANES)]
            first = [start + k for start in starts for k in range(width)]
            second = [k + width for k in first]
            masks = (ir.Constant(ir.VectorType(_INT, LANES), places) for places in (first, second))
            return builder.fadd(*(builder.shuffle_vector(x, y, mask) for mask in masks))

        values = list(args)
        for width in (1, 2, 4):
            values = [fold(x, y, width) for x, y in zip(values[::2], values[1::2], strict=True)]
        return values[0]

    return vector(*[vector] * 8), codegen


def _operation(function: Callable[..., Any], emit: str) -> None:
    """Make one of Python's operators work on two vectors."""

    class _Signature(ConcreteTemplate):
        cases = (signature(vector, vector, vector),)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return getattr(builder, emit)(*args)

    infer_global(function)(_Signature)
    lower_builtin(function, vector, vector)(codegen)


for _operator, _emit in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _operation(_operator, _emit)
