"""The report of a comparison: one HTML file that needs nothing else."""

from __future__ import annotations

from pathlib import Path

import jinja2
from matplotlib.figure import Figure

from hsv_torch.report import figure_to_svg, write_html
from paper_repro import figures
from paper_repro.comparison import Outcome, findings, rule_words
from paper_repro.progress import run_name
from paper_repro.results import RunResult, write_atomically

COMPRESSION_FILE = "compression.html"


def write_report(outcome: Outcome, path: Path) -> None:
    """Write the report of `outcome` to `path`: table, findings, pictures, and where the numbers come from.

    Every run that was cut gets the history of its compression as a page in its own folder.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("paper_repro"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    first, cut = outcome.full.runs[0], outcome.pairs[0][0].runs[0]
    page = environment.get_template("report.html").render(
        outcome=outcome,
        rows=[arm.cells() for arm in outcome.arms],
        findings=findings(outcome.full, outcome.pairs),
        config=first.config,
        provenance=cut.provenance,
        commits=sorted({commit or "no repository" for run in outcome.runs for commit in run.provenance.commits}),
        figures=[
            (title, caption, figure_to_svg(figure, prefix=f"picture{number}"))
            for number, (title, caption, figure) in enumerate(_figures(outcome, first, cut))
        ],
    )
    write_atomically(page.encode(), path)
    for run in outcome.runs:
        history = run.compression()
        if history is not None:
            write_html(history, path.parent / run.run_id / COMPRESSION_FILE, title=run_name(run.config))


def _figures(outcome: Outcome, full: RunResult, cut: RunResult) -> list[tuple[str, str, Figure]]:
    """Return title, caption and drawing of every picture."""
    seed = cut.config.seed
    return [
        (
            "Accuracy against states",
            "Test accuracy of every run (hollow) and the mean of every arm (filled), over the states that a layer ends with.",
            figures.accuracy_against_states(outcome.arms),
        ),
        (
            "States over steps",
            "Every run; the arms from scratch begin with the sizes that the cut ones end with.",
            figures.states_over_steps(outcome.arms),
        ),
        (
            f"Hankel spectra at the attempts (seed {seed})",
            f"What each attempt found, {rule_words(cut.config)}; thick: what it kept.",
            figures.spectra_at_attempts(cut),
        ),
        (
            f"Hankel spectra of a run that is cut (seed {seed})",
            f"Singular values of the layer every {cut.config.evaluate_every} steps, on a logarithmic axis.",
            figures.spectra_over_training(cut),
        ),
        (
            f"Hankel spectra of the full model (seed {full.config.seed})",
            "The same without a cut: what training itself does to the spectrum.",
            figures.spectra_over_training(full),
        ),
        (
            "Validation accuracy over steps",
            "Every run. The best checkpoint is chosen here, after the window of the cuts; the test set is seen once, at the end.",
            figures.validation_over_steps(outcome.arms),
        ),
    ]
