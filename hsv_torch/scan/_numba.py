# mypy: ignore-errors
"""The CPU kernels. Importing this file imports Numba, so it is imported when a kernel is first needed.

Everything is in one file because Numba's cache on disk looks at the date of the file that a kernel stands in, and of no other.

Vectors of 64 bytes are a type here. Loop vectorisation by the optimiser needs proofs that arrays do not overlap and leave to
reorder sums; a vector type needs neither: the values stay in registers, and the order of every sum is the one written, on
every machine and for every number of threads. Where registers are shorter LLVM splits the vectors.

No kernel starts threads: they release the GIL and take the range of tasks to work on, see ``_threads.py``.
"""

import llvmlite.ir as ir
import numba
import numpy as np
from numba import types
from numba.core import cgutils
from numba.core.datamodel.models import PrimitiveModel
from numba.extending import intrinsic, register_model

N_BYTES = 64  # of a vector
GROUP = 8  # channels whose coefficients (real and imaginary) fill half of 32 vector registers
CHUNK = 24
SELECTIVE_CHUNK = 64
ATTENTION_CHUNK = 64
SELECTIVE_BLOCKS = 8  # vectors of channels that sums over channels wait for; 4 take 5 % longer

_kernel = numba.njit(nogil=True, cache=True, error_model="numpy")


class Vector(types.Type):
    """As many numbers of one dtype as fill a vector register; complex ones with real and imaginary parts in turn."""

    def __init__(self, dtype):
        self.dtype = dtype
        self.part = getattr(dtype, "underlying_float", dtype)
        self.lanes = N_BYTES * 8 // self.part.bitwidth  # real numbers
        super().__init__(name=f"Vector({dtype})")


@register_model(Vector)
class _VectorModel(PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, ir.VectorType(dmm.lookup(fe_type.part).get_value_type(), fe_type.lanes))


def _element(context, builder, signature, args) -> ir.Value:
    """The address of ``array[index]``, where the first two arguments of an intrinsic are array and index."""
    index = context.cast(builder, args[1], signature.args[1], types.intp)
    data = cgutils.create_struct_proxy(signature.args[0])(context, builder, args[0]).data
    return builder.gep(data, [index])


def _load(builder, pointer, vector_type, offset: int) -> ir.Value:
    pointer = builder.gep(builder.bitcast(pointer, ir.PointerType(vector_type)), [ir.Constant(ir.IntType(64), offset)])
    return builder.load(pointer, align=4)


def _splat(builder, vector_type, value) -> ir.Value:
    undefined = ir.Constant(vector_type, ir.Undefined)
    mask = ir.Constant(ir.VectorType(ir.IntType(32), vector_type.count), [0] * vector_type.count)
    return builder.shuffle_vector(
        builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0)), undefined, mask
    )


def _fma(builder, a, b, c) -> ir.Value:
    bits = 32 if isinstance(a.type.element, ir.FloatType) else 64
    function_type = ir.FunctionType(a.type, [a.type] * 3)
    function = cgutils.get_or_insert_function(builder.module, function_type, f"llvm.fma.v{a.type.count}f{bits}")
    return builder.call(function, [a, b, c])


@intrinsic
def load(typingctx, array, index):
    """The vector that begins at ``array[index]``. All arrays are flat and contiguous, and bounds are not checked."""
    vector = Vector(array.dtype)

    def codegen(context, builder, signature, args):
        return _load(builder, _element(context, builder, signature, args), context.get_value_type(vector), 0)

    return vector(array, index), codegen


@intrinsic
def splat(typingctx, array, index):
    """``array[index]`` in every lane."""
    vector = Vector(array.dtype)

    def codegen(context, builder, signature, args):
        value = builder.load(_element(context, builder, signature, args))
        return _splat(builder, context.get_value_type(vector), value)

    return vector(array, index), codegen


@intrinsic
def store(typingctx, array, index, vector):
    """Write a vector at ``array[index]``."""

    def codegen(context, builder, signature, args):
        pointer = builder.bitcast(_element(context, builder, signature, args), ir.PointerType(args[2].type))
        builder.store(args[2], pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, index, vector), codegen


@intrinsic
def stream(typingctx, array, index, vector):
    """``store`` that goes past the caches; the address must be a multiple of the vector's size."""

    def codegen(context, builder, signature, args):
        pointer = builder.bitcast(_element(context, builder, signature, args), ir.PointerType(args[2].type))
        instruction = builder.store(args[2], pointer, align=N_BYTES)
        instruction.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(array, index, vector), codegen


@intrinsic
def multiply_add(typingctx, a, b, c):
    """``a b + c``, rounded once."""

    def codegen(context, builder, signature, args):
        return _fma(builder, *args)

    return a(a, b, c), codegen


