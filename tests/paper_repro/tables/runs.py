"""Results that no run has made, for tests of what is made of results."""

from paper_repro.results import Evaluation, Provenance, RunResult, Spectrum, States, Timing
from paper_repro.tables.graph import ordered
from paper_repro.workers import resolved

SECONDS = {"full": 20.0, "in_training": 10.0, "from_scratch": 8.0, "regularised": 400.0}


def made_result(config, accuracy, *, states_after=None, device="a machine", earlier=0.0):
    before = config.states_of_blocks
    cut = config.arm in ("in_training", "post_training", "regularised")
    after = states_after or (config.orders_of_blocks if cut else None) or before
    layers = [f"blocks.{number}.layer" for number in range(config.n_blocks)]
    spectra = [
        Spectrum(step=step, layer=layer, values=tuple(1.23456789 / k for k in range(1, 1 + count)))
        for step in range(0, config.steps + 1, max(1, config.steps // 30))
        for layer, count in zip(layers, before if step == 0 else after, strict=True)
    ]
    seconds = SECONDS.get(config.arm, 12.0)
    return RunResult(
        run_id=config.run_id,
        config=config,
        provenance=Provenance(
            commits=("abc",),
            code_digests=("d",),
            versions={"torch": "2"},
            device=device,
            threads=1,
            started="now",
            command="/some/where/paper_repro/__main__.py run methods --cpu",
        ),
        timing=Timing(
            warm_up=1.0,
            wall=seconds + 1,
            training=seconds,
            reductions=0.1,
            step_before=4e-3,
            step_after=2e-3 if after != before else 4e-3,
            earlier=earlier,
        ),
        states_before=before,
        states_after=after,
        n_parameters_before=1000,
        n_parameters_after=500,
        best=Evaluation(step=config.steps, accuracy=accuracy, loss=0.3),
        test_accuracy=accuracy,
        validations=(Evaluation(step=config.steps, accuracy=accuracy, loss=1 / 3),),
        states=(States(step=0, states=before), States(step=config.steps, states=after)),
        spectra=tuple(spectra),
        history=None,
    )


def accuracy_of(job):
    """The arm decides, and the seed a little."""
    base = {"full": 0.95, "in_training": 0.94, "from_scratch": 0.9}.get(job.config.arm, 0.92)
    return base + 0.002 * job.config.seed


def made_results(jobs, accuracy=accuracy_of):
    """Return a result for each job, by key."""
    results = {}
    for job in ordered(jobs):
        config = resolved(job, results)
        after = (17,) * config.n_blocks if config.arm == "in_training" and config.tau else None
        earlier = 20.0 if job.starts_from else 0.0
        results[job.key] = made_result(config, accuracy(job), states_after=after, earlier=earlier)
    return results
