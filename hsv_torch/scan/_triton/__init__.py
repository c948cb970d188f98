"""The GPU kernels, in Triton. Importing a file of this package imports Triton, so it is imported when a kernel is first needed.

Work is laid out the same way everywhere: a thread has one or two columns (a state of a sequence, or a channel) and walks along
time; what it needs of ``STEPS`` steps is loaded at once, so that many loads are on their way together, and stays in registers. Sums
over columns are made inside one warp. Nothing depends on a size being a power of two, apart from the tiles of matrix products, which are filled up
with zeros; no kernel adds with atomics, so every sum has an order that follows from the sizes alone.
"""
