"""Pictures with matplotlib: Hankel singular values, gains over frequency, poles. Axes in, axes out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hsv import _kernels
from hsv._array import to_host, widen
from hsv._errors import DtypeError, HsvError, MissingBackendError, ShapeError
from hsv._lyapunov import schur_form
from hsv._reduction import Reduction, error_bound, noise_level, numerical_rank, values_and_rounding
from hsv._systems import DiagonalStateSpace, LinearSystem, StateSpace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours: told apart by everybody, legible on white and on black.
_ORIGINAL, _REDUCED, _ERROR = "#0072b2", "#d55e00", "#009e73"
_GREY = "#808080"
MATPLOTLIB_MISSING = 'pictures need the package matplotlib, which is not installed: pip install "hsv-control[plot]"'
_MOST_BARS = 40  # above, gaps between bars are thinner than a pixel
_PER_DECADE, _MOST_DECADES = 60, 12
_MOST_RESONANCES = 100


def plot_hankel_values(source: LinearSystem | Reduction, ax: Axes | None = None) -> Axes:
    r"""Draw the Hankel singular values as bars, and for every order the error bound :math:`2 \sum_{i > r} \sigma_i` of a balanced reduction.

    Parameters
    ----------
    source : StateSpace, DiagonalStateSpace or Reduction
        One stable system, or its reduction: then the kept states are dark and a line marks the order.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure if left out.

    Returns
    -------
    matplotlib.axes.Axes
        The axes. Values that are rounding errors of the largest one lie in a grey band, and the axis ends soon after the first of them.

    Raises
    ------
    ShapeError
        `source` is a batch.
    HsvError
        The reduction was made without Hankel singular values.
    UnstableSystemError
        The system is not stable.
    MissingBackendError
        matplotlib is not installed.

    Examples
    --------
    >>> import hsv
    >>> from matplotlib.figure import Figure
    >>> sys = hsv.StateSpace([[1, -2], [3, -4]], [[5], [7]], [[6, 8]], dt=0)
    >>> ax = hsv.plot_hankel_values(hsv.balanced_truncation(sys, 1), Figure().subplots())
    >>> ax.get_yscale()
    'log'
    """
    order: int | None = None
    if isinstance(source, Reduction):
        _require_single(source.system.batch_shape, "red.select(i)")
        if source.hankel_singular_values is None:
            raise HsvError(
                "the reduction has no Hankel singular values, for its method does not need them; pass the original system"
            )
        sigma, order, rounding = _host(source.hankel_singular_values), int(source.orders), source._rounding
    else:
        _require_system(source)
        sigma, rounding = values_and_rounding(source)
    ax = _axes(ax)
    n = len(sigma)
    ax.set_xlabel("state $i$, order $r$")
    ax.set_ylabel(r"Hankel singular value $\sigma_i$")
    if not sigma[0] > 0:
        ax.text(0.5, 0.5, "all values are zero", ha="center", va="center", transform=ax.transAxes)
        return ax

    rank = int(numerical_rank(sigma, rounding))
    shown = min(n, max(rank + max(rank // 10, 2), order or 0))
    bounds = error_bound(sigma, np.arange(1, n), rounding)[: shown - 1]  # of orders 1 ... n - 1
    noise = float(noise_level(sigma, rounding))
    lowest = min(sigma[:rank].min(), bounds.min(initial=np.inf))
    bottom = (noise if rank < n else lowest) / 4
    kept = n if order is None else order
    _draw_bars(ax, sigma[:shown], kept, bottom)
    ax.plot(
        np.arange(1, shown),
        bounds,
        color=_REDUCED,
        marker="o" if shown <= _MOST_BARS else None,
        markersize=4,
        linewidth=1.5,
        label=r"error bound of order $r$: $2\,\sum_{i>r}\sigma_i$",
    )
    if order is not None:
        text = f"order {order}" + (
            "" if order >= n else f", error at most {error_bound(sigma, np.asarray(order), rounding):.2g}"
        )
        ax.axvline(order + 0.5, color=_GREY, linestyle="--", linewidth=1.2, label=text)
    if rank < shown:
        ax.axhspan(bottom, noise, color=_GREY, alpha=0.25, linewidth=0, label="rounding of the largest value")
    ax.set_yscale("log")
    ax.set_ylim(bottom, 3 * max(sigma[0], bounds.max(initial=0.0)))
    ax.set_xlim(0.3, shown + 0.7)
    ax.locator_params(axis="x", integer=True)
    if shown < n:
        ax.set_xlabel(f"state $i$, order $r$ (of {n}; the rest is rounding)")
    ax.grid(axis="y", alpha=0.3)
    ax.set_axisbelow(True)
    _legend(ax)
    return ax


def plot_sigma(
    sys: LinearSystem, reduced: LinearSystem | Reduction | None = None, ax: Axes | None = None, *, w: Any = None
) -> Axes:
    r"""Draw the singular values of the frequency response of a system, of its reduction, and the largest one of their difference.

    Parameters
    ----------
    sys : StateSpace or DiagonalStateSpace
        One system; it need not be stable.
    reduced : StateSpace, DiagonalStateSpace or Reduction, optional
        With the same inputs, outputs and ``dt``. The error bound of a ``Reduction`` is drawn too.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure if left out.
    w : array, optional
        Frequencies ``(k,)`` in rad/s, or rad/sample where ``dt=True``. If left out they follow from the poles, dense around each resonance: continuous systems from a tenth
        of the slowest to ten times the fastest pole, discrete ones up to :math:`\pi / dt`. Complex systems have both signs.

    Returns
    -------
    matplotlib.axes.Axes
        The axes. Of several singular values the largest is drawn thick.

    Raises
    ------
    ShapeError, HsvError
        A system is a batch, or the two differ in inputs, outputs or ``dt``.
    MissingBackendError
        matplotlib is not installed.

    Notes
    -----
    Dense systems by one Schur form and a triangular solve a frequency, on the host: ``O(n^3 + k n^2)``.

    Examples
    --------
    >>> import hsv
    >>> from matplotlib.figure import Figure
    >>> sys = hsv.StateSpace([[1, -2], [3, -4]], [[5], [7]], [[6, 8]], dt=0)
    >>> ax = hsv.plot_sigma(sys, hsv.balanced_truncation(sys, 1), Figure().subplots())
    >>> [line.get_label() for line in ax.get_lines()]
    ['original, 2 states', 'reduced, 1 states', 'error', 'error bound']
    """
    bound = reduced.error_bound if isinstance(reduced, Reduction) else None
    systems = _systems(sys, reduced)
    if (sys.n_inputs, sys.n_outputs) != (systems[-1].n_inputs, systems[-1].n_outputs):
        raise ShapeError(
            f"reduced must have the inputs and outputs of sys, {sys.n_inputs} -> {sys.n_outputs}, got {systems[-1].n_inputs} -> {systems[-1].n_outputs}"
        )
    two_sided = any(s.is_complex and not getattr(s, "_conjugate_pairs", False) for s in systems)
    if w is None:
        frequencies = _frequencies(systems, two_sided=two_sided)
    else:
        frequencies = np.sort(_host(w) if not isinstance(w, (list, tuple)) else np.asarray(w, dtype=np.float64))
        if frequencies.ndim != 1 or frequencies.size < 2 or not np.all(np.isfinite(frequencies)):
            raise ShapeError(f"w must be at least two finite frequencies of shape (k,), got shape {frequencies.shape}")
        two_sided = bool(frequencies[0] < 0)
    ax = _axes(ax)
    responses = [_response(s, frequencies) for s in systems]
    names = ("original", "reduced")
    for response, name, colour, style, s in zip(
        responses, names, (_ORIGINAL, _REDUCED), ("-", "--"), systems, strict=False
    ):
        values = _singular_values(response)
        label = f"{name}, {s.n_states} states"
        for i in range(values.shape[1]):
            wide = 2.0 if i == 0 else 0.9
            ax.plot(frequencies, values[:, i], style, color=colour, linewidth=wide, label=label if i == 0 else None)
    if len(systems) == 2:
        error = _singular_values(responses[0] - responses[1])[:, 0]
        ax.plot(frequencies, error, color=_ERROR, linewidth=1.5, label="error")
    if bound is not None and float(bound) > 0:
        ax.axhline(float(bound), color=_ERROR, linestyle=":", linewidth=1.5, label="error bound")
    ax.set_yscale("log")
    _limit_gains(ax)
    _frequency_axis(ax, sys, frequencies, two_sided=two_sided)
    ax.set_ylabel("singular values of the response")
    ax.grid(alpha=0.3)
    _legend(ax)
    return ax


def plot_poles(sys: LinearSystem, reduced: LinearSystem | Reduction | None = None, ax: Axes | None = None) -> Axes:
    """Draw the poles of a system and of its reduction: in the s-plane with the imaginary axis, or in the z-plane with the unit circle.

    Parameters
    ----------
    sys : StateSpace or DiagonalStateSpace
        One system; it need not be stable.
    reduced : StateSpace, DiagonalStateSpace or Reduction, optional
        With the same ``dt``.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure if left out.

    Returns
    -------
    matplotlib.axes.Axes
        The axes; the unstable region is grey. Where the poles of a continuous system spread over more than three decades, both scales are logarithmic away from 0.

    Raises
    ------
    ShapeError, HsvError
        A system is a batch, or the two differ in ``dt``.
    MissingBackendError
        matplotlib is not installed.

    Examples
    --------
    >>> import hsv
    >>> from matplotlib.figure import Figure
    >>> sys = hsv.StateSpace([[0.0, 0.25], [1.0, 0.0]], [[1.0], [0.0]], [[1.0, 0.0]], dt=True)
    >>> hsv.plot_poles(sys, ax=Figure().subplots()).get_xlabel()
    'Re z'
    """
    systems = _systems(sys, reduced)
    ax = _axes(ax)
    poles = [_host(s.poles()) for s in systems]
    everything = np.concatenate(poles)
    letter = "z" if sys.is_discrete else "s"
    if sys.is_discrete:
        _unit_circle(ax, everything)
    else:
        _half_plane(ax, everything)
    markers: tuple[dict[str, Any], ...] = (
        {"marker": "o", "s": 45, "facecolors": "none", "edgecolors": _ORIGINAL, "linewidths": 1.4},
        {"marker": "x", "s": 45, "color": _REDUCED, "linewidths": 1.8},
    )
    for values, name, look in zip(poles, ("original", "reduced"), markers, strict=False):
        label = f"{name}, {len(values)} poles"
        ax.scatter(values.real, values.imag, label=label, zorder=3, **look)
    ax.set_xlabel(f"Re {letter}")
    ax.set_ylabel(f"Im {letter}")
    _legend(ax)
    return ax


def _axes(ax: Axes | None) -> Any:
    if ax is not None:
        if not hasattr(ax, "set_yscale"):
            raise DtypeError(f"ax must be an Axes of matplotlib, got {type(ax).__name__}; plt.subplots()[1] makes one")
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise MissingBackendError(MATPLOTLIB_MISSING) from error
    return plt.subplots(layout="constrained")[1]


def _require_system(sys: object) -> None:
    if not isinstance(sys, (StateSpace, DiagonalStateSpace)):
        raise DtypeError(f"a StateSpace, DiagonalStateSpace or Reduction is drawn, got {type(sys).__name__}")
    _require_single(
        sys.batch_shape,
        "hsv.StateSpace(sys.A[i], sys.B[i], sys.C[i], sys.D[i], dt=sys.dt), red.select(i) of a reduction",
    )


def _systems(sys: LinearSystem, reduced: LinearSystem | Reduction | None) -> list[LinearSystem]:
    """The system, and the reduced one if there is one, checked to belong together."""
    systems = [sys] if reduced is None else [sys, reduced.system if isinstance(reduced, Reduction) else reduced]
    for s in systems:
        _require_system(s)
    dt = systems[-1].dt
    if dt != sys.dt or (dt is True) != (sys.dt is True):
        raise HsvError(f"reduced must have the dt of sys, {sys.dt!r}, got {dt!r}")
    return systems


def _require_single(batch_shape: tuple[int, ...], remedy: str) -> None:
    if batch_shape:
        raise ShapeError(f"one system is drawn, got a batch of shape {batch_shape}; choose one: {remedy}")


def _legend(ax: Any) -> None:
    """A legend above the axes, where it hides nothing; bars first."""
    handles, names = ax.get_legend_handles_labels()
    order = sorted(range(len(names)), key=lambda i: not names[i].startswith(r"$\sigma"))
    handles, names = [handles[i] for i in order], [names[i] for i in order]
    place = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "frameon": False, "fontsize": "small"}
    ax.legend(handles, names, ncols=2, borderaxespad=0.2, **place)


def _host(x: Any) -> np.ndarray:
    return to_host(widen(x))


def _draw_bars(ax: Any, sigma: np.ndarray, kept: int, bottom: float) -> None:
    n = len(sigma)
    heights = np.maximum(sigma, bottom)
    for part, alpha, label in ((slice(0, kept), 1.0, "kept"), (slice(kept, n), 0.35, "discarded")):
        values = heights[part]
        if not values.size:
            continue
        first = part.start + 1
        look = {"color": _ORIGINAL, "alpha": alpha, "label": r"$\sigma_i$" if kept >= n else rf"$\sigma_i$, {label}"}
        if n <= _MOST_BARS:
            ax.bar(np.arange(first, first + len(values)), values - bottom, bottom=bottom, width=0.7, **look)
        else:
            edges = np.arange(first, first + len(values) + 1) - 0.5
            ax.stairs(values, edges, baseline=bottom, fill=True, linewidth=0, **look)


def _frequencies(systems: list[LinearSystem], *, two_sided: bool) -> np.ndarray:
    """Frequencies on which nothing that the poles make of the response is missed."""
    sys = systems[0]
    poles: np.ndarray = np.concatenate([_host(s.poles()) for s in systems]).astype(np.complex128)
    nyquist = np.pi / sys.step if sys.is_discrete else np.inf
    if sys.is_discrete:
        poles = np.log(poles[np.abs(poles) > 0]) / sys.step
    speeds = np.abs(poles)[np.abs(poles) > 0]
    slow, fast = (speeds.min(), speeds.max()) if speeds.size else (0.1, 10.0)
    high = nyquist if sys.is_discrete else 10 * fast
    low = min(max(slow / 10, high * 10.0**-_MOST_DECADES), high / 100)
    count = int(_PER_DECADE * np.log10(high / low)) + 2
    grid = np.geomspace(low, high, count)
    if two_sided and sys.is_discrete:
        grid = np.concatenate([grid, np.linspace(0, high, 301)])
    # Around a resonance: its frequency, and steps of a fraction of its width.
    resonant = poles[np.abs(poles.real) < 0.5 * np.abs(poles.imag)]
    sharpest = resonant[np.argsort(np.abs(resonant.real / resonant.imag))[:_MOST_RESONANCES]]
    steps = np.sinh(np.linspace(-4, 4, 25)) / 4
    around = (sharpest.imag[:, None] + np.abs(sharpest.real)[:, None] * steps).ravel()
    if two_sided:
        around = around[np.abs(around) <= high]
        return np.unique(np.concatenate([-grid, [0.0], grid, around]))
    return np.unique(np.concatenate([grid, around[(around >= low) & (around <= high)]]))


def _response(sys: LinearSystem, w: np.ndarray) -> np.ndarray:
    """Frequency response ``(k, p, m)`` on the host; NaN at a frequency that is a pole."""
    angle = w * sys.step
    z = np.cos(angle) + 1j * np.sin(angle) if sys.is_discrete else 1j * w
    response = np.full((len(w), sys.n_outputs, sys.n_inputs), np.nan, dtype=np.complex128)
    if isinstance(sys, DiagonalStateSpace):
        regular = (z[:, None] != _host(sys.poles())).all(axis=1)
        response[regular] = to_host(sys.frequency_response(w[regular]))
        return response
    assert isinstance(sys, StateSpace)
    S, Z = schur_form(_host(sys.A)[None])
    regular = (z[:, None] != np.diagonal(S[0])).all(axis=1)
    S, B = (np.ascontiguousarray(x, dtype=np.complex128) for x in (S, Z.conj().swapaxes(-1, -2) @ _host(sys.B)))
    states = _kernels.triangular_resolvent(S, z[None, regular], B)[0]
    response[regular] = (_host(sys.C) @ Z[0]) @ states + _host(sys.D)
    return response


def _singular_values(response: np.ndarray) -> np.ndarray:
    finite = np.isfinite(response).all(axis=(1, 2))
    values = np.full((len(response), min(response.shape[1:])), np.nan)
    values[finite] = np.linalg.svd(response[finite], compute_uv=False)
    return values


def _limit_gains(ax: Any) -> None:
    """Keep rounding errors and zeros of the response from taking up most of the axis."""
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=np.float64) for line in ax.get_lines()])
    values = values[np.isfinite(values) & (values > 0)]
    if values.size:
        top = values.max()
        ax.set_ylim(max(values.min() / 2, top * 1e-17), top * 3)


def _frequency_axis(ax: Any, sys: LinearSystem, w: np.ndarray, *, two_sided: bool) -> None:
    unit = "rad/sample" if sys.dt is True else "rad/s"
    ax.set_xlabel(f"frequency ({unit})")
    if two_sided and not sys.is_discrete:
        ax.set_xscale("symlog", linthresh=_power_of_ten(np.abs(w[w != 0]).min()))
    elif not two_sided:
        ax.set_xscale("log")
    ax.set_xlim(w[w > 0].min() if not two_sided else w[0], w[-1])
    if sys.is_discrete and w[-1] >= 0.999 * np.pi / sys.step:
        ends = [np.pi / sys.step] + [-np.pi / sys.step] * two_sided
        for end in ends:
            ax.axvline(end, color=_GREY, linewidth=1.0)


def _power_of_ten(x: float) -> float:
    """The next one below: where a scale that is linear about 0 becomes logarithmic, ticks then have room."""
    return float(10.0 ** np.floor(np.log10(x)))


def _unit_circle(ax: Any, poles: np.ndarray) -> None:
    reach = max(1.1, 1.1 * float(np.abs(poles).max(initial=0.0)))
    ax.set_facecolor((0.5, 0.5, 0.5, 0.12))
    angle = np.linspace(0, 2 * np.pi, 361)
    ax.fill(np.cos(angle), np.sin(angle), facecolor="white", edgecolor=_GREY, linewidth=1.2, zorder=1)
    for draw in (ax.axhline, ax.axvline):
        draw(0, color=_GREY, linewidth=0.6, alpha=0.6, zorder=2)
    ax.set_xlim(-reach, reach)
    ax.set_ylim(-reach, reach)
    ax.set_aspect("equal")


def _half_plane(ax: Any, poles: np.ndarray) -> None:
    sizes = np.abs(poles)[np.abs(poles) > 0]
    reach = float(sizes.max(initial=1e-300)) if sizes.size else 1.0
    wide = sizes.size > 0 and reach > 1e3 * sizes.min()
    left, right = min(poles.real.min(), 0.0), max(poles.real.max(), 0.0)
    height = float(np.abs(poles.imag).max())
    if wide:
        smallest = float(sizes.min())
        ax.set_xscale("symlog", linthresh=_power_of_ten(smallest))
        left, right = 4 * left, max(4 * right, 4 * smallest)
        if height > 0:
            ax.set_yscale("symlog", linthresh=_power_of_ten(smallest))
        height = 4 * height
    else:
        left, right = 1.1 * left, max(1.1 * right, 0.15 * reach)
        height = 1.15 * height
    ax.set_xlim(left if left < 0 else -0.15 * reach, right)
    height = height or (float(sizes.min()) if wide else 0.5 * reach)  # of real poles alone
    ax.set_ylim(-height, height)
    ax.axvspan(0, right, color=_GREY, alpha=0.12, linewidth=0, zorder=0)
    ax.axvline(0, color=_GREY, linewidth=1.2, zorder=1)
    ax.axhline(0, color=_GREY, linewidth=0.6, alpha=0.6, zorder=1)
