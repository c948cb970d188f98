"""Tables of what the study measured, in Markdown."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from paper_repro.errors import ResultError
from paper_repro.methods import METHODS, SCORES, UNCOMPENSATED
from paper_repro.results import write_atomically
from paper_repro.statistics import paired_difference, summarise
from paper_repro.study.measurements import Measurement
from paper_repro.study.plan import POINTS

MARKS = ("<!-- tables: written by study-table -->", "<!-- end of the tables -->")

Accuracies = dict[int, float | None]  # by seed; None: there is no such model


def study_tables(measurements: Sequence[Measurement]) -> str:
    """Return all tables.

    Raises
    ------
    ResultError
        If nothing was measured.
    """
    if not measurements:
        raise ResultError("the study has measured nothing yet")
    parts = _table_of_losses(measurements)
    for task in dict.fromkeys(measurement.task for measurement in measurements):
        own = [measurement for measurement in measurements if measurement.task == task]
        parts += [
            f"## {task}",
            full_words(own),
            *_table_after_cuts(own),
            *_table_trained_on(own),
            *_table_of_sequences(own),
        ]
    parts += _table_of_compensation(measurements)
    return "\n\n".join(parts) + "\n"


def put_tables(tables: str, page: Path, marks: tuple[str, str] = MARKS) -> None:
    """Put `tables` between the marks of `page`.

    Raises
    ------
    ResultError
        If the page is not there, or has not both marks, in their order.
    """
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    before, first, rest = text.partition(marks[0])
    _, second, after = rest.partition(marks[1])
    if not (first and second):
        raise ResultError(f"{page} has no place for the tables: two lines, {marks[0]!r} and {marks[1]!r}")
    write_atomically(f"{before}{first}\n\n{tables}\n{second}{after}".encode(), page)


def _table_of_losses(measurements: Sequence[Measurement]) -> list[str]:
    """Give, for each share of states that is kept, what a cut costs: the mean over tasks, points and seeds, at the sizes that every task has."""
    before = {(m.run, m.point): m for m in measurements if m.kind == "point"}
    losses: defaultdict[str, defaultdict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    refused: Counter[str] = Counter()
    shares_of: defaultdict[str, set[float]] = defaultdict(set)
    for cut in measurements:
        full = before.get((cut.run, cut.point))
        if cut.kind != "cut" or cut.method is None or full is None or full.accuracy is None:
            continue
        share = cut.n_states / full.n_states
        shares_of[cut.task].add(share)
        if cut.accuracy is None:
            refused[cut.method] += 1
        else:
            losses[cut.method][share].append(full.accuracy - cut.accuracy)
    shares = sorted(set.intersection(*shares_of.values()), reverse=True) if shares_of else []
    if not shares:
        return []
    smallest = shares[-1]
    rows = [
        [
            method_words(method),
            *(_points(by_share[share]) for share in shares),
            f"{100 * max(by_share[smallest]):.1f}" if by_share[smallest] else "",
            str(refused[method]),
        ]
        for method, by_share in sorted(losses.items(), key=lambda item: _mean(item[1][smallest]))
    ]
    header = ["method", *(f"{share:.3g} of the states" for share in shares), f"worst at {smallest:.3g}", "refused"]
    return [
        "## What a cut costs at once",
        "Points of test accuracy lost right after the cut, mean over tasks, points of the training and seeds; negative: gained.",
        _markdown(header, rows),
    ]


def full_words(measurements: Sequence[Measurement]) -> str:
    """Return the accuracy of the full models at their end and at the points of the cuts, in a sentence."""
    full = [measurement for measurement in measurements if measurement.kind == "full"]
    if not full:
        return "No full model is there yet."
    states = full[0].n_states
    words = [f"at the end {_cell(_by_seed(full))}"]
    for point in POINTS:
        there = _by_seed(m for m in measurements if m.kind == "point" and m.point == point)
        words.append(f"{point} ({POINTS[point]:.0%} of the steps) {_cell(there)}")
    seeds = sorted(measurement.seed for measurement in full)
    return f"Full models, {states} states, seeds {', '.join(map(str, seeds))}, test accuracy in %: {'; '.join(words)}."


def _table_after_cuts(measurements: Sequence[Measurement]) -> list[str]:
    cuts = [measurement for measurement in measurements if measurement.kind == "cut"]
    if not cuts:
        return []
    columns = _columns(cuts)
    rows = []
    for method in _methods_of(cuts):
        own = [measurement for measurement in cuts if measurement.method == method]
        cells = [_cell(_by_seed(m for m in own if (m.point, m.n_states) == column)) for column in columns]
        rows.append([method_words(method), *cells, f"{summarise([m.seconds for m in own]).mean:.1f}"])
    header = ["method", *(f"{point}, {states}" for point, states in columns), "s a cut"]
    return ["### Right after the cut", _markdown(header, rows)]


def _table_trained_on(measurements: Sequence[Measurement]) -> list[str]:
    trained = [measurement for measurement in measurements if measurement.kind == "trained_on"]
    if not trained:
        return []
    scratch = best_from_scratch(measurements)
    columns = _columns(trained)
    rows = []
    for method in _methods_of(trained):
        own = [measurement for measurement in trained if measurement.method == method]
        cells = []
        for point, states in columns:
            cut = _by_seed(m for m in own if (m.point, m.n_states) == (point, states))
            cells.append(_cell(cut) + _against(cut, _by_seed(m for m in scratch if m.n_states == states)))
        rows.append([method_words(method), *cells])
    rows.append(
        ["from scratch, best rate", *(_cell(_by_seed(m for m in scratch if m.n_states == size)) for _, size in columns)]
    )
    tried = [measurement for measurement in measurements if measurement.kind == "scratch"]
    for rate in sorted({m.learning_rate for m in tried if m.learning_rate is not None}):
        own = [measurement for measurement in tried if measurement.learning_rate == rate]
        cells = [_cell(_by_seed(m for m in own if m.n_states == size)) for _, size in columns]
        rows.append([f"from scratch, rate {rate:g}", *cells])
    rates = "; ".join(f"{m.n_states} states {m.learning_rate:g}" for m in {m.n_states: m for m in scratch}.values())
    return [
        "### After training on to the end",
        _markdown(["method", *(f"{point}, {states}" for point, states in columns)], rows),
        "In brackets: mean difference to the model from scratch of the same seed at its best rate, in points, with its 95 % interval. "
        f"Rates of the models from scratch, best of those tried by mean validation accuracy: {rates or 'none yet'}.",
    ]


def best_from_scratch(measurements: Iterable[Measurement]) -> list[Measurement]:
    """Return, of the models from scratch of each size, those with the learning rate that has the best mean validation accuracy."""
    by_size: defaultdict[int, defaultdict[float, list[Measurement]]] = defaultdict(lambda: defaultdict(list))
    for measurement in measurements:
        if measurement.kind == "scratch" and measurement.learning_rate is not None:
            by_size[measurement.n_states][measurement.learning_rate].append(measurement)
    best = []
    for by_rate in by_size.values():
        most = max(
            len(runs) for runs in by_rate.values()
        )  # a rate that not every seed has been tried with is not compared
        complete = [runs for runs in by_rate.values() if len(runs) == most]
        best += max(complete, key=lambda runs: math.fsum(run.validation or 0.0 for run in runs))
    return best


def _table_of_sequences(measurements: Sequence[Measurement]) -> list[str]:
    ranked = [measurement for measurement in measurements if measurement.kind == "ranking"]
    if not ranked:
        return []
    counts = sorted({m.n_sequences for m in ranked if m.n_sequences is not None})
    rows = []
    for method in _methods_of(ranked):
        for count in counts:
            own = [m for m in ranked if (m.method, m.n_sequences) == (method, count)]
            errors = [m.error for m in own if m.error is not None]
            rows.append(
                [
                    method_words(method),
                    str(count),
                    _percent(agreement(own)),
                    _percent(agreement(own, [m for m in ranked if (m.method, m.n_sequences) == (method, counts[-1])])),
                    _percent(summarise(errors).mean if errors else None),
                    _cell_of([m.accuracy for m in own]),
                    _percent(_spread_within_seeds(own)),
                ]
            )
    states = ranked[0].n_states
    header = [
        "method",
        "sequences",
        "same states, %",
        f"as with {counts[-1]}, %",
        "standard error, %",
        "accuracy, %",
        "spread of draws",
    ]
    return [f"### Rankings from few sequences: late cut to {states} states", _markdown(header, rows)]


def _table_of_compensation(measurements: Sequence[Measurement]) -> list[str]:
    rows = []
    for score in SCORES:
        gains = list(_gains(measurements, score))
        if gains:
            summary = summarise(gains)
            better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
            low, high = 100 * summary.least, 100 * summary.greatest
            rows.append(
                [method_words(score), f"{100 * summary.mean:+.1f}", f"{low:+.1f} to {high:+.1f}", f"{better} : {worse}"]
            )
    if not rows:
        return []
    return [
        "## What compensation buys, right after the cut",
        _markdown(["choice of states", "mean gain, points", "range", "better : worse"], rows),
    ]


def _gains(measurements: Sequence[Measurement], score: str) -> Iterable[float]:
    def cuts(method: str) -> dict[tuple, float]:
        return {
            (m.task, m.seed, m.point, m.n_states): m.accuracy
            for m in measurements
            if m.kind == "cut" and m.method == method and m.accuracy is not None
        }

    plain = cuts(f"{score}{UNCOMPENSATED}")
    return [accuracy - plain[key] for key, accuracy in cuts(score).items() if key in plain]


def agreement(measurements: Sequence[Measurement], others: Sequence[Measurement] | None = None) -> float | None:
    """Return the mean share of kept states that two draws have in common, of one seed and of different sequences.

    Draws of `measurements` are compared with one another, or each with those of `others`; None where no method chooses states.
    """
    pairs: list[tuple[Measurement, Measurement]] = []
    if others is None:
        pairs = [pair for pair in itertools.combinations(measurements, 2) if pair[0].seed == pair[1].seed]
    else:
        pairs = [
            (one, other)
            for one in measurements
            for other in others
            if one.seed == other.seed and (one.n_sequences, one.draw) != (other.n_sequences, other.draw)
        ]
    shares = [
        len(set(first) & set(second)) / len(first)
        for one, other in pairs
        if one.kept is not None and other.kept is not None
        for first, second in zip(one.kept, other.kept, strict=True)
    ]
    return math.fsum(shares) / len(shares) if shares else None


def method_words(method: str) -> str:
    """Return the name of a method for people."""
    return method.replace("_uncompensated", ", uncompensated").replace("_distilled", ", distilled").replace("_", " ")


def _spread_within_seeds(measurements: Sequence[Measurement]) -> float | None:
    """Return the standard deviation over the draws of one seed, the mean of the seeds' variances taken."""
    by_seed = defaultdict(list)
    for measurement in measurements:
        if measurement.accuracy is not None:
            by_seed[measurement.seed].append(measurement.accuracy)
    variances = [deviation**2 for values in by_seed.values() if (deviation := summarise(values).deviation) is not None]
    return math.sqrt(math.fsum(variances) / len(variances)) if variances else None


