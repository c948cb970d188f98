import numpy as np
import pytest

from paper_repro.errors import ResultError
from paper_repro.ranking import (
    FRACTIONS,
    Moment,
    changes,
    largest_change,
    measure_rankings,
    overlap,
    rank_correlation,
    read_rankings,
    single_hankel_values,
    write_rankings,
)

TINY = {"steps": 50, "n_states": 6, "d_model": 4, "batch_size": 20, "evaluate_every": 50}


def moment(scores, sigma=(1.0,)):
    return Moment(preset="digits", seed=0, fraction=0.0, scores=scores, sigma=sigma, bound_to_previous=None, bound_to_end=0.0, accuracy=0.5)  # fmt: skip


def test_agreement_of_rankings_by_hand():
    first, second = moment((1.0, 2.0, 3.0, 4.0)), moment((1.0, 2.0, 40.0, 3.0))
    assert rank_correlation(first, second) == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)
    assert overlap(first, second, 2) == 1.0
    assert overlap(first, second, 1) == 0.0
    assert largest_change(moment((1.0,), (3.0, 1.0)), moment((1.0,), (2.5, 1.1))) == pytest.approx(0.5)


def test_weyls_bound_holds_between_all_moments_of_a_run(tmp_path):
    moments = list(measure_rankings("digits", [0], TINY))
    write_rankings(moments, "command", tmp_path / "ranking.json")
    rankings = read_rankings(tmp_path / "ranking.json")
    runs = rankings.runs()
    assert [len(run) for run in runs] == [len(FRACTIONS)]
    for run in runs:
        assert rank_correlation(run[0], run[0]) == pytest.approx(1)
        assert run[-1].bound_to_end == 0
        for found, change, bound in changes(run):
            assert 0 < change <= bound * (1 + 1e-5)  # the numbers of the file have six digits
            assert np.max(np.abs(np.subtract(found.sigma, run[-1].sigma))) <= found.bound_to_end * (1 + 1e-5)
        scores, sigma = np.array(run[0].scores), np.array(run[0].sigma)
        assert (
            scores.max() <= sigma.sum()
        )  # the norm of a part is at most that of its whole system times its number of states


def test_a_state_alone_has_one_hankel_value():
    import torch

    import hsv

    system = hsv.DiagonalStateSpace(torch.tensor([0.5, -0.2]), torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[2.0, 1.0]]), dt=True)  # fmt: skip
    alone = [
        float(hsv.hankel_singular_values(hsv.DiagonalStateSpace(system.poles()[[k]], system.B[[k]], system.C[:, [k]], dt=True))[0])
        for k in range(2)
    ]  # fmt: skip
    assert single_hankel_values(system) == pytest.approx(alone)


def test_layers_without_a_system_and_missing_files_are_said(tmp_path):
    with pytest.raises(ResultError, match="depends on its input"):
        list(measure_rankings("digits_mamba", [0], {"steps": 1, "n_states": 4, "d_model": 4}))
    with pytest.raises(ResultError, match="ranking"):
        read_rankings(tmp_path / "ranking.json")
