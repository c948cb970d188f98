"""The demo: handwritten digits, the full model, the same cut while it trains, and one trained at the size of the cut."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding

from paper_repro import provenance
from paper_repro.comparison import ArmFigures, Outcome, findings, make_arm, make_table, rule_words
from paper_repro.configuration import RunConfig, make_config, overridden, read_preset
from paper_repro.progress import RunProgress
from paper_repro.report import write_report
from paper_repro.results import RESULTS_FILE, RunResult
from paper_repro.selection import ARMS, Choice, choice_path, describe_choice, read_choice
from paper_repro.workers import Job, run_jobs

PRESETS = ("digits", "digits_hard_cut")
CODE_FILE = "code.txt"


def run_demo(
    directory: Path,
    *,
    seeds: Sequence[int],
    overrides: Mapping[str, Any],
    n_workers: int,
    console: Console,
    fresh: bool = False,
) -> Outcome:
    """Train all arms, print the table and what it shows, and write ``report.html`` into `directory`.

    Runs that are there already, from the same code, are not trained again; interrupted ones go on.

    Parameters
    ----------
    directory : Path
    seeds : sequence of int
    overrides : mapping
        Values that replace those of the presets. With a `learning_rate` the choices on validation data are not used.
    n_workers : int
        Runs at a time.
    console : Console
    fresh : bool
        Train everything anew.
    """
    start = time.perf_counter()
    forget_other_code(directory, everything=fresh)
    jobs, choices = plan(seeds, overrides)
    console.print(
        f"{len(jobs)} runs of {jobs[0].config.steps:,} steps, {n_workers} at a time; the results go to {directory}",
        highlight=False,
    )
    with RunProgress(console) as progress:
        results = run_jobs(jobs, directory, n_workers=n_workers, progress=progress)
    outcome = compare(results, choices, time.perf_counter() - start)
    report = directory / "report.html"
    write_report(outcome, report)
    console.print(make_table(outcome.arms, title="Digits as sequences of 64 pixels"))
    text = findings(outcome.full, outcome.pairs) | {"Learning rates, by validation accuracy": list(outcome.choices)}
    for heading, sentences in text.items():
        console.print(heading, style="bold", highlight=False)
        for sentence in sentences:
            console.print(Padding(f"- {sentence}", (0, 0, 0, 2)), highlight=False)
    console.print(f"All {len(outcome.runs)} runs together took {outcome.seconds:.0f} s.", highlight=False)
    console.print(f"Report: {report}   Results: {directory / RESULTS_FILE}", highlight=False, soft_wrap=True)
    return outcome


def plan(seeds: Sequence[int], overrides: Mapping[str, Any]) -> tuple[list[Job], tuple[str, ...]]:
    """Return the jobs of the demo, and how the learning rates were chosen, in words."""
    jobs: dict[str, Job] = {}
    words: dict[str, None] = {}  # an ordered set: presets share the full arm
    for preset in PRESETS:
        values = overridden(read_preset(preset), overrides)
        choice = None if "learning_rate" in overrides else read_choice(choice_path(preset))
        words |= dict.fromkeys(_choice_words(preset, choice, make_config({**values, "arm": "full"})))
        for seed in seeds:
            for arm in ("in_training", "full", "from_scratch"):
                rate = {} if choice is None else {"learning_rate": choice.arms[arm].learning_rate}
                config = make_config({**values, **rate, "arm": arm, "seed": seed})
                sizes_of = _key(preset, "in_training", seed) if arm == "from_scratch" else None
                job = Job(_key(preset, arm, seed), config, sizes_of, _label(config))
                jobs.setdefault(job.key, job)
    # The runs that others wait for come first.
    return sorted(jobs.values(), key=lambda job: ("in_training", "full", "from_scratch").index(job.config.arm)), tuple(
        words
    )


def compare(results: Mapping[str, RunResult], choices: tuple[str, ...], seconds: float) -> Outcome:
    """Gather the results of the jobs, which have their keys, into arms."""

    def arm(preset: str, name: str) -> ArmFigures:
        prefix = _key(preset, name, None)
        return make_arm([result for key, result in results.items() if key.startswith(prefix)])

    pairs = tuple((arm(preset, "in_training"), arm(preset, "from_scratch")) for preset in PRESETS)
    return Outcome(arm(PRESETS[0], "full"), pairs, choices, seconds)


def forget_other_code(directory: Path, *, everything: bool) -> None:
    """Remove the demo's own runs from `directory` if other code wrote them, or all of them."""
    marker = directory / CODE_FILE
    code = f"{provenance.code_digest()}\n"
    if everything or not marker.is_file() or marker.read_text(encoding="utf-8") != code:
        (directory / RESULTS_FILE).unlink(missing_ok=True)
        for pattern in ("*/checkpoint.safetensors", "*/best.safetensors"):
            for path in directory.glob(pattern):
                shutil.rmtree(path.parent, ignore_errors=True)
    directory.mkdir(parents=True, exist_ok=True)
    marker.write_text(code, encoding="utf-8")


def _key(preset: str, arm: str, seed: int | None) -> str:
    """Return the key of a job; with no seed, what the keys of the arm begin with. Presets share the full arm."""
    assert arm in ARMS
    group = PRESETS[0] if arm == "full" else preset
    return f"{group}/{arm}/" + ("" if seed is None else str(seed))


def _label(config: RunConfig) -> str:
    if config.arm == "full":
        return ""
    return f" (tau {config.tau:g})" if config.tau is not None else f" ({config.order} states)"


def _choice_words(preset: str, choice: Choice | None, config: RunConfig) -> list[str]:
    if choice is None:
        return [f"One learning rate, {config.learning_rate:g}, was given to every arm; nothing was chosen."]
    arms = ARMS if preset == PRESETS[0] else tuple(arm for arm in ARMS if arm != "full")  # presets share the full arm
    seeds = _listed(choice.seeds)
    words = [f"{line} ({rule_words(config)}; seeds {seeds})" for line in describe_choice(choice, arms)]
    differing = choice.differing_settings(config)
    if differing:
        changes = ", ".join(f"{key} {then} then, {now} now" for key, (then, now) in differing.items())
        words.append(f"The rates of {preset} were chosen with other settings ({changes}).")
    return words


def _listed(values: Sequence[int]) -> str:
    return " ".join(str(value) for value in values)
