"""Draw the pictures of the README and of the explanation pages, from nothing but computations that this file makes.

    python docs/pictures.py             all of them, two minutes on one core
    python docs/pictures.py balancing   one

Each is written to ``docs/images/NAME.svg``. Training runs with one thread and fixed seeds.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

import hsv
import hsv_torch
from hsv_torch.report import plot_spectra

IMAGES = Path(__file__).parent / "images"
BLUE, ORANGE, BLACK = (
    "#0072b2",
    "#d55e00",
    "#000000",
)  # Okabe and Ito's colours, which most colour-blind readers tell apart
PICTURES: dict[str, Callable[[], Figure]] = {}


def picture(draw: Callable[[], Figure]) -> Callable[[], Figure]:
    """Register a picture under the name of the function that draws it."""
    PICTURES[draw.__name__] = draw
    return draw


def figure_with(columns: int, width: float = 10.5, height: float = 3.4) -> tuple[Figure, np.ndarray]:
    """Return a figure with a row of axes."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = np.atleast_1d(figure.subplots(1, columns))
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return pixels and labels of scikit-learn's digits, 1,400 to train with and 397 to test."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    pixels = torch.tensor(data.images, dtype=torch.float32).reshape(-1, 64, 1)[order] / 16
    labels = torch.tensor(data.target)[order]
    return pixels[:1400], labels[:1400], pixels[1400:], labels[1400:]


def classifier(layer: str, n_states: int) -> hsv_torch.SequenceModel:
    """Return a model of the digits with one block of width 16."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = hsv_torch.SequenceModelConfig(
        layer=layer, head="classification", d_model=16, n_states=n_states, n_inputs=1, n_outputs=10, norm="batch"
    )
    return hsv_torch.SequenceModel(config)


@torch.no_grad()
def accuracy(model: torch.nn.Module, pixels: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share that is read right; the model stays in the mode that it was in."""
    was_training = model.training
    found = (model.eval()(pixels).argmax(-1) == labels).float().mean().item()
    model.train(was_training)
    return found