def _columns(measurements: Iterable[Measurement]) -> list[tuple[str, int]]:
    found = {(m.point, m.n_states) for m in measurements if m.point is not None}
    return sorted(found, key=lambda column: (list(POINTS).index(column[0]), -column[1]))


def _methods_of(measurements: Iterable[Measurement]) -> list[str]:
    present = {measurement.method for measurement in measurements}
    return [method for method in METHODS if method in present]


def _by_seed(measurements: Iterable[Measurement]) -> Accuracies:
    return {measurement.seed: measurement.accuracy for measurement in measurements}


def _cell(accuracies: Mapping[int, float | None]) -> str:
    return _cell_of(list(accuracies.values()))


def _cell_of(values: Sequence[float | None]) -> str:
    there = [value for value in values if value is not None]
    missing = f" ({len(values) - len(there)} refused)" if len(there) < len(values) else ""
    if not there:
        return f"none{missing}" if values else ""
    summary = summarise(there)
    spread = "" if summary.deviation is None else f" ± {100 * summary.deviation:.1f}"
    return f"{100 * summary.mean:.1f}{spread}{missing}"


def _against(cut: Accuracies, scratch: Accuracies) -> str:
    first, second = ({seed: value for seed, value in arm.items() if value is not None} for arm in (cut, scratch))
    if not first.keys() & second.keys():
        return ""
    difference = paired_difference(first, second)
    if difference.interval is None:
        return f" ({100 * difference.mean:+.1f})"
    low, high = (100 * bound for bound in difference.interval)
    return f" ({100 * difference.mean:+.1f}; {low:+.1f} to {high:+.1f})"


def _mean(losses: Sequence[float]) -> float:
    return math.fsum(losses) / len(losses) if losses else math.inf


def _points(losses: Sequence[float]) -> str:
    return f"{100 * _mean(losses):.1f}" if losses else ""


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    numbers: Callable[[int], str] = lambda column: "---" if column == 0 else "---:"  # noqa: E731
    lines = [header, [numbers(column) for column in range(len(header))], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