def _shuffle(builder, a, b, indices) -> ir.Value:
    """The lanes ``indices`` of ``a`` followed by ``b``."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(indices)), list(indices)))


def _product_add(builder, vector, a, b, c, sign: float) -> ir.Value:
    """``a b + c``, or ``conj(a) b + c`` with sign -1. For complex numbers: Re(a) b + Im(a) (i b)."""
    if vector.part is vector.dtype:
        return _fma(builder, a, b, c)
    lanes = range(vector.lanes)
    signs = ir.Constant(a.type, [-sign if k % 2 == 0 else sign for k in lanes])
    re, im = (
        _shuffle(builder, a, a, [k - k % 2 for k in lanes]),
        _shuffle(builder, a, a, [k - k % 2 + 1 for k in lanes]),
    )
    swapped = _shuffle(builder, b, b, [k + 1 - 2 * (k % 2) for k in lanes])
    return _fma(builder, re, b, _fma(builder, builder.fmul(im, signs), swapped, c))


@intrinsic
def product_add(typingctx, a, b, c):
    """``a b + c``, real or complex."""

    def codegen(context, builder, signature, args):
        return _product_add(builder, a, *args, sign=1.0)

    return a(a, b, c), codegen


@intrinsic
def conj_product_add(typingctx, a, b, c):
    """``conj(a) b + c``, real or complex."""

    def codegen(context, builder, signature, args):
        return _product_add(builder, a, *args, sign=-1.0)

    return a(a, b, c), codegen


@intrinsic
def zero(typingctx, like):
    """A vector of zeros."""

    def codegen(context, builder, signature, args):
        return ir.Constant(args[0].type, None)

    return like(like), codegen


@intrinsic
def add(typingctx, a, b):
    """``a + b``."""

    def codegen(context, builder, signature, args):
        return builder.fadd(*args)

    return a(a, b), codegen


@intrinsic
def negative(typingctx, a):
    """``-a``."""

    def codegen(context, builder, signature, args):
        return builder.fneg(args[0])

    return a(a), codegen


@intrinsic
def fill(typingctx, like, value):
    """``value`` in every lane."""

    def codegen(context, builder, signature, args):
        number = context.cast(builder, args[1], signature.args[1], like.part)
        return _splat(builder, args[0].type, number)

    return like(like, value), codegen


@intrinsic
def divide(typingctx, a, b):
    """``a / b``, real."""

    def codegen(context, builder, signature, args):
        return builder.fdiv(*args)

    return a(a, b), codegen


@intrinsic
def at_least(typingctx, a, b):
    """The larger one in each lane, real; ``a`` where it is not a number."""

    def codegen(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered("<", args[0], args[1]), args[1], args[0])

    return a(a, b), codegen


@intrinsic
def multiply(typingctx, a, b):
    """``a b``, real."""

    def codegen(context, builder, signature, args):
        return builder.fmul(*args)

    return a(a, b), codegen


@intrinsic
def sum_lanes(typingctx, vector):
    """The sum of the lanes, halves onto halves."""

    def codegen(context, builder, signature, args):
        total = args[0]
        while total.type.count > 1:
            half = total.type.count // 2
            low, high = (_shuffle(builder, total, total, range(k, k + half)) for k in (0, half))
            total = builder.fadd(low, high)
        return builder.extract_element(total, ir.Constant(ir.IntType(32), 0))

    return vector.part(vector), codegen


@intrinsic
def sum_rows(typingctx, array, index, stride):
    """A vector whose k-th lane is the sum of the lanes of the vector at ``array[index + k stride]``.

    Two rows at a time are added, their first halves to their second ones, so that one sum costs three operations and not two for each halving.
    """
    vector = Vector(array.dtype)

    def codegen(context, builder, signature, args):
        vector_type = context.get_value_type(vector)
        first = _element(context, builder, signature, args)
        step = context.cast(builder, args[2], signature.args[2], types.intp)
        rows = [builder.gep(first, [builder.mul(step, ir.Constant(ir.IntType(64), k))]) for k in range(vector.lanes)]
        rows = [_load(builder, row, vector_type, 0) for row in rows]
        half = vector.lanes // 2
        while len(rows) > 1:
            pairs = zip(rows[0::2], rows[1::2], strict=True)  # neighbours, so that their sums come to lie in order
            low = [lane for lane in range(2 * vector.lanes) if lane // half % 2 == 0]
            high = [lane + half for lane in low]
            rows = [builder.fadd(_shuffle(builder, a, b, low), _shuffle(builder, a, b, high)) for a, b in pairs]
            half //= 2
        return rows[0]

    return vector(array, index, stride), codegen


# exp(r) = 1 + r + r^2 q(r) for |r| <= log(2) / 2: the q of least relative error (Remez), 2.5e-8 and 4.1e-17.
_EXP = {
    32: [
        0.49999983584677028803,
        0.16666601142946113569,
        0.041673772291973458264,
        0.0083591277566683551194,
        0.0013339148117424071375,
    ],
    64: [
        0.50000000000000022452,
        0.1666666666666624589,
        0.041666666666614860774,
        0.0083333333337100158362,
        0.0013888888918627888963,
        0.00019841268812371922533,
        0.000024801521217586635995,
        2.7558400470391549809e-6,
        2.7619581718434293407e-7,
        2.4683923914902348192e-8,
    ],
}


@intrinsic
def exp(typingctx, vector):
    """``exp`` of each lane to two units in the last place; 0 below 1.5 times the least normal number."""

    def codegen(context, builder, signature, args):
        (x,) = args
        bits = vector.part.bitwidth
        mantissa, bias = (23, 127) if bits == 32 else (52, 1023)
        integers = ir.VectorType(ir.IntType(bits), x.type.count)

        def constant(value):
            return ir.Constant(x.type, [float(value)] * x.type.count)

        # Outside of these every result is 0 or infinity; a NaN passes, for every comparison with it is false.
        for bound, outside in (((1 - bias) * np.log(2), "<"), ((bias + 2) * np.log(2), ">")):
            x = builder.select(builder.fcmp_ordered(outside, x, constant(bound)), constant(bound), x)
        # x = k log 2 + r. Adding a number whose last place is 1 rounds to an integer, and leaves k + bias - 1 in the last bits.
        shift = 1.5 * 2.0**mantissa + bias - 1
        shifted = _fma(builder, x, constant(1 / np.log(2)), constant(shift))
        k = builder.fsub(shifted, constant(shift))
        r = x
        for part in _split_log_2(bits):
            r = _fma(builder, k, constant(-part), r)
        q = constant(_EXP[bits][-1])
        for coefficient in _EXP[bits][-2::-1]:
            q = _fma(builder, q, r, constant(coefficient))
        one = _fma(builder, _fma(builder, q, r, constant(1)), r, constant(1))
        # 2^(k - 1) written into the exponent; it is 0 for the least k. The other 2 keeps the largest results finite.
        power = builder.shl(builder.bitcast(shifted, integers), ir.Constant(integers, [mantissa] * x.type.count))
        return builder.fmul(builder.fadd(one, one), builder.bitcast(power, x.type))

    return vector(vector), codegen


# log(1 + t) = 2 s p(s^2) with s = t / (2 + t) for 0 <= t <= 1: p interpolates atanh(s) / s, to 4e-9 and 1.3e-18.
_LOG = {
    32: [
        1.0000000038408794404,
        0.33333160820688886578,
        0.20012297615351873956,
        0.13982578872598634444,
        0.14078889181554540327,
    ],
    64: [
        1.0000000000000000012,
        0.33333333333333074797,
        0.20000000000092873734,
        0.14285714272727057267,
        0.11111112040373836587,
        0.090908704162524022551,
        0.076933070211520038808,
        0.066501870163373121685,
        0.060550843640346088273,
        0.041622532559304102879,
        0.085220817813906990645,
    ],
}


@intrinsic
def log_1_plus(typingctx, vector):
    """``log(1 + t)`` of each lane, for t between 0 and 1, to three units in the last place."""

    def codegen(context, builder, signature, args):
        (t,) = args

        def constant(value):
            return ir.Constant(t.type, [float(value)] * t.type.count)

        s = builder.fdiv(t, builder.fadd(t, constant(2)))
        square = builder.fmul(s, s)
        *coefficients, last = _LOG[vector.part.bitwidth]
        p = constant(last)
        for coefficient in coefficients[::-1]:
            p = _fma(builder, p, square, constant(coefficient))
        return builder.fmul(builder.fadd(s, s), p)

    return vector(vector), codegen


def _split_log_2(bits: int) -> tuple[float, float]:
    """``log(2)`` as the sum of two numbers of a precision."""
    if bits == 32:
        high = float(np.float32(np.log(2)))
        return high, np.log(2) - high
    return np.log(2), float.fromhex("0x1.abc9e3b39803fp-56")


@intrinsic
def load_group(typingctx, array, index):
    """The ``GROUP`` vectors that begin at ``array[index]``."""
    group = types.UniTuple(Vector(array.dtype), GROUP)

    def codegen(context, builder, signature, args):
        pointer = _element(context, builder, signature, args)
        vector_type = context.get_value_type(group.dtype)
        return context.make_tuple(builder, group, [_load(builder, pointer, vector_type, j) for j in range(GROUP)])

    return group(array, index), codegen


@intrinsic
def splat_group(typingctx, array, index):
    """``GROUP`` vectors, the j-th with ``array[index + j]`` in every lane."""
    group = types.UniTuple(Vector(array.dtype), GROUP)

    def codegen(context, builder, signature, args):
        pointer = _element(context, builder, signature, args)
        vector_type = context.get_value_type(group.dtype)
        values = [builder.load(builder.gep(pointer, [ir.Constant(ir.IntType(64), j)])) for j in range(GROUP)]
        return context.make_tuple(builder, group, [_splat(builder, vector_type, value) for value in values])

    return group(array, index), codegen


@intrinsic
def store_group(typingctx, array, index, group):
    """Write ``GROUP`` vectors from ``array[index]`` on."""

    def codegen(context, builder, signature, args):
        vectors = cgutils.unpack_tuple(builder, args[2])
        pointer = builder.bitcast(_element(context, builder, signature, args), ir.PointerType(vectors[0].type))
        for j, vector in enumerate(vectors):
            builder.store(vector, builder.gep(pointer, [ir.Constant(ir.IntType(64), j)]), align=4)
        return context.get_dummy_value()

    return types.void(array, index, group), codegen


@intrinsic
def dot(typingctx, a, b, c):
    """``c + sum over j of a[j] b[j]``, the even and the odd terms apart, so that they do not wait for each other."""

    def codegen(context, builder, signature, args):
        a_j, b_j = cgutils.unpack_tuple(builder, args[0]), cgutils.unpack_tuple(builder, args[1])
        even, odd = args[2], builder.fmul(a_j[1], b_j[1])
        for j in range(0, GROUP, 2):
            even = _fma(builder, a_j[j], b_j[j], even)
        for j in range(3, GROUP, 2):
            odd = _fma(builder, a_j[j], b_j[j], odd)
        return builder.fadd(even, odd)

    return c(a, b, c), codegen


@intrinsic
def multiply_add_group(typingctx, a, b, c):
    """``a[j] b + c[j]`` for every j; ``b`` is one vector."""

    def codegen(context, builder, signature, args):
        a_j, c_j = cgutils.unpack_tuple(builder, args[0]), cgutils.unpack_tuple(builder, args[2])
        return context.make_tuple(builder, c, [_fma(builder, x, args[1], z) for x, z in zip(a_j, c_j, strict=True)])

    return c(a, b, c), codegen


@intrinsic
def multiply_group(typingctx, a, b):
    """``a[j] b`` for every j; ``b`` is one vector."""

    def codegen(context, builder, signature, args):
        return context.make_tuple(
            builder, a, [builder.fmul(x, args[1]) for x in cgutils.unpack_tuple(builder, args[0])]
        )

    return a(a, b), codegen


@intrinsic
def multiply_groups(typingctx, a, b):
    """``a[j] b[j]`` for every j."""

    def codegen(context, builder, signature, args):
        a_j, b_j = cgutils.unpack_tuple(builder, args[0]), cgutils.unpack_tuple(builder, args[1])
        return context.make_tuple(builder, a, [builder.fmul(x, y) for x, y in zip(a_j, b_j, strict=True)])

    return a(a, b), codegen


@intrinsic
def copy_group(typingctx, source, at, target, to):
    """``target[to + j] = source[at + j]`` for every j below ``GROUP``."""

    def codegen(context, builder, signature, args):
        group = ir.PointerType(ir.VectorType(context.get_value_type(source.dtype), GROUP))
        read, write = (
            builder.bitcast(_element(context, builder, types.void(*signature.args[k : k + 2]), args[k : k + 2]), group)
            for k in (0, 2)
        )
        builder.store(builder.load(read, align=4), write, align=4)
        return context.get_dummy_value()

    return types.void(source, at, target, to), codegen


@_kernel
def _aligned(size, like):
    """A flat array of zeros whose vectors do not straddle cache lines."""
    itemsize = like.itemsize
    raw = np.zeros(size + N_BYTES // itemsize, like.dtype)
    start = (N_BYTES - raw.ctypes.data % N_BYTES) % N_BYTES // itemsize
    return raw[start : start + size]


@intrinsic
def transpose(typingctx, source, at, stride, target, to, to_stride):
    """``target[to + k to_stride + j] = source[at + j stride + k]`` for all ``j`` and ``k`` below the number of lanes."""

    def codegen(context, builder, signature, args):
        lanes = Vector(source.dtype).lanes
        vector_type = context.get_value_type(Vector(source.dtype))

        def pointer(array_type, array, index, step, k):
            data = cgutils.create_struct_proxy(array_type)(context, builder, array).data
            index = builder.add(index, builder.mul(step, ir.Constant(ir.IntType(64), k)))
            return builder.bitcast(builder.gep(data, [index]), ir.PointerType(vector_type))

        rows = [builder.load(pointer(source, args[0], args[1], args[2], k), align=4) for k in range(lanes)]
        for _ in range(
            lanes.bit_length() - 1
        ):  # each pass rotates the bits of (row, lane) by one; half of them swap the two
            pairs = zip(rows[: lanes // 2], rows[lanes // 2 :], strict=True)
            halves = (range(lanes // 2), range(lanes // 2, lanes))
            rows = [
                _shuffle(builder, a, b, [k + from_b for k in half for from_b in (0, lanes)])
                for a, b in pairs
                for half in halves
            ]
        for k, row in enumerate(rows):
            builder.store(row, pointer(target, args[3], args[4], args[5], k), align=4)
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp, target, types.intp, types.intp), codegen


@_kernel
def _gather(x, first, start, stop, n_rows, rows):
    """Steps ``start`` to ``stop`` of the sequences from ``first`` on, as rows (step, channel) with a sequence in each lane."""
    lanes = N_BYTES // x.itemsize
    batch, length, n_channels = x.shape
    done = 0
    if n_channels == n_rows and first + lanes <= batch:
        flat = x.ravel()
        done = (stop - start) * n_rows // lanes * lanes
        for k in range(0, done, lanes):
            transpose(flat, (first * length + start) * n_rows + k, length * n_rows, rows, k * lanes, lanes)
    for lane in range(min(lanes, batch - first)):
        for k in range(done // n_rows, stop - start):
            for h in range(n_channels):
                rows[(k * n_rows + h) * lanes + lane] = x[first + lane, start + k, h]


@_kernel
def _scatter(rows, first, start, stop, n_rows, x):
    """The inverse of ``_gather``."""
    lanes = N_BYTES // x.itemsize
    batch, length, n_channels = x.shape
    done = 0
    if n_channels == n_rows and first + lanes <= batch:
        flat = x.ravel()
        done = (stop - start) * n_rows // lanes * lanes
        for k in range(0, done, lanes):
            transpose(rows, k * lanes, lanes, flat, (first * length + start) * n_rows + k, length * n_rows)
    for lane in range(min(lanes, batch - first)):
        for k in range(done // n_rows, stop - start):
            for h in range(n_channels):
                x[first + lane, start + k, h] = rows[(k * n_rows + h) * lanes + lane]


@_kernel
def _project(rows, n_rows, re, im, row, n_steps, out_re, out_im):
    """``out[t] = sum over h of (re + i im)[row + h] rows[t, h]``, of all groups of channels but the last."""
    lanes = N_BYTES // re.itemsize
    out_re[: n_steps * lanes] = 0
    out_im[: n_steps * lanes] = 0
    for group in range(n_rows // GROUP - 1):
        a, b = splat_group(re, row + group * GROUP), splat_group(im, row + group * GROUP)
        for t in range(n_steps):
            x = load_group(rows, (t * n_rows + group * GROUP) * lanes)
            store(out_re, t * lanes, dot(a, x, load(out_re, t * lanes)))
            store(out_im, t * lanes, dot(b, x, load(out_im, t * lanes)))


@_kernel
def _recur(rows, n_rows, re, im, row, pole_re, pole_im, i, state_re, state_im, first, step, n_steps, out_re, out_im):
    """``s <- pole[i] s + out[t] + sum over h of (re + i im)[row + h] rows[t, h]``, the last group of channels; ``out[t] = s``.

    ``t`` runs from ``first`` in steps of 1 or -1; ``state[i]`` holds ``s`` before and after.
    """
    lanes = N_BYTES // re.itemsize
    last = n_rows - GROUP
    a, b = splat_group(re, row + last), splat_group(im, row + last)
    p_re, p_im = splat(pole_re, i), splat(pole_im, i)
    minus_im = negative(p_im)
    s_re, s_im = load(state_re, i * lanes), load(state_im, i * lanes)
    for k in range(n_steps):
        t = first + k * step
        x = load_group(rows, (t * n_rows + last) * lanes)
        u_re, u_im = dot(a, x, load(out_re, t * lanes)), dot(b, x, load(out_im, t * lanes))
        u_re, u_im = multiply_add(p_re, s_re, u_re), multiply_add(p_im, s_re, u_im)
        s_re, s_im = multiply_add(minus_im, s_im, u_re), multiply_add(p_re, s_im, u_im)
        store(out_re, t * lanes, s_re)
        store(out_im, t * lanes, s_im)
    store(state_re, i * lanes, s_re)
    store(state_im, i * lanes, s_im)


@_kernel
def _expand(s_re, s_im, re, im, row, n_rows, n_steps, rows):
    """``rows[t, h] += re[row + h] s_re[t] + im[row + h] s_im[t]``."""
    lanes = N_BYTES // re.itemsize
    for group in range(n_rows // GROUP):
        a, b = splat_group(re, row + group * GROUP), splat_group(im, row + group * GROUP)
        for t in range(n_steps):
            at = (t * n_rows + group * GROUP) * lanes
            y = multiply_add_group(a, load(s_re, t * lanes), load_group(rows, at))
            store_group(rows, at, multiply_add_group(b, load(s_im, t * lanes), y))


@_kernel
def _correlate(rows, n_rows, s_re, s_im, n_steps, out_re, out_im, i):
    """``out[i, h] += sum over t of rows[t, h] s[t]``, a sum in each lane."""
    lanes = N_BYTES // rows.itemsize
    for group in range(n_rows // GROUP):
        at = (i * n_rows + group * GROUP) * lanes
        a, b = load_group(out_re, at), load_group(out_im, at)
        for t in range(n_steps):
            x = load_group(rows, (t * n_rows + group * GROUP) * lanes)
            a = multiply_add_group(x, load(s_re, t * lanes), a)
            b = multiply_add_group(x, load(s_im, t * lanes), b)
        store_group(out_re, at, a)
        store_group(out_im, at, b)


@_kernel
def _correlate_states(g_re, g_im, h_re, h_im, n_steps, out_re, out_im, i):
    """``out[i] += sum over t of g[t] conj(h[t])``, a sum in each lane."""
    lanes = N_BYTES // g_re.itemsize
    a, b = load(out_re, i * lanes), load(out_im, i * lanes)
    for t in range(n_steps):
        x, y = load(g_re, t * lanes), load(g_im, t * lanes)
        u, v = load(h_re, t * lanes), load(h_im, t * lanes)
        a, b = multiply_add(y, v, multiply_add(x, u, a)), multiply_add(y, u, multiply_add(negative(x), v, b))
    store(out_re, i * lanes, a)
    store(out_im, i * lanes, b)


@_kernel
def _sum_lanes(vectors, out):
    """Sums over the lanes, in float64, from the first lane to the last."""
    lanes = N_BYTES // vectors.itemsize
    for k in range(out.size):
        total = 0.0
        for lane in range(lanes):
            total += vectors[k * lanes + lane]
        out[k] = total


@_kernel
def diagonal_forward(first_tile, last_tile, x, pole_re, pole_im, in_re, in_im, out_re, out_im, y, saved):
    """Tiles ``first_tile`` to ``last_tile`` of ``h[t] = pole h[t-1] + B x[t]``, ``y[t] = Re(C h[t])``.

    A tile is as many sequences as a vector has lanes. It goes through time in chunks, and in a chunk one state after the
    other, so that what a state needs stays in registers and the chunk in the first-level cache.

    ``x (batch, length, n_inputs)``; ``in_*``: B as ``(n, n_inputs)``, ``out_*``: conj(C) transposed, ``(n, n_outputs)``, both
    flat with the channels padded to a multiple of ``GROUP``. ``saved (tiles, chunks, 2 n lanes)`` takes the states before each
    chunk, unless it has no chunks.
    """
    length = x.shape[1]
    n = pole_re.size
    lanes = N_BYTES // x.itemsize
    n_in, n_out = in_re.size // n, out_re.size // n
    x_rows, y_rows = _aligned(CHUNK * n_in * lanes, pole_re), _aligned(CHUNK * n_out * lanes, pole_re)
    h_re, h_im = _aligned(CHUNK * lanes, pole_re), _aligned(CHUNK * lanes, pole_re)
    state_re, state_im = _aligned(n * lanes, pole_re), _aligned(n * lanes, pole_re)
    for tile in range(first_tile, last_tile):
        state_re[:] = 0
        state_im[:] = 0
        x_rows[:] = 0
        for start in range(0, length, CHUNK):
            stop = min(start + CHUNK, length)
            n_steps = stop - start
            _gather(x, tile * lanes, start, stop, n_in, x_rows)
            y_rows[:] = 0
            if saved.shape[1] > 0:
                saved[tile, start // CHUNK, : n * lanes] = state_re
                saved[tile, start // CHUNK, n * lanes :] = state_im
            for i in range(n):
                _project(x_rows, n_in, in_re, in_im, i * n_in, n_steps, h_re, h_im)
                _recur(
                    x_rows,
                    n_in,
                    in_re,
                    in_im,
                    i * n_in,
                    pole_re,
                    pole_im,
                    i,
                    state_re,
                    state_im,
                    0,
                    1,
                    n_steps,
                    h_re,
                    h_im,
                )
                _expand(h_re, h_im, out_re, out_im, i * n_out, n_out, n_steps, y_rows)
            _scatter(y_rows, tile * lanes, start, stop, n_out, y)


@_kernel
def diagonal_backward(
    first_tile,
    last_tile,
    x,
    pole_re,
    pole_im,
    in_re,
    in_im,
    out_re,
    out_im,
    saved,
    dy,
    dx,
    d_pole_re,
    d_pole_im,
    d_in_re,
    d_in_im,
    d_out_re,
    d_out_im,
):
    """Gradients of ``diagonal_forward``, chunks from last to first; the states inside a chunk are computed again.

    ``g[t] = conj(pole) g[t+1] + C^H dy[t]``, ``dx = Re(B^H g)``, ``d_pole = sum of g[t] conj(h[t-1])``, ``d_in = sum of g x``,
    ``d_out = sum of h dy`` (the gradient of conj(C)). Gradients of coefficients are ``(tiles, ...)``, in float64.
    """
    length = x.shape[1]
    n = pole_re.size
    lanes = N_BYTES // x.itemsize
    n_in, n_out = in_re.size // n, out_re.size // n
    minus_im = -pole_im
    x_rows, dx_rows = _aligned(CHUNK * n_in * lanes, pole_re), _aligned(CHUNK * n_in * lanes, pole_re)
    dy_rows = _aligned(CHUNK * n_out * lanes, pole_re)
    # Row 0 of h is the state before the chunk.
    h_re, h_im = _aligned((CHUNK + 1) * lanes, pole_re), _aligned((CHUNK + 1) * lanes, pole_re)
    now_re, now_im = h_re[lanes:], h_im[lanes:]
    g_re, g_im = _aligned(CHUNK * lanes, pole_re), _aligned(CHUNK * lanes, pole_re)
    state_re, state_im = _aligned(n * lanes, pole_re), _aligned(n * lanes, pole_re)
    co_re, co_im = _aligned(n * lanes, pole_re), _aligned(n * lanes, pole_re)
    dp_re, dp_im = _aligned(n * lanes, pole_re), _aligned(n * lanes, pole_re)
    db_re, db_im = _aligned(n * n_in * lanes, pole_re), _aligned(n * n_in * lanes, pole_re)
    dc_re, dc_im = _aligned(n * n_out * lanes, pole_re), _aligned(n * n_out * lanes, pole_re)
    n_chunks = -(-length // CHUNK)
    for tile in range(first_tile, last_tile):
        x_rows[:] = 0
        dy_rows[:] = 0
        for sums in (co_re, co_im, dp_re, dp_im, db_re, db_im, dc_re, dc_im):
            sums[:] = 0
        for chunk in range(n_chunks - 1, -1, -1):
            start = chunk * CHUNK
            stop = min(start + CHUNK, length)
            n_steps = stop - start
            _gather(x, tile * lanes, start, stop, n_in, x_rows)
            _gather(dy, tile * lanes, start, stop, n_out, dy_rows)
            dx_rows[:] = 0
            state_re[:] = saved[tile, chunk, : n * lanes]
            state_im[:] = saved[tile, chunk, n * lanes :]
            for i in range(n):
                h_re[:lanes] = state_re[i * lanes : (i + 1) * lanes]
                h_im[:lanes] = state_im[i * lanes : (i + 1) * lanes]
                b, c = i * n_in, i * n_out
                _project(x_rows, n_in, in_re, in_im, b, n_steps, now_re, now_im)
                _recur(
                    x_rows,
                    n_in,
                    in_re,
                    in_im,
                    b,
                    pole_re,
                    pole_im,
                    i,
                    state_re,
                    state_im,
                    0,
                    1,
                    n_steps,
                    now_re,
                    now_im,
                )
                _correlate(dy_rows, n_out, now_re, now_im, n_steps, dc_re, dc_im, i)
                _project(dy_rows, n_out, out_re, out_im, c, n_steps, g_re, g_im)
                _recur(
                    dy_rows,
                    n_out,
                    out_re,
                    out_im,
                    c,
                    pole_re,
                    minus_im,
                    i,
                    co_re,
                    co_im,
                    n_steps - 1,
                    -1,
                    n_steps,
                    g_re,
                    g_im,
                )
                _correlate_states(g_re, g_im, h_re, h_im, n_steps, dp_re, dp_im, i)
                _correlate(x_rows, n_in, g_re, g_im, n_steps, db_re, db_im, i)
                _expand(g_re, g_im, in_re, in_im, b, n_in, n_steps, dx_rows)
            _scatter(dx_rows, tile * lanes, start, stop, n_in, dx)
        _sum_lanes(dp_re, d_pole_re[tile])
        _sum_lanes(dp_im, d_pole_im[tile])
        _sum_lanes(db_re, d_in_re[tile])
        _sum_lanes(db_im, d_in_im[tile])
        _sum_lanes(dc_re, d_out_re[tile])
        _sum_lanes(dc_im, d_out_im[tile])


@_kernel
def _columns(block, n_blocks, n, width):
    """States of a block, and where its last whole vector ends."""
    vectors = n // width
    low, high = block * vectors // n_blocks * width, (block + 1) * vectors // n_blocks * width
    return low, high, n if block + 1 == n_blocks else high


@_kernel
def linear_forward(first, last, n_blocks, past_caches, a, u, initial, h):
    """Tasks ``first`` to ``last`` of ``h[b, t] = a[b, t] h[b, t-1] + u[b, t]``; a task is a sequence and one of ``n_blocks`` of states.

    ``a (1 or batch, 1 or length, n)``; ``initial (batch, n)``; the rest ``(batch, length, n)``.
    """
    _, length, n = u.shape
    width = N_BYTES // u.itemsize
    a_flat, u_flat, h_flat = a.ravel(), u.ravel(), h.ravel()
    state = _aligned(n, u)
    for task in range(first, last):
        b = task // n_blocks
        low, middle, high = _columns(task % n_blocks, n_blocks, n, width)
        state[low:high] = initial[b, low:high]
        for t in range(length):
            at = (b * length + t) * n
            pole = (b % a.shape[0] * a.shape[1] + t % a.shape[1]) * n
            if past_caches:
                for i in range(low, middle, width):
                    now = product_add(load(a_flat, pole + i), load(state, i), load(u_flat, at + i))
                    store(state, i, now)
                    stream(h_flat, at + i, now)
            else:
                for i in range(low, middle, width):
                    now = product_add(load(a_flat, pole + i), load(state, i), load(u_flat, at + i))
                    store(state, i, now)
                    store(h_flat, at + i, now)
            for i in range(middle, high):
                state[i] = a_flat[pole + i] * state[i] + u_flat[at + i]
                h_flat[at + i] = state[i]


@_kernel
def linear_backward(first, last, n_blocks, past_caches, a, h, initial, dh, du, da, d_initial):
    """Gradients of ``linear_forward``: ``g[t] = dh[t] + conj(a[t+1]) g[t+1]``, ``du = g``, ``da[t] = g[t] conj(h[t-1])``.

    ``da (batch, 1 or length, n)``: summed over time where it has one step; it comes as zeros.
    """
    _, length, n = h.shape
    width = N_BYTES // h.itemsize
    a_flat, h_flat, dh_flat, du_flat, da_flat = a.ravel(), h.ravel(), dh.ravel(), du.ravel(), da.ravel()
    initial_flat = initial.ravel()
    carry = _aligned(n, h)  # conj(a[t+1]) g[t+1]
    for task in range(first, last):
        b = task // n_blocks
        low, middle, high = _columns(task % n_blocks, n_blocks, n, width)
        carry[low:high] = 0
        for t in range(length - 1, -1, -1):
            at = (b * length + t) * n
            pole = (b % a.shape[0] * a.shape[1] + t % a.shape[1]) * n
            slope = (b * da.shape[1] + t % da.shape[1]) * n
            before, previous = (h_flat, at - n) if t > 0 else (initial_flat, b * n)
            for i in range(low, middle, width):
                g = add(load(dh_flat, at + i), load(carry, i))
                if past_caches:
                    stream(du_flat, at + i, g)
                else:
                    store(du_flat, at + i, g)
                store(da_flat, slope + i, conj_product_add(load(before, previous + i), g, load(da_flat, slope + i)))
                store(carry, i, conj_product_add(load(a_flat, pole + i), g, zero(g)))
            for i in range(middle, high):
                g = dh_flat[at + i] + carry[i]
                du_flat[at + i] = g
                da_flat[slope + i] += g * np.conj(before[previous + i])
                carry[i] = np.conj(a_flat[pole + i]) * g
        d_initial[b, low:high] = carry[low:high]


@_kernel
def _blocks_of(part, n_parts, n_blocks):
    return part * n_blocks // n_parts, (part + 1) * n_blocks // n_parts


@_kernel
def _to_lanes(states, b, block, vectors, at):
    """``vectors[at + i lanes + lane] = states[b, block lanes + lane, i]``, and zeros beyond the last channel."""
    lanes = N_BYTES // vectors.itemsize
    _, d, n = states.shape
    for i in range(n):
        store(vectors, at + i * lanes, zero(load(vectors, at + i * lanes)))
    for lane in range(min(lanes, d - block * lanes)):
        for i in range(n):
            vectors[at + i * lanes + lane] = states[b, block * lanes + lane, i]


@_kernel
def _from_lanes(vectors, at, states, b, block):
    """The inverse of ``_to_lanes``."""
    lanes = N_BYTES // vectors.itemsize
    _, d, n = states.shape
    for lane in range(min(lanes, d - block * lanes)):
        for i in range(n):
            states[b, block * lanes + lane, i] = vectors[at + i * lanes + lane]


@_kernel
def selective_forward(first, last, n_parts, x, delta, A, B, C, initial, y, state, saved):
    """Tasks ``first`` to ``last`` of the selective scan; a task is a sequence and one of ``n_parts`` of the channels.

    There is a channel in each lane. ``x, delta, y (batch, length, blocks lanes)``; ``A (blocks, n lanes)``: for each state a vector of
    channels; ``B, C (batch, length, n)``; ``initial, state (batch or 0, d, n)``: 0 where there is none. ``saved (batch, blocks, chunks, n lanes)``
    takes the states before each chunk, unless it has no chunks.
    """
    _, length, n = B.shape
    lanes = N_BYTES // x.itemsize
    width = x.shape[2]
    n_blocks = width // lanes
    x_flat, delta_flat, y_flat, B_flat, C_flat = x.ravel(), delta.ravel(), y.ravel(), B.ravel(), C.ravel()
    rates, now = _aligned(n * lanes, x), _aligned(n * lanes, x)
    for task in range(first, last):
        b = task // n_parts
        low, high = _blocks_of(task % n_parts, n_parts, n_blocks)
        for block in range(low, high):
            rates[:] = A[block]
            if initial.shape[0] > 0:
                _to_lanes(initial, b, block, now, 0)
            else:
                now[:] = 0
            for t in range(length):
                if saved.shape[2] > 0 and t % SELECTIVE_CHUNK == 0:
                    saved[b, block, t // SELECTIVE_CHUNK] = now
                at = (b * length + t) * width + block * lanes
                row = (b * length + t) * n
                step = load(delta_flat, at)
                drive = multiply(step, load(x_flat, at))
                output = zero(step)
                for i in range(n):
                    h = multiply(splat(B_flat, row + i), drive)
                    h = multiply_add(exp(multiply(step, load(rates, i * lanes))), load(now, i * lanes), h)
                    store(now, i * lanes, h)
                    output = multiply_add(splat(C_flat, row + i), h, output)
                store(y_flat, at, output)
            if state.shape[0] > 0:
                _from_lanes(now, 0, state, b, block)


@_kernel
def _selective_pair(
    delta_rows, drive_rows, dy_rows, Bg_rows, Aq_rows, row, stride, n_steps, rates, B_columns, C_columns, column, states,
    carries, slopes, a, h, dB_lanes, dC_lanes,
):  # fmt: skip
    """Forward and back over a chunk with two states of a vector of channels, so that what they share is loaded once.

    ``states`` holds the two before the chunk, ``carries`` the gradient ``a[t+1] g[t+1]`` after it and then that before it, ``slopes`` gets ``dA``.
    """
    lanes = N_BYTES // a.itemsize
    rate_0, rate_1 = load(rates, 0), load(rates, lanes)
    now_0, now_1 = load(states, 0), load(states, lanes)
    next_column = column + SELECTIVE_CHUNK
    for t in range(n_steps):
        step, drive, at = load(delta_rows, row + t * stride), load(drive_rows, row + t * stride), 2 * t * lanes
        store(h, at, now_0)
        store(h, at + lanes, now_1)
        decay_0, decay_1 = exp(multiply(step, rate_0)), exp(multiply(step, rate_1))
        store(a, at, decay_0)
        store(a, at + lanes, decay_1)
        now_0 = multiply_add(decay_0, now_0, multiply(splat(B_columns, column + t), drive))
        now_1 = multiply_add(decay_1, now_1, multiply(splat(B_columns, next_column + t), drive))
    later_0, later_1 = load(carries, 0), load(carries, lanes)
    slope_0, slope_1 = zero(now_0), zero(now_0)
    for t in range(n_steps - 1, -1, -1):
        k, at = row + t * stride, 2 * t * lanes
        step, drive, out = load(delta_rows, k), load(drive_rows, k), load(dy_rows, k)
        g_0 = multiply_add(splat(C_columns, column + t), out, later_0)
        g_1 = multiply_add(splat(C_columns, next_column + t), out, later_1)
        store(dC_lanes, at, multiply_add(out, now_0, load(dC_lanes, at)))
        store(dC_lanes, at + lanes, multiply_add(out, now_1, load(dC_lanes, at + lanes)))
        store(dB_lanes, at, multiply_add(g_0, drive, load(dB_lanes, at)))
        store(dB_lanes, at + lanes, multiply_add(g_1, drive, load(dB_lanes, at + lanes)))
        Bg = multiply_add(splat(B_columns, column + t), g_0, load(Bg_rows, k))
        store(Bg_rows, k, multiply_add(splat(B_columns, next_column + t), g_1, Bg))
        later_0, later_1 = multiply(load(a, at), g_0), multiply(load(a, at + lanes), g_1)
        now_0, now_1 = load(h, at), load(h, at + lanes)
        q_0, q_1 = multiply(later_0, now_0), multiply(later_1, now_1)
        store(Aq_rows, k, multiply_add(rate_1, q_1, multiply_add(rate_0, q_0, load(Aq_rows, k))))
        slope_0, slope_1 = multiply_add(step, q_0, slope_0), multiply_add(step, q_1, slope_1)
    store(carries, 0, later_0)
    store(carries, lanes, later_1)
    store(slopes, 0, slope_0)
    store(slopes, lanes, slope_1)


@_kernel
def selective_backward(first, last, n_parts, x, delta, A, B, C, saved, dy, d_state, dx, d_delta, dA, dB, dC, d_initial):
    """Gradients of ``selective_forward``, chunks from last to first; the states inside a chunk are computed again.

    With ``g`` the gradient of the states, ``g[t] = C[t] dy[t] + a[t+1] g[t+1]``, and ``q[t] = g[t] a[t] h[t-1]``: ``d_drive = sum of B g`` over
    the states, where ``drive = delta x``; ``d_delta = d_drive x + sum of A q``; ``dA = sum of delta q`` over time; and over the
    channels ``dB = sum of g drive`` and ``dC = sum of h dy``.

    ``dA (batch, blocks, n lanes)``; ``dB, dC (batch, parts, length, n)``: their sums over the batch or the parts are for the caller.
    ``d_state, d_initial (batch or 0, d, n)``: 0 where there is no such state. States go in pairs; an odd one has one of zeros beside it.
    """
    _, length, n = B.shape
    lanes = N_BYTES // x.itemsize
    width = x.shape[2]
    n_blocks = width // lanes
    size = SELECTIVE_CHUNK * SELECTIVE_BLOCKS * lanes
    x_flat, delta_flat, dy_flat = x.ravel(), delta.ravel(), dy.ravel()
    dx_flat, d_delta_flat = dx.ravel(), d_delta.ravel()
    A_flat, dA_flat, saved_flat = A.ravel(), dA.ravel(), saved.ravel()
    carry = _aligned((n_blocks // n_parts + 1) * n * lanes, x)  # a[t+1] g[t+1]
    delta_rows, drive_rows, dy_rows = _aligned(size, x), _aligned(size, x), _aligned(size, x)
    Bg_rows, Aq_rows = _aligned(size, x), _aligned(size, x)  # sums over the states
    a, h = _aligned(2 * SELECTIVE_CHUNK * lanes, x), _aligned(2 * SELECTIVE_CHUNK * lanes, x)
    rates, states, carries, slopes = (
        _aligned(2 * lanes, x), _aligned(2 * lanes, x), _aligned(2 * lanes, x), _aligned(2 * lanes, x),
    )  # fmt: skip
    B_columns, C_columns = _aligned((n + 1) * SELECTIVE_CHUNK, x), _aligned((n + 1) * SELECTIVE_CHUNK, x)
    dB_columns, dC_columns = _aligned((n + 1) * SELECTIVE_CHUNK, x), _aligned((n + 1) * SELECTIVE_CHUNK, x)
    dB_lanes, dC_lanes = _aligned(2 * SELECTIVE_CHUNK * lanes, x), _aligned(2 * SELECTIVE_CHUNK * lanes, x)
    for task in range(first, last):
        b, part = task // n_parts, task % n_parts
        low, high = _blocks_of(part, n_parts, n_blocks)
        dA[b, low:high] = 0
        carry[:] = 0
        if d_state.shape[0] > 0:
            for block in range(low, high):
                _to_lanes(d_state, b, block, carry, (block - low) * n * lanes)
        for chunk in range(saved.shape[2] - 1, -1, -1):
            start = chunk * SELECTIVE_CHUNK
            n_steps = min(SELECTIVE_CHUNK, length - start)
            dB_columns[:] = 0
            dC_columns[:] = 0
            for t in range(n_steps):
                for i in range(n):
                    B_columns[i * SELECTIVE_CHUNK + t] = B[b, start + t, i]
                    C_columns[i * SELECTIVE_CHUNK + t] = C[b, start + t, i]
            for group in range(low, high, SELECTIVE_BLOCKS):
                stride = min(SELECTIVE_BLOCKS, high - group) * lanes
                for t in range(n_steps):
                    for k in range(0, stride, lanes):
                        at, row = (b * length + start + t) * width + group * lanes + k, t * stride + k
                        step = load(delta_flat, at)
                        store(delta_rows, row, step)
                        store(drive_rows, row, multiply(step, load(x_flat, at)))
                        store(dy_rows, row, load(dy_flat, at))
                        store(Bg_rows, row, zero(step))
                        store(Aq_rows, row, zero(step))
                for i in range(0, n, 2):
                    column, present = i * SELECTIVE_CHUNK, min(2, n - i) * lanes
                    dB_lanes[:] = 0
                    dC_lanes[:] = 0
                    for k in range(0, stride, lanes):
                        block = group + k // lanes
                        A_at = (block * n + i) * lanes
                        slope_at = b * n_blocks * n * lanes + A_at
                        carry_at = ((block - low) * n + i) * lanes
                        saved_at = (((b * n_blocks + block) * saved.shape[2] + chunk) * n + i) * lanes
                        if present == lanes:
                            rates[lanes:] = 0
                            states[lanes:] = 0
                            carries[lanes:] = 0
                        for j in range(0, present, lanes):
                            store(rates, j, load(A_flat, A_at + j))
                            store(states, j, load(saved_flat, saved_at + j))
                            store(carries, j, load(carry, carry_at + j))
                        _selective_pair(
                            delta_rows, drive_rows, dy_rows, Bg_rows, Aq_rows, k, stride, n_steps, rates, B_columns,
                            C_columns, column, states, carries, slopes, a, h, dB_lanes, dC_lanes,
                        )  # fmt: skip
                        for j in range(0, present, lanes):
                            store(carry, carry_at + j, load(carries, j))
                            store(dA_flat, slope_at + j, add(load(slopes, j), load(dA_flat, slope_at + j)))
                    for j in range(2):
                        for t in range(0, n_steps, lanes):
                            to, at = column + j * SELECTIVE_CHUNK + t, (2 * t + j) * lanes
                            store(dB_columns, to, add(sum_rows(dB_lanes, at, 2 * lanes), load(dB_columns, to)))
                            store(dC_columns, to, add(sum_rows(dC_lanes, at, 2 * lanes), load(dC_columns, to)))
                for t in range(n_steps):
                    for k in range(0, stride, lanes):
                        at, row = (b * length + start + t) * width + group * lanes + k, t * stride + k
                        slope = load(Bg_rows, row)
                        store(dx_flat, at, multiply(load(delta_flat, at), slope))
                        store(d_delta_flat, at, multiply_add(load(x_flat, at), slope, load(Aq_rows, row)))
            for t in range(n_steps):
                for i in range(n):
                    dB[b, part, start + t, i] = dB_columns[i * SELECTIVE_CHUNK + t]
                    dC[b, part, start + t, i] = dC_columns[i * SELECTIVE_CHUNK + t]
        if d_initial.shape[0] > 0:
            for block in range(low, high):
                _from_lanes(carry, (block - low) * n * lanes, d_initial, b, block)


@_kernel
def _pack(source, b, start, n_steps, h, width, rows):
    """``rows[(block CHUNK + t) width + j] = source[b, start + t, h, block width + j]``, and zeros beyond the last entry.

    ``width`` is the number of lanes, for entries to be loaded as vectors, or ``GROUP``, for entries to be spread over all lanes.
    """
    lanes = N_BYTES // rows.itemsize
    _, length, n_rows, size = source.shape
    flat = source.ravel()
    first, stride = ((b * length + start) * n_rows + h) * size, n_rows * size
    whole = size // width
    for block in range(whole):
        at, to = first + block * width, block * ATTENTION_CHUNK * width
        if width == lanes:
            for t in range(n_steps):
                store(rows, to + t * width, load(flat, at + t * stride))
        else:
            for t in range(n_steps):
                copy_group(flat, at + t * stride, rows, to + t * width)
    rest = size - whole * width
    if rest > 0:
        at, to = first + whole * width, whole * ATTENTION_CHUNK * width
        for t in range(n_steps):
            for j in range(rest):
                rows[to + t * width + j] = flat[at + t * stride + j]
            for j in range(rest, width):
                rows[to + t * width + j] = 0


@_kernel
def _unpack(rows, n_steps, b, start, h, target):
    """The inverse of ``_pack`` for vectors."""
    lanes = N_BYTES // rows.itemsize
    _, length, n_rows, size = target.shape
    flat = target.ravel()
    first, stride = ((b * length + start) * n_rows + h) * size, n_rows * size
    whole = size // lanes
    for block in range(whole):
        for t in range(n_steps):
            store(flat, first + t * stride + block * lanes, load(rows, (block * ATTENTION_CHUNK + t) * lanes))
    for t in range(n_steps):
        for j in range(size - whole * lanes):
            at = first + t * stride + whole * lanes + j
            flat[at] = rows[(whole * ATTENTION_CHUNK + t) * lanes + j]


@_kernel
def _pack_decays(g, b, start, n_steps, h, width, rows):
    """``exp(g)`` in the layout of ``_pack``; the one number of a head takes a block alone, as often as it is wide."""
    lanes = N_BYTES // rows.itemsize
    size = g.shape[3]
    if size > 1:
        _pack(g, b, start, n_steps, h, width, rows)
    else:
        for t in range(n_steps):
            for j in range(width):
                rows[t * width + j] = g[b, start + t, h, 0]
    for block in range(-(-size // width)):
        first = block * ATTENTION_CHUNK * width
        for k in range(first, first + -(-n_steps * width // lanes) * lanes, lanes):
            store(rows, k, exp(load(rows, k)))


@_kernel
def _state_in(source, b, h, transposed, rows, at):
    """A state ``source[b, h]`` in vectors of its columns, ``rows[at + (vector n_rows + i) lanes + lane] = source[b, h, i, vector lanes + lane]``.

    ``n_rows`` is the number of rows filled up to whole groups. Nothing beyond the last row or column is written. If ``transposed``, rows are columns.
    """
    lanes = N_BYTES // rows.itemsize
    heads, n, p = source.shape[1:]
    flat = source.ravel()
    first = (b * heads + h) * n * p
    n_rows = -(-(p if transposed else n) // GROUP) * GROUP
    whole_i, whole_j = 0, p // lanes * lanes
    if transposed:
        whole_i = n // lanes * lanes
        for i in range(0, whole_i, lanes):
            for j in range(0, whole_j, lanes):
                transpose(flat, first + i * p + j, p, rows, at + (i // lanes * n_rows + j) * lanes, lanes)
    else:
        for i in range(n):
            for j in range(0, whole_j, lanes):
                store(rows, at + (j // lanes * n_rows + i) * lanes, load(flat, first + i * p + j))
    for i in range(n):
        for j in range(whole_j if i < whole_i or not transposed else 0, p):
            row, column = (j, i) if transposed else (i, j)
            rows[at + (column // lanes * n_rows + row) * lanes + column % lanes] = flat[first + i * p + j]


@_kernel
def _state_out(rows, at, b, h, target):
    """The inverse of ``_state_in``, of what is not transposed."""
    lanes = N_BYTES // rows.itemsize
    heads, n, p = target.shape[1:]
    flat = target.ravel()
    first = (b * heads + h) * n * p
    n_rows = -(-n // GROUP) * GROUP
    whole = p // lanes * lanes
    for i in range(n):
        for j in range(0, whole, lanes):
            store(flat, first + i * p + j, load(rows, at + (j // lanes * n_rows + i) * lanes))
        for j in range(whole, p):
            flat[first + i * p + j] = rows[at + (j // lanes * n_rows + i) * lanes + j % lanes]


@_kernel
def _clear(rows, n_vectors, n_steps):
    lanes = N_BYTES // rows.itemsize
    for vector in range(n_vectors):
        rows[vector * ATTENTION_CHUNK * lanes : (vector * ATTENTION_CHUNK + n_steps) * lanes] = 0


@_kernel
def _attend(q, k, decay, decay_stride, v, n_groups, n_vectors, n_steps, state, at, y):
    """A chunk: ``s <- decay[t] s + k[t] v[t]^T``, ``y[t] = s^T q[t]``, eight rows of a vector of columns at a time."""
    lanes = N_BYTES // v.itemsize
    _clear(y, n_vectors, n_steps)
    for vector in range(n_vectors):
        column = vector * ATTENTION_CHUNK * lanes
        for group in range(n_groups):
            row, a = group * ATTENTION_CHUNK * GROUP, group * decay_stride
            s_at = at + (vector * n_groups + group) * GROUP * lanes
            s = load_group(state, s_at)
            for t in range(n_steps):
                s = multiply_groups(s, splat_group(decay, a + t * GROUP))
                s = multiply_add_group(splat_group(k, row + t * GROUP), load(v, column + t * lanes), s)
                out = dot(splat_group(q, row + t * GROUP), s, load(y, column + t * lanes))
                store(y, column + t * lanes, out)
            store_group(state, s_at, s)


@_kernel
def _attend_backwards(q, k, decay, decay_stride, dy, n_groups, n_vectors, n_steps, carry, at, dv):
    """The gradients ``dv[t] = g^T k[t]`` of a chunk, where ``g <- g + q[t] dy[t]^T`` is that of the state; then ``g <- decay[t] g``."""
    lanes = N_BYTES // dy.itemsize
    _clear(dv, n_vectors, n_steps)
    for vector in range(n_vectors):
        column = vector * ATTENTION_CHUNK * lanes
        for group in range(n_groups):
            row, a = group * ATTENTION_CHUNK * GROUP, group * decay_stride
            g_at = at + (vector * n_groups + group) * GROUP * lanes
            g = load_group(carry, g_at)
            for t in range(n_steps - 1, -1, -1):
                g = multiply_add_group(splat_group(q, row + t * GROUP), load(dy, column + t * lanes), g)
                out = dot(splat_group(k, row + t * GROUP), g, load(dv, column + t * lanes))
                store(dv, column + t * lanes, out)
                g = multiply_groups(g, splat_group(decay, a + t * GROUP))
            store_group(carry, g_at, g)


@_kernel
def _attention_slopes(
    q, k, decay, decay_stride, v, dy, n_groups, n_vectors, n_steps, state, carry, at, states, dq, dk, dg
):
    """The gradients of a chunk that are sums over the values; ``state`` and ``carry`` are transposed: vectors of keys, rows of values.

    ``dq[t] = S[t] dy[t]``, and with the gradient ``g`` of the state as in ``_attend_backwards``, ``dk[t] = g v[t]`` and ``dg[t]`` the sums over the
    values of ``decay[t] g S[t-1]``. All are added to what is there.
    """
    lanes = N_BYTES // v.itemsize
    for vector in range(n_vectors):
        column, a = vector * ATTENTION_CHUNK * lanes, vector * decay_stride
        for group in range(n_groups):
            row = group * ATTENTION_CHUNK * GROUP
            s_at = (vector * n_groups + group) * GROUP * lanes
            s = load_group(state, s_at)
            for t in range(n_steps):
                store_group(states, t * GROUP * lanes, s)
                s = multiply_group(s, load(decay, a + t * lanes))
                s = multiply_add_group(splat_group(v, row + t * GROUP), load(k, column + t * lanes), s)
                out = dot(splat_group(dy, row + t * GROUP), s, load(dq, column + t * lanes))
                store(dq, column + t * lanes, out)
            g = load_group(carry, at + s_at)
            for t in range(n_steps - 1, -1, -1):
                g = multiply_add_group(splat_group(dy, row + t * GROUP), load(q, column + t * lanes), g)
                out = dot(splat_group(v, row + t * GROUP), g, load(dk, column + t * lanes))
                store(dk, column + t * lanes, out)
                g = multiply_group(g, load(decay, a + t * lanes))
                slope = dot(g, load_group(states, t * GROUP * lanes), load(dg, column + t * lanes))
                store(dg, column + t * lanes, slope)
            store_group(carry, at + s_at, g)


@_kernel
def attention_forward(first, last, n_parts, q, k, v, g, initial, y, state, saved):
    """Tasks ``first`` to ``last`` of gated linear attention; a task is a sequence, a group of heads and one of ``n_parts`` of its heads.

    ``q, k (batch, length, groups, n)``; ``v, y (batch, length, heads, p)``; ``g (batch, length, heads, 1)`` or ``(batch, length, groups, n)``;
    ``initial, state (batch or 0, heads, n, p)``: 0 where there is none. ``saved (batch chunks, heads, n, p)`` takes the states before each
    chunk, unless it is empty.
    """
    _, length, groups, n = q.shape
    heads, p = v.shape[2:]
    lanes = N_BYTES // v.itemsize
    share, n_chunks = heads // groups, -(-length // ATTENTION_CHUNK)
    per_key = g.shape[2] == groups and g.shape[3] == n
    n_groups, n_vectors = -(-n // GROUP), -(-p // lanes)
    rows, stride = n_groups * ATTENTION_CHUNK * GROUP, ATTENTION_CHUNK * GROUP if g.shape[3] > 1 else 0
    q_rows, k_rows, decays = _aligned(rows, v), _aligned(rows, v), _aligned(rows, v)
    v_rows, y_rows = _aligned(n_vectors * ATTENTION_CHUNK * lanes, v), _aligned(n_vectors * ATTENTION_CHUNK * lanes, v)
    size = n_vectors * n_groups * GROUP * lanes
    states = _aligned(-(-share // n_parts) * size, v)
    for task in range(first, last):
        b, group, part = task // n_parts // groups, task // n_parts % groups, task % n_parts
        low, high = group * share + part * share // n_parts, group * share + (part + 1) * share // n_parts
        states[:] = 0
        if initial.shape[0] > 0:
            for h in range(low, high):
                _state_in(initial, b, h, False, states, (h - low) * size)
        for chunk in range(n_chunks):
            start = chunk * ATTENTION_CHUNK
            n_steps = min(ATTENTION_CHUNK, length - start)
            _pack(q, b, start, n_steps, group, GROUP, q_rows)
            _pack(k, b, start, n_steps, group, GROUP, k_rows)
            if per_key:
                _pack_decays(g, b, start, n_steps, group, GROUP, decays)
            for h in range(low, high):
                at = (h - low) * size
                _pack(v, b, start, n_steps, h, lanes, v_rows)
                if not per_key:
                    _pack_decays(g, b, start, n_steps, h, GROUP, decays)
                if saved.shape[0] > 0:
                    _state_out(states, at, b * n_chunks + chunk, h, saved)
                _attend(q_rows, k_rows, decays, stride, v_rows, n_groups, n_vectors, n_steps, states, at, y_rows)
                _unpack(y_rows, n_steps, b, start, h, y)
        if state.shape[0] > 0:
            for h in range(low, high):
                _state_out(states, (h - low) * size, b, h, state)


@_kernel
def attention_backward(first, last, n_parts, q, k, v, g, saved, dy, d_state, dq, dk, dv, dg, d_initial):
    """Gradients of ``attention_forward``, chunks from last to first; the states inside a chunk are computed again.

    ``dq, dk (batch parts, length, groups, n)``, and ``dg`` too where it has a number for each key: their sums over the parts are for the caller.
    ``d_state, d_initial (batch or 0, heads, n, p)``: 0 where there is no such state.
    """
    _, length, groups, n = q.shape
    heads, p = v.shape[2:]
    lanes = N_BYTES // v.itemsize
    share, n_chunks = heads // groups, -(-length // ATTENTION_CHUNK)
    per_key = g.shape[2] == groups and g.shape[3] == n
    spread = g.shape[3] > 1
    # In groups spread over all lanes, and in vectors.
    n_groups, p_groups, n_vectors, p_vectors = -(-n // GROUP), -(-p // GROUP), -(-n // lanes), -(-p // lanes)
    rows, columns = n_groups * ATTENTION_CHUNK * GROUP, n_vectors * ATTENTION_CHUNK * lanes
    q_rows, k_rows, a_rows = _aligned(rows, v), _aligned(rows, v), _aligned(rows, v)
    q_columns, k_columns, a_columns = _aligned(columns, v), _aligned(columns, v), _aligned(columns, v)
    dq_columns, dk_columns, dg_columns = _aligned(columns, v), _aligned(columns, v), _aligned(columns, v)
    v_rows, dy_rows = _aligned(p_groups * ATTENTION_CHUNK * GROUP, v), _aligned(p_groups * ATTENTION_CHUNK * GROUP, v)
    dy_columns, dv_columns = (
        _aligned(p_vectors * ATTENTION_CHUNK * lanes, v),
        _aligned(p_vectors * ATTENTION_CHUNK * lanes, v),
    )
    states = _aligned(ATTENTION_CHUNK * GROUP * lanes, v)
    size, size_transposed = p_vectors * n_groups * GROUP * lanes, n_vectors * p_groups * GROUP * lanes
    state = _aligned(size_transposed, v)
    most = -(-share // n_parts)
    carry, carry_transposed = _aligned(most * size, v), _aligned(most * size_transposed, v)
    for task in range(first, last):
        b, group, part = task // n_parts // groups, task // n_parts % groups, task % n_parts
        low, high = group * share + part * share // n_parts, group * share + (part + 1) * share // n_parts
        carry[:] = 0
        carry_transposed[:] = 0
        if d_state.shape[0] > 0:
            for h in range(low, high):
                _state_in(d_state, b, h, False, carry, (h - low) * size)
                _state_in(d_state, b, h, True, carry_transposed, (h - low) * size_transposed)
        for chunk in range(n_chunks - 1, -1, -1):
            start = chunk * ATTENTION_CHUNK
            n_steps = min(ATTENTION_CHUNK, length - start)
            _pack(q, b, start, n_steps, group, GROUP, q_rows)
            _pack(k, b, start, n_steps, group, GROUP, k_rows)
            _pack(q, b, start, n_steps, group, lanes, q_columns)
            _pack(k, b, start, n_steps, group, lanes, k_columns)
            _clear(dq_columns, n_vectors, n_steps)
            _clear(dk_columns, n_vectors, n_steps)
            if per_key:
                _pack_decays(g, b, start, n_steps, group, GROUP, a_rows)
                _pack_decays(g, b, start, n_steps, group, lanes, a_columns)
                _clear(dg_columns, n_vectors, n_steps)
            for h in range(low, high):
                if not per_key:
                    _pack_decays(g, b, start, n_steps, h, GROUP, a_rows)
                    _pack_decays(g, b, start, n_steps, h, lanes, a_columns)
                    _clear(dg_columns, n_vectors, n_steps)
                _pack(v, b, start, n_steps, h, GROUP, v_rows)
                _pack(dy, b, start, n_steps, h, GROUP, dy_rows)
                _pack(dy, b, start, n_steps, h, lanes, dy_columns)
                _attend_backwards(
                    q_rows, k_rows, a_rows, ATTENTION_CHUNK * GROUP if spread else 0, dy_columns, n_groups, p_vectors,
                    n_steps, carry, (h - low) * size, dv_columns,
                )  # fmt: skip
                _unpack(dv_columns, n_steps, b, start, h, dv)
                _state_in(saved, b * n_chunks + chunk, h, True, state, 0)
                _attention_slopes(
                    q_columns, k_columns, a_columns, ATTENTION_CHUNK * lanes if spread else 0, v_rows, dy_rows, p_groups,
                    n_vectors, n_steps, state, carry_transposed, (h - low) * size_transposed, states,
                    dq_columns, dk_columns, dg_columns,
                )  # fmt: skip
                if not per_key:
                    for t in range(n_steps):
                        total = load(dg_columns, t * lanes)
                        for vector in range(1, n_vectors):
                            total = add(total, load(dg_columns, (vector * ATTENTION_CHUNK + t) * lanes))
                        dg[b, start + t, h, 0] = sum_lanes(total)
            _unpack(dq_columns, n_steps, b * n_parts + part, start, group, dq)
            _unpack(dk_columns, n_steps, b * n_parts + part, start, group, dk)
            if per_key:
                _unpack(dg_columns, n_steps, b * n_parts + part, start, group, dg)
        if d_initial.shape[0] > 0:
            for h in range(low, high):
                _state_out(carry, (h - low) * size, b, h, d_initial)


@_kernel
def _sigmoid(x):
    one = fill(x, 1.0)
    return divide(one, add(one, exp(negative(x))))


@_kernel
def _vector_start(vector, lanes, width):
    """Where a vector begins: the last one ends with the row, and overlaps the one before."""
    return min(vector * lanes, width - lanes)


@_kernel
def _convolved(x, row, stride, t, at, coefficients, kernel_size, column, width):
    """``bias + sum over j of weight[j] x[t - kernel_size + 1 + j]``, where x is 0 before the first step; ``coefficients``: bias, then weights."""
    total = load(coefficients, column)
    for j in range(max(0, kernel_size - 1 - t), kernel_size):
        before = row + (j - kernel_size + 1) * stride + at
        total = multiply_add(load(coefficients, (j + 1) * width + column), load(x, before), total)
    return total


@_kernel
def _in_vectors(coefficients, lanes):
    """``(rows, d)`` as flat rows of whole vectors, the last of which overlaps the one before."""
    n_rows, d = coefficients.shape
    n_vectors = -(-d // lanes)
    vectors = _aligned(n_rows * n_vectors * lanes, coefficients)
    for row in range(n_rows):
        for vector in range(n_vectors):
            start = _vector_start(vector, lanes, d)
            for lane in range(lanes):
                vectors[(row * n_vectors + vector) * lanes + lane] = coefficients[row, start + lane]
    return vectors


@_kernel
def convolution_forward(first, last, n_parts, length, x, stride, coefficients, out):
    """Tasks ``first`` to ``last`` of ``out = silu(convolution of x)``; a task is a sequence and one of ``n_parts`` of the channels.

    ``x`` is flat, its rows ``stride`` apart; ``coefficients (1 + kernel size, d)``: the bias, then the weights; ``out (batch length, d)``.
    """
    lanes = N_BYTES // x.itemsize
    kernel_size, d = coefficients.shape[0] - 1, coefficients.shape[1]
    n_vectors = -(-d // lanes)
    vectors, width = _in_vectors(coefficients, lanes), n_vectors * lanes
    flat = out.ravel()
    for task in range(first, last):
        b = task // n_parts
        low, high = _blocks_of(task % n_parts, n_parts, n_vectors)
        for t in range(length):
            row, to = (b * length + t) * stride, (b * length + t) * d
            for vector in range(low, high):
                at = _vector_start(vector, lanes, d)
                total = _convolved(x, row, stride, t, at, vectors, kernel_size, vector * lanes, width)
                store(flat, to + at, multiply(total, _sigmoid(total)))


@_kernel
def convolution_backward(first, last, n_parts, length, x, stride, coefficients, slope, dx, d_coefficients):
    """Gradients of ``convolution_forward`` from that of its output, ``slope``, against time; the convolution is computed again.

    ``slope, dx (batch length, d)``; ``d_coefficients (batch, 1 + kernel size, d)``: their sum over the batch is for the caller.
    """
    lanes = N_BYTES // x.itemsize
    kernel_size, d = coefficients.shape[0] - 1, coefficients.shape[1]
    n_vectors = -(-d // lanes)
    vectors, width = _in_vectors(coefficients, lanes), n_vectors * lanes
    sums = _aligned((1 + kernel_size) * width, x)
    ring = _aligned(kernel_size * width, x)  # gradients of the convolution at the last steps
    rows = np.empty(kernel_size, np.int64)  # where in the ring the steps from t on are
    slope_flat, dx_flat, sums_flat = slope.ravel(), dx.ravel(), d_coefficients.ravel()
    for task in range(first, last):
        b = task // n_parts
        low, high = _blocks_of(task % n_parts, n_parts, n_vectors)
        sums[:] = 0
        for t in range(length - 1, -1, -1):
            row, to = (b * length + t) * stride, (b * length + t) * d
            for i in range(kernel_size):
                rows[i] = (t + i) % kernel_size * width
            for vector in range(low, high):
                at, column = _vector_start(vector, lanes, d), vector * lanes
                total = _convolved(x, row, stride, t, at, vectors, kernel_size, column, width)
                gate = _sigmoid(total)
                one = fill(total, 1.0)
                rise = multiply(gate, multiply_add(total, add(one, negative(gate)), one))
                g = multiply(load(slope_flat, to + at), rise)
                store(ring, rows[0] + column, g)
                store(sums, column, add(g, load(sums, column)))
                for j in range(max(0, kernel_size - 1 - t), kernel_size):
                    before, k = row + (j - kernel_size + 1) * stride + at, (j + 1) * width + column
                    store(sums, k, multiply_add(g, load(x, before), load(sums, k)))
                back = zero(g)
                for i in range(min(kernel_size, length - t)):
                    later = load(ring, rows[i] + column)
                    back = multiply_add(load(vectors, (kernel_size - i) * width + column), later, back)
                store(dx_flat, to + at, back)
        for k in range(1 + kernel_size):
            for vector in range(low, high):
                at = (b * (1 + kernel_size) + k) * d + _vector_start(vector, lanes, d)
                store(sums_flat, at, load(sums, k * width + vector * lanes))


@_kernel
def gate_forward(first, last, n_parts, y, u, D, z, stride, out):
    """Rows of ``out = (y + D u) silu(z)``: tasks ``first`` to ``last`` of ``n_parts`` of them. ``y, u, out (rows, d)``; ``z`` is flat, its rows ``stride`` apart."""
    n_rows, d = y.shape
    lanes = N_BYTES // y.itemsize
    y_flat, u_flat, out_flat = y.ravel(), u.ravel(), out.ravel()
    low, high = first * n_rows // n_parts, last * n_rows // n_parts
    for row in range(low, high):
        for vector in range(-(-d // lanes)):
            at = _vector_start(vector, lanes, d)
            total = multiply_add(load(D, at), load(u_flat, row * d + at), load(y_flat, row * d + at))
            gate = load(z, row * stride + at)
            store(out_flat, row * d + at, multiply(total, multiply(gate, _sigmoid(gate))))


@_kernel
def gate_backward(first, last, n_parts, y, u, D, z, stride, slope, dy, du, dz, dD):
    """Gradients of ``gate_forward`` from that of its output, ``slope``; ``dD (parts, d)``: its sum is for the caller."""
    n_rows, d = y.shape
    lanes = N_BYTES // y.itemsize
    n_vectors = -(-d // lanes)
    y_flat, u_flat, slope_flat = y.ravel(), u.ravel(), slope.ravel()
    dy_flat, du_flat, dz_flat, dD_flat = dy.ravel(), du.ravel(), dz.ravel(), dD.ravel()
    sums = _aligned(n_vectors * lanes, y)
    for part in range(first, last):
        sums[:] = 0
        for row in range(part * n_rows // n_parts, (part + 1) * n_rows // n_parts):
            for vector in range(n_vectors):
                at = _vector_start(vector, lanes, d)
                k, column = row * d + at, vector * lanes
                skip, now, gate = load(D, at), load(u_flat, k), load(z, row * stride + at)
                total, given = multiply_add(skip, now, load(y_flat, k)), load(slope_flat, k)
                opened = _sigmoid(gate)
                g = multiply(given, multiply(gate, opened))
                store(dy_flat, k, g)
                store(du_flat, k, multiply(skip, g))
                one = fill(g, 1.0)
                rise = multiply(opened, multiply_add(gate, add(one, negative(opened)), one))
                store(dz_flat, k, multiply(multiply(given, total), rise))
                store(sums, column, multiply_add(g, now, load(sums, column)))
        for vector in range(n_vectors):
            store(dD_flat, part * d + _vector_start(vector, lanes, d), load(sums, vector * lanes))


@_kernel
def softplus_forward(first, last, n_parts, x, bias, out):
    """Rows of ``out = log(1 + exp(x + bias))``: tasks ``first`` to ``last`` of ``n_parts`` of them. ``x, out (rows, d)``."""
    n_rows, d = x.shape
    lanes = N_BYTES // x.itemsize
    x_flat, out_flat = x.ravel(), out.ravel()
    low, high = first * n_rows // n_parts, last * n_rows // n_parts
    for row in range(low, high):
        for vector in range(-(-d // lanes)):
            at = _vector_start(vector, lanes, d)
            raw = add(load(x_flat, row * d + at), load(bias, at))
            above = at_least(raw, zero(raw))
            size = at_least(raw, negative(raw))
            store(out_flat, row * d + at, add(above, log_1_plus(exp(negative(size)))))


@_kernel
def softplus_backward(first, last, n_parts, x, bias, slope, dx):
    """The gradient of ``softplus_forward`` from that of its output, ``slope``."""
    n_rows, d = x.shape
    lanes = N_BYTES // x.itemsize
    x_flat, slope_flat, dx_flat = x.ravel(), slope.ravel(), dx.ravel()
    low, high = first * n_rows // n_parts, last * n_rows // n_parts
    for row in range(low, high):
        for vector in range(-(-d // lanes)):
            at = _vector_start(vector, lanes, d)
            raw = add(load(x_flat, row * d + at), load(bias, at))
            store(dx_flat, row * d + at, multiply(load(slope_flat, row * d + at), _sigmoid(raw)))
