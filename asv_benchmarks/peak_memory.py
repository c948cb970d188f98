"""How much memory a computation on one system needs beyond its input, in units of n^2 numbers: all that is allocated, by any library, is counted.

``python -m asv_benchmarks.peak_memory`` compiles a few lines of C that count in ``malloc`` (Linux and a C compiler are needed), and runs itself with
them. Buffers that a BLAS library keeps from its start are not in it.
"""

import argparse
import ctypes
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import hsv
from asv_benchmarks.systems import diagonal_system

SIZES = [64, 128, 256, 384]
COUNTER = r"""
#include <errno.h>
#include <malloc.h>
#include <stddef.h>
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t), *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);
static long now, most;
static void *count(void *p) {
    if (p) {
        long sum = __atomic_add_fetch(&now, (long)malloc_usable_size(p), __ATOMIC_RELAXED), old = most;
        while (sum > old && !__atomic_compare_exchange_n(&most, &old, sum, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
    }
    return p;
}
static void forget(void *p) { if (p) __atomic_sub_fetch(&now, (long)malloc_usable_size(p), __ATOMIC_RELAXED); }
void *malloc(size_t n) { return count(__libc_malloc(n)); }
void *calloc(size_t k, size_t n) { return count(__libc_calloc(k, n)); }
void *realloc(void *p, size_t n) { forget(p); return count(__libc_realloc(p, n)); }
void free(void *p) { forget(p); __libc_free(p); }
void *memalign(size_t a, size_t n) { return count(__libc_memalign(a, n)); }
void *aligned_alloc(size_t a, size_t n) { return memalign(a, n); }
int posix_memalign(void **p, size_t a, size_t n) { *p = memalign(a, n); return *p ? 0 : ENOMEM; }
long hsv_begin_count(void) { most = now; return now; }
long hsv_most_count(void) { return most; }
"""


def peak(compute: Callable[[], Any], counter: ctypes.CDLL) -> tuple[int, int]:
    """Return the most bytes that are allocated at a time beyond those before, and those of them that are left in the result."""
    compute()  # what is loaded and compiled once
    begin = counter.hsv_begin_count()
    result = compute()
    most = counter.hsv_most_count()
    left = counter.hsv_begin_count()
    del result
    return most - begin, left - begin


def measure() -> None:
    """Print the table, in a process whose allocations are counted."""
    counter = ctypes.CDLL(None)
    for function in (counter.hsv_begin_count, counter.hsv_most_count):
        function.restype = ctypes.c_long
    warnings.simplefilter("ignore", hsv.OrderWarning)
    print("| states | dtype | task | n^2 numbers at most | of these in the result |\n|---:|---|---|---:|---:|")
    for n in SIZES:
        for dtype in ("float64", "complex128"):
            sys = diagonal_system(n, dt=True, dtype=dtype)
            unit = n * n * np.dtype(dtype).itemsize
            tasks = {
                "values": lambda sys=sys: hsv.hankel_singular_values(sys),
                f"truncation to {n // 4}": lambda sys=sys, n=n: hsv.balanced_truncation(sys, n // 4),
            }
            for name, compute in tasks.items():
                most, left = peak(compute, counter)
                print(f"| {n} | {dtype} | {name} | {most / unit:.1f} | {left / unit:.1f} |")


def main() -> None:
    """Compile the counter, and measure in a process that loads it."""
    argparse.ArgumentParser(
        prog="python -m asv_benchmarks.peak_memory", description=__doc__.splitlines()[0]
    ).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "count.c"), Path(folder, "count.so")
        source.write_text(COUNTER)
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
        command = [sys.executable, "-c", "from asv_benchmarks.peak_memory import measure; measure()"]
        subprocess.run(command, check=True, env=os.environ | {"LD_PRELOAD": str(library)})


if __name__ == "__main__":
    main()
