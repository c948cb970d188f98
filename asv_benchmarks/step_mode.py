"""One recurrent step of a language model before and after a cut: in PyTorch, and exported, in onnxruntime. All measured in turn in one run.

``python -m asv_benchmarks.step_mode [--layer lru|mamba] [--batch 1] [--threads 1] [--rounds 30] [--sequence 256] [--cpu-time]``

4 blocks of 128 channels, a vocabulary of 256; LRU with 256 and 32 states, Mamba with 128 and 16. The smaller model is the larger one after
`hsv_torch.compress_`. A round is 20 steps of each variant; ratios are medians of ratios within a round. ``--sequence`` measures whole sequences of that length
as well, where PyTorch has the package's own kernels and onnxruntime a ``Scan`` over time.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import hsv_torch

WIDTH, BLOCKS, VOCABULARY = 128, 4, 256
STATES = {"lru": (256, 32), "mamba": (128, 16)}
STEPS = 20


def models(layer: str) -> dict[int, hsv_torch.SequenceModel]:
    """Return a model and the same after a cut, by their numbers of states."""
    torch.manual_seed(0)
    full, cut = STATES[layer]
    config = hsv_torch.SequenceModelConfig(
        layer=layer, d_model=WIDTH, n_states=full, n_blocks=BLOCKS, head="language_model", vocabulary=VOCABULARY, n_outputs=VOCABULARY
    )  # fmt: skip
    model = hsv_torch.SequenceModel(config).eval()
    smaller = copy.deepcopy(model)
    hsv_torch.compress_(smaller, cut, calibration=torch.randint(VOCABULARY, (4, 64)) if layer == "mamba" else None)
    return {full: model, cut: smaller}


def session(path: Path, threads: int):
    """Return an onnxruntime session with `threads` threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def eager_step(model: hsv_torch.SequenceModel, batch: int) -> Callable[[], None]:
    """Return a function that goes on by one step."""
    x, state = torch.zeros(batch, dtype=torch.int64), model.initial_state(batch)

    def step() -> None:
        nonlocal state
        with torch.inference_mode():
            _, state = model.step(x, state)

    return step


def exported_step(model: hsv_torch.SequenceModel, batch: int, threads: int, folder: Path) -> Callable[[], None]:
    """Return the same of the exported model."""
    shapes = hsv_torch.export_onnx_step(model, folder / "step.onnx")
    run, x = session(folder / "step.onnx", threads), np.zeros(batch, np.int64)
    state = {name: np.zeros((batch, *shape), np.float32) for name, shape in shapes.items()}

    def step() -> None:
        nonlocal state
        _, *parts = run.run(None, {"x_t": x, **state})
        state = dict(zip(shapes, parts, strict=True))

    return step


def eager_sequence(model: hsv_torch.SequenceModel, batch: int, length: int) -> Callable[[], None]:
    """Return a function that runs a whole sequence."""
    x = torch.zeros(batch, length, dtype=torch.int64)

    def forward() -> None:
        with torch.inference_mode():
            model(x)

    return forward


def exported_sequence(
    model: hsv_torch.SequenceModel, batch: int, length: int, threads: int, folder: Path
) -> Callable[[], None]:
    """Return the same of the exported model."""
    hsv_torch.export_onnx(model, folder / "sequence.onnx")
    run, x = session(folder / "sequence.onnx", threads), np.zeros((batch, length), np.int64)
    return lambda: run.run(None, {"x": x})


def measure(
    variants: dict[tuple[int, str], Callable[[], None]], rounds: int, calls: int, clock: Callable[[], float]
) -> dict[tuple[int, str], list[float]]:
    """Microseconds a call, the variants in turn, after two rounds that are not counted."""
    times: dict[tuple[int, str], list[float]] = {name: [] for name in variants}
    for k in range(rounds + 2):
        for name, call in variants.items():
            begin = clock()
            for _ in range(calls):
                call()
            if k >= 2:
                times[name].append(1e6 * (clock() - begin) / calls)
    return times


def print_table(title: str, times: dict[tuple[int, str], list[float]]) -> None:
    """Print a Markdown table: a row for each program."""
    full, cut = sorted({n for n, _ in times}, reverse=True)
    print(f"\n| {title} | {full} states, us | {cut} states, us | ratio |\n|---|---|---|---|")
    for program in dict.fromkeys(program for _, program in times):
        before, after = times[full, program], times[cut, program]
        ratio = statistics.median(a / b for a, b in zip(before, after, strict=True))
        print(f"| {program} | {statistics.median(before):.0f} | {statistics.median(after):.0f} | {ratio:.2f} |")


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m asv_benchmarks.step_mode", description=__doc__.splitlines()[0])
    parser.add_argument("--layer", choices=STATES, action="append")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--sequence", type=int, metavar="LENGTH", help="whole sequences of this length too")
    parser.add_argument("--cpu-time", action="store_true", help="of all threads together, for a machine that is busy")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    for layer in options.layer or STATES:
        with tempfile.TemporaryDirectory() as name:
            folder, steps, sequences = Path(name), {}, {}
            for n, model in models(layer).items():
                steps[n, "PyTorch"] = eager_step(model, options.batch)
                steps[n, "onnxruntime"] = exported_step(model, options.batch, options.threads, folder)
                if options.sequence is not None:
                    size = options.batch, options.sequence
                    sequences[n, "PyTorch"] = eager_sequence(model, *size)
                    sequences[n, "onnxruntime"] = exported_sequence(model, *size, options.threads, folder)
            print_table(f"{layer}, one step, batch {options.batch}", measure(steps, options.rounds, STEPS, clock))
            if sequences:
                title = f"{layer}, {options.sequence} steps, batch {options.batch}"
                print_table(title, measure(sequences, max(1, options.rounds // 3), 1, clock))


if __name__ == "__main__":
    main()
