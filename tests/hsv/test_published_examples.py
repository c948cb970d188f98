"""Every printed example is found to its last printed digit, and the page in the documentation is what the command prints."""

from pathlib import Path

import numpy as np
import pytest

import hsv
from asv_benchmarks import accuracy, formula_problems, published_examples
from tests.hsv import exact, exact_dense
from tests.hsv import reference_systems as known

PAGE = Path(__file__).resolve().parents[2] / "docs" / "accuracy.md"


@pytest.mark.parametrize("example", list(published_examples.examples()), ids=lambda e: f"{e.source}: {e.quantity}")
def test_found_to_the_last_printed_digit(example):
    found = np.asarray(example.compute())
    assert found.shape == example.printed.shape
    assert example.difference() <= 0.51  # half a unit is the rounding of what was printed


def test_a_wrong_answer_is_seen():
    example = next(published_examples.examples())
    wrong = published_examples.Example(
        example.source, example.quantity, example.call, example.printed + 1e-8, example.decimals, example.compute
    )
    assert wrong.difference() > 0.51


def test_the_page_is_what_the_command_prints(capsys):
    assert accuracy.main(["examples"]) == 0
    assert accuracy.section(PAGE.read_text(), "examples") == capsys.readouterr().out.strip()


def test_the_command_writes_between_the_markers(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- examples -->\nold\n<!-- end of examples -->\nafter\n")
    accuracy.main(["examples", "--write", str(page)])
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert accuracy.section(text, "examples") == capsys.readouterr().out.strip()
    with pytest.raises(SystemExit, match="once each"):
        accuracy.with_section("no markers", "examples", "text")


@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("complex_", [True, False])
def test_both_exact_arithmetics_agree(discrete, complex_, rng):
    sys = known.random_stable(rng, 4, 2, 2, dt=discrete or 0, complex_=complex_)
    np.testing.assert_allclose(
        exact_dense.hankel_values(sys.A, sys.B, sys.C, discrete=discrete),
        exact.dense_hankel_values(sys.A, sys.B, sys.C, discrete=discrete),
        rtol=1e-15,
    )


def test_the_beam_vibrates_as_the_theory_says():
    """Roots of cos(x) cosh(x) = -1: the first frequencies of a clamped beam are their squares."""
    frequencies = np.unique(np.abs(known.clamped_beam(12).system().poles()).round(6))
    roots = np.array([1.875104069, 4.694091133, 7.854757438])
    np.testing.assert_allclose(frequencies[:3], roots**2, rtol=2e-4)


def test_prescribed_hankel_values_are_those_of_the_system(rng):
    sigma = np.geomspace(1, 1e-6, 8)
    reference = known.prescribed_hankel_values(rng, sigma, 2, condition=10.0)
    exact_values = exact_dense.hankel_values(reference.A, reference.B, reference.C, discrete=False)
    np.testing.assert_allclose(exact_values, sigma, atol=1e-13)
    np.testing.assert_allclose(hsv.hankel_singular_values(reference.system()), sigma, atol=1e-13)


def test_the_modes_of_fom_are_those_of_its_matrix():
    dense, modes = known.penzl_fom(5).system(), known.penzl_fom_modes(5)
    w = np.array([0.5, 100.0, 333.0])
    np.testing.assert_allclose(modes.frequency_response(w), dense.frequency_response(w), rtol=1e-12)


@pytest.mark.slow
def test_heat_equation_has_no_fewer_right_values_than_slicot_finds():
    """AB09AD, with 200 states: the first one wrong by 1 % is the 22nd or 23rd, of 2e-16 of the largest; python-control's is the 9th."""
    sys = known.heat_equation(200).system()
    truth = exact.heat_equation_hankel_values(200)[:40]
    place = formula_problems.first_wrong(hsv.hankel_singular_values(sys), truth)
    assert place >= 23
    peer = formula_problems.PEERS["python-control"]
    assert formula_problems.first_wrong(peer.values(sys), truth) <= 12
