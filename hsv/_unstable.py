"""Reduction of systems with unstable poles."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from hsv._array import to_host
from hsv._errors import HsvError, OrderError
from hsv._order import Rule
from hsv._reduction import Reduction, balanced_truncation
from hsv._split import split_unstable
from hsv._systems import LinearSystem, require_system, stability_margin
from hsv._warnings import WarnTheCaller


def reduce_stable_part(
    sys: LinearSystem,
    rule: Rule | int,
    method: Callable[[LinearSystem, Rule | int], Reduction] = balanced_truncation,
) -> Reduction:
    r"""Reduce the stable part of a system and keep its unstable part as it is.

    .. math:: G = G_{\text{stable}} + G_{\text{unstable}}, \qquad G_r = (G_{\text{stable}})_r + G_{\text{unstable}}

    The error :math:`G - G_r` is stable, and the bound of the method holds for it.

    Parameters
    ----------
    sys : StateSpace or DiagonalStateSpace
        One system, with or without unstable poles; poles on the stability boundary count as unstable.
    rule : Rule or int
        Chooses the order of the stable part.
    method : callable
        :func:`balanced_truncation`, :func:`singular_perturbation`, :func:`hankel_norm_approximation`, :func:`irka` or :func:`modal_truncation`.

    Returns
    -------
    Reduction
        ``system`` has the reduced stable part first, then the unstable part. ``orders`` counts both. ``hankel_singular_values`` are those of the stable
        part; ``left`` and ``right`` are None.

    Raises
    ------
    HsvError
        A batch: the systems of a batch may have different numbers of unstable poles, so reduce them one by one.
    OrderError
        The system has no stable pole, or no order meets the rule.
    IllConditionedError
        Stable and unstable poles are too close to be told apart.

    References
    ----------
    Nagar and Singh, "An algorithmic approach for system decomposition and balanced realized model reduction", J. Franklin Inst. 341 (2004). SLICOT's AB09MD.

    Examples
    --------
    >>> import hsv
    >>> sys = hsv.DiagonalStateSpace([2.0, 0.5, 0.1], [[1.0], [1.0], [1.0]], [[1.0, 1.0, 1.0]], dt=True)
    >>> red = hsv.reduce_stable_part(sys, 1)
    >>> red.system.n_states, bool(abs(red.system.poles()).max() == 2)
    (2, True)
    """
    require_system(sys)
    if sys.batch_shape:
        raise HsvError(
            f"reduce_stable_part takes one system, got a batch {sys.batch_shape}: its systems may have different numbers of unstable poles; reduce them one by one"
        )
    n_stable = int((to_host(stability_margin(sys)) > 0).sum())
    if n_stable == 0:
        raise OrderError(
            "the system has no stable pole, so that there is nothing to reduce; hsv.lqg_balanced_truncation reduces unstable parts"
        )
    stable, unstable = split_unstable(sys)
    with WarnTheCaller():
        reduced = method(stable, rule)
    if n_stable == sys.n_states:
        return dataclasses.replace(reduced, left=None, right=None)
    return dataclasses.replace(
        reduced,
        system=reduced.system + unstable,
        orders=reduced.orders + unstable.n_states,
        left=None,
        right=None,
        n_original_states=sys.n_states,
    )