def train(
    model: torch.nn.Module,
    steps: int,
    after_step: Callable[[int], None],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Train on the digits, batches of 50, and call `after_step` with the number of steps done."""
    pixels, labels, _, _ = digits()
    for step in range(1, steps + 1):
        batch = torch.randint(len(labels), (50,))
        loss = cross_entropy(model(pixels[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        after_step(step)


@picture
def shrinking_run() -> Figure:
    """States, accuracy and spectra of a run that is cut four times."""
    model, steps, every = classifier("lru", 64), 2000, 50
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    schedule = hsv_torch.Schedule(total_steps=steps, window=(0.0, 0.4), attempts=4)
    compressor = hsv_torch.InTrainingCompressor(model, optimizer, rule=hsv.HankelSum(discard=0.1), schedule=schedule)
    _, _, pixels, labels = digits()
    states, found = [model.n_states[0]], []

    def after_step(step: int) -> None:
        compressor.step()
        states.append(model.n_states[0])
        if step % every == 0:
            found.append(100 * accuracy(model, pixels, labels))

    train(model, steps, after_step, optimizer)
    figure, (left, middle, right) = figure_with(3)
    left.step(np.arange(steps + 1), states, where="post", color=BLUE)
    left.set(xlabel="optimizer step", ylabel="states of the layer", ylim=(0, 68))
    left.annotate(f"{states[-1]} states", (steps, states[-1]), xytext=(-4, 8), textcoords="offset points", ha="right")
    middle.plot(np.arange(every, steps + 1, every), found, color=BLUE)
    middle.set(xlabel="optimizer step", ylabel="test accuracy, %")
    for event in compressor.history.events:
        middle.axvline(event.step, color="#999999", linewidth=0.8, linestyle=":")
    middle.annotate(f"{found[-1]:.1f} %", (steps, found[-1]), xytext=(-4, -18), textcoords="offset points", ha="right")
    plot_spectra(compressor.history, right)
    return figure


@picture
def balancing() -> Figure:
    """What can be reached and what can be seen, before and after balancing."""
    A = np.array([[-1.0, 1.2], [0.0, -0.35]])
    B, C = np.array([[0.25], [0.75]]), np.array([[1.0, -0.1]])
    sys = hsv.StateSpace(A, B, C, dt=0)
    figure, axes = figure_with(2, width=8.4, height=4.0)
    circle = np.stack([np.cos(t := np.linspace(0, 2 * np.pi, 300)), np.sin(t)])
    for ax, system, title in zip(axes, (sys, hsv.balance(sys).system), ("as given", "balanced"), strict=True):
        P, Q = hsv.controllability_gramian(system), hsv.observability_gramian(system)
        reached = np.linalg.cholesky(P) @ circle
        # a state at distance one in the direction v shows as much as sqrt(v' Q v): drawn as that length in that direction
        seen = circle * np.sqrt(np.einsum("ik,ij,jk->k", circle, Q, circle))
        ax.plot(*reached, color=BLUE, label="reached by inputs of energy 1")
        ax.plot(*seen, color=ORANGE, linestyle="--", label="output energy of a unit state, as length")
        ax.set(title=title, xlabel="state 1", ylabel="state 2", aspect="equal")
        ax.axhline(0, color="#bbbbbb", linewidth=0.6)
        ax.axvline(0, color="#bbbbbb", linewidth=0.6)
    limits = max(np.abs(ax.get_xlim() + ax.get_ylim()).max() for ax in axes)
    for ax in axes:
        ax.set(xlim=(-limits, limits), ylim=(-limits, limits))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


@picture
def spectra_while_training() -> Figure:
    """How a spectrum gathers in few values while a model learns."""
    model, steps = classifier("lru", 64), 2000
    marks = {0: "before the first step", 100: "5 % of the steps", 200: "10 %", 800: "40 %", 2000: "the end"}
    spectra: dict[int, np.ndarray] = {}
    ((_, layer),) = hsv_torch.compressible_layers(model).items()

    def measure(step: int) -> None:
        if step in marks:
            spectra[step] = np.asarray(hsv.hankel_singular_values(hsv_torch.adapter_of(layer).system(layer)))

    measure(0)
    train(model, steps, measure, torch.optim.AdamW(model.parameters(), lr=4e-3))
    figure, (left, right) = figure_with(2, width=9.5, height=3.6)
    colours = mpl.colormaps["viridis"](np.linspace(0.9, 0.05, len(marks)))
    for (step, name), colour in zip(marks.items(), colours, strict=True):
        sigma = spectra[step]
        k = np.arange(1, len(sigma) + 1)
        left.semilogy(k, sigma / sigma[0], color=colour, label=name)
        right.plot(k, 100 * (1 - np.cumsum(sigma) / sigma.sum()), color=colour)
    right.axhline(10, color="#999999", linewidth=0.8, linestyle=":")
    left.set(xlabel="number of the value", ylabel="Hankel singular value / largest")
    right.set(xlabel="states kept", ylabel="share of the sum that is lost, %")
    left.legend(frameon=False)
    return figure


@picture
def two_readings() -> Figure:
    """Error of the real part of the output after both kinds of cut, and the bounds."""
    rng = np.random.default_rng(0)
    n, H = 24, 4
    log_poles = np.log(rng.uniform(0.9, 0.999, n)) + 1j * rng.uniform(0, 2 * np.pi, n)
    B, C = (rng.standard_normal((2, n, H)) + 1j * rng.standard_normal((2, n, H))) / np.sqrt(2 * H)
    B *= np.sqrt(1 - np.exp(2 * log_poles.real))[:, None]
    sys = hsv.DiagonalStateSpace.from_log_poles(*map(torch.from_numpy, (log_poles, B, C.T.copy())))
    orders = np.arange(2, n, 2)
    figure, (ax,) = figure_with(1, width=6.4, height=3.8)
    gain = float(hsv.hinf_norm(hsv.real_part(sys)))
    for criterion, colour, name in (
        (hsv_torch.ComplexHankel(), ORANGE, "complex"),
        (hsv_torch.RealHankel(), BLUE, "conjugate-aware"),
    ):
        errors, bounds = [], []
        for order in orders:
            plan = criterion.reduce(sys, int(order))
            small = hsv.DiagonalStateSpace.from_log_poles(plan.log_poles, plan.B, plan.C)
            errors.append(float(hsv.hinf_error(hsv.real_part(sys), hsv.real_part(small))) / gain)
            bounds.append(plan.error_bound / gain)
        ax.semilogy(orders, errors, color=colour, marker="o", markersize=3, label=f"{name}: error")
        ax.semilogy(orders, bounds, color=colour, linestyle=":", label=f"{name}: bound")
    ax.set(xlabel="states kept of 24", ylabel="H-infinity error / norm", xticks=orders[1::2])
    ax.legend(frameon=False)
    return figure


@picture
def how_far_back() -> Figure:
    """A trained S5 layer cut by what inputs do for ever, and by what they do within a sequence."""
    model = classifier("s5", 32)
    groups = hsv_torch.parameter_groups(model, lr=4e-3, ssm_lr_factor=0.5, weight_decay=0.01)
    train(model, 1500, lambda step: None, torch.optim.AdamW(groups))
    ((_, layer),) = hsv_torch.compressible_layers(model).items()
    system = hsv_torch.adapter_of(layer).system(layer)
    _, _, pixels, labels = digits()
    figure, (left, right) = figure_with(2, width=9.5, height=3.6)
    for criterion, colour, marker, name in (
        (hsv_torch.ComplexHankel(), ORANGE, "^", "for ever"),
        (hsv_torch.Discounted(horizon=64), BLUE, "o", "within 64 steps"),
    ):
        values = criterion.spectrum(system)
        left.semilogy(np.arange(1, 33), values / values[0], color=colour, marker=marker, markersize=3, label=name)
        orders, found = range(4, 33, 2), []
        for order in orders:
            small = copy.deepcopy(model)
            if order < 32:
                hsv_torch.compress_(small, order, criterion=criterion)
            found.append(100 * accuracy(small, pixels, labels))
        right.plot(orders, found, color=colour, marker=marker, markersize=4)
    left.set(xlabel="number of the value", ylabel="Hankel singular value / largest")
    right.set(xlabel="states kept of 32, no training after the cut", ylabel="test accuracy, %", ylim=(0, 100))
    left.legend(frameon=False)
    return figure


@picture
def certificate() -> Figure:
    """Errors and bounds of choosing states of a diagonal time-varying system by certificates."""
    rng = np.random.default_rng(1)
    n, T = 16, 200
    step = np.log1p(np.exp(rng.standard_normal((T, 1)) - 2))
    A = np.exp(-step * np.arange(1, n + 1))  # Mamba's decay: a rate a state, a step size a time
    decay = 0.6 ** np.arange(n)
    B, C = (step * rng.standard_normal((T, n)) * decay)[..., None], (rng.standard_normal((T, n)) * decay)[:, None]

    def operator(A: np.ndarray, B: np.ndarray, C: np.ndarray) -> np.ndarray:
        """Return the matrix from all inputs to all outputs."""
        response = np.zeros((T, T))
        for s in range(T):
            x = B[s, :, 0]
            for t in range(s + 1, T):
                response[t, s] = C[t, 0] @ x
                x = A[t] * x
        return response

    whole = operator(A, B, C)
    norm = np.linalg.norm(whole, 2)
    orders, errors, bounds = range(1, n), [], []
    for order in orders:
        red = hsv.time_varying.certified_truncation(A, B, C, order)
        errors.append(np.linalg.norm(whole - operator(red.A, red.B, red.C), 2) / norm)
        bounds.append(float(red.error_bound) / norm)
    figure, (ax,) = figure_with(1, width=6.4, height=3.8)
    ax.semilogy(orders, bounds, color=ORANGE, linestyle=":", marker="^", markersize=4, label="certified bound")
    ax.semilogy(orders, errors, color=BLUE, marker="o", markersize=4, label="largest error over all inputs")
    ax.set(xlabel=f"states kept of {n}", ylabel="error / norm")
    ax.legend(frameon=False)
    return figure


def main() -> None:
    """Draw what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(PICTURES)}; default: all")
    names = parser.parse_args().names or list(PICTURES)
    if unknown := set(names) - set(PICTURES):
        parser.error(f"no picture is called {', '.join(sorted(unknown))}; there are {', '.join(PICTURES)}")
    mpl.rcParams |= {"svg.hashsalt": "hsv", "font.size": 10}  # the same picture is the same file
    for name in names:
        path = IMAGES / f"{name}.svg"
        PICTURES[name]().savefig(path, metadata={"Date": None})
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
