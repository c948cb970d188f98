"""Gramians, Hankel singular values and balanced model reduction for NumPy, CuPy and torch arrays."""

from hsv import time_varying
from hsv._backends import Backend, Backends, backends, require_backend
from hsv._bounded_real import bounded_real_truncation
from hsv._coprime_factors import (
    CoprimeFactors,
    coprime_factor_reduction,
    inner_coprime_factors,
    normalized_coprime_factors,
    stable_coprime_factors,
)
from hsv._descriptor import (
    from_descriptor,
    solve_generalized_continuous_lyapunov,
    solve_generalized_discrete_lyapunov,
    solve_generalized_lyapunov_factored,
)
from hsv._discretize import discretize
from hsv._empirical import empirical_controllability_gramian, empirical_cross_gramian, empirical_observability_gramian
from hsv._errors import (
    ConvergenceError,
    DtypeError,
    HsvError,
    IllConditionedError,
    MissingBackendError,
    NonFiniteError,
    OrderError,
    OrderWarning,
    ShapeError,
    UnstableSystemError,
)
from hsv._files import load, save
from hsv._frequency_limited import frequency_limited_gramians
from hsv._frequency_weighted import (
    frequency_weighted_gramians,
    frequency_weighted_singular_perturbation,
    frequency_weighted_truncation,
)
from hsv._gramians import (
    controllability_factor,
    controllability_gramian,
    cross_gramian,
    observability_factor,
    observability_gramian,
)
from hsv._h2_optimal import h2_optimal_reduction
from hsv._hankel import hankel_singular_values
from hsv._hankel_norm import hankel_norm_approximation
from hsv._irka import irka
from hsv._limited import (
    frequency_limited_singular_perturbation,
    frequency_limited_truncation,
    time_limited_truncation,
)
from hsv._low_rank import (
    LowRankFactor,
    LowRankGramians,
    low_rank_controllability_factor,
    low_rank_gramians,
    low_rank_observability_factor,
)
from hsv._lqg_balancing import lqg_balanced_truncation
from hsv._lyapunov import (
    solve_continuous_lyapunov,
    solve_continuous_lyapunov_by_doubling,
    solve_discrete_lyapunov,
    solve_discrete_lyapunov_by_doubling,
    solve_lyapunov_factored,
    solve_lyapunov_factored_by_doubling,
    solve_sylvester,
)
from hsv._modal import modal_truncation, mode_energies, mode_gains
from hsv._nonlinear import NonlinearSystem
from hsv._norms import h2_norm, hankel_norm, hinf_error, hinf_norm
from hsv._order import ErrorBound, HankelEnergy, HankelSum, LargestGap, Order, PrefixShare, Rule, Threshold, as_rule
from hsv._pencils import StateOperator
from hsv._positive_real import positive_real_truncation
from hsv._progress import AdiStep
from hsv._projection import Projection, balancing_projection, cross_gramian_projection
from hsv._reduction import Reduction, balance, balanced_truncation, balancing_free_truncation
from hsv._riccati import solve_continuous_riccati, solve_discrete_riccati
from hsv._riccati_balancing import RiccatiReduction
from hsv._shifts import PenzlShifts, ProjectionShifts, Shifts, WachspressShifts
from hsv._singular_perturbation import singular_perturbation
from hsv._sparse_systems import SparseStateSpace
from hsv._split import split_unstable
from hsv._stochastic_balancing import stochastic_truncation
from hsv._systems import DiagonalStateSpace, LinearSystem, StateSpace, diagonalize, real_part
from hsv._unstable import reduce_stable_part
from hsv._weighted_hankel_norm import frequency_weighted_hankel_norm_approximation
from hsv.interop import from_control, from_pymor, from_scipy, labels, to_control, to_pymor, to_scipy
from hsv.plotting import plot_hankel_values, plot_poles, plot_sigma

__version__ = "0.1.0"

__all__ = [
    "AdiStep",
    "Backend",
    "Backends",
    "ConvergenceError",
    "CoprimeFactors",
    "DiagonalStateSpace",
    "DtypeError",
    "ErrorBound",
    "HankelEnergy",
    "HankelSum",
    "HsvError",
    "IllConditionedError",
    "LargestGap",
    "LinearSystem",
    "LowRankFactor",
    "LowRankGramians",
    "MissingBackendError",
    "NonFiniteError",
    "NonlinearSystem",
    "Order",
    "OrderError",
    "OrderWarning",
    "PenzlShifts",
    "PrefixShare",
    "Projection",
    "ProjectionShifts",
    "Reduction",
    "RiccatiReduction",
    "Rule",
    "ShapeError",
    "Shifts",
    "SparseStateSpace",
    "StateOperator",
    "StateSpace",
    "Threshold",
    "UnstableSystemError",
    "WachspressShifts",
    "as_rule",
    "backends",
    "balance",
    "balanced_truncation",
    "balancing_free_truncation",
    "balancing_projection",
    "bounded_real_truncation",
    "controllability_factor",
    "controllability_gramian",
    "coprime_factor_reduction",
    "cross_gramian",
    "cross_gramian_projection",
    "diagonalize",
    "discretize",
    "empirical_controllability_gramian",
    "empirical_cross_gramian",
    "empirical_observability_gramian",
    "frequency_limited_gramians",
    "frequency_limited_singular_perturbation",
    "frequency_limited_truncation",
    "frequency_weighted_gramians",
    "frequency_weighted_hankel_norm_approximation",
    "frequency_weighted_singular_perturbation",
    "frequency_weighted_truncation",
    "from_control",
    "from_descriptor",
    "from_pymor",
    "from_scipy",
    "h2_norm",
    "h2_optimal_reduction",
    "hankel_norm",
    "hankel_norm_approximation",
    "hankel_singular_values",
    "hinf_error",
    "hinf_norm",
    "inner_coprime_factors",
    "irka",
    "labels",
    "load",
    "low_rank_controllability_factor",
    "low_rank_gramians",
    "low_rank_observability_factor",
    "lqg_balanced_truncation",
    "modal_truncation",
    "mode_energies",
    "mode_gains",
    "normalized_coprime_factors",
    "observability_factor",
    "observability_gramian",
    "plot_hankel_values",
    "plot_poles",
    "plot_sigma",
    "positive_real_truncation",
    "real_part",
    "reduce_stable_part",
    "require_backend",
    "save",
    "singular_perturbation",
    "solve_continuous_lyapunov",
    "solve_continuous_lyapunov_by_doubling",
    "solve_continuous_riccati",
    "solve_discrete_lyapunov",
    "solve_discrete_lyapunov_by_doubling",
    "solve_discrete_riccati",
    "solve_generalized_continuous_lyapunov",
    "solve_generalized_discrete_lyapunov",
    "solve_generalized_lyapunov_factored",
    "solve_lyapunov_factored",
    "solve_lyapunov_factored_by_doubling",
    "solve_sylvester",
    "split_unstable",
    "stable_coprime_factors",
    "stochastic_truncation",
    "time_limited_truncation",
    "time_varying",
    "to_control",
    "to_pymor",
    "to_scipy",
]
