"""The report's curve of a many-shot attack."""

from salign.evaluation.under_attack import num_shots
from salign.report.figures import Plot, make_figure, make_line
from salign.report.record import RunRecord


def attack_curve(record: RunRecord) -> Plot | None:
    """Draws how likely the inconsiderate answer is after more and more examples of such; None where it is unknown."""
    found = {
        model: {k: figures[task] for task in figures if (k := _shots_of(task)) is not None}
        for model, figures in record.evaluation.items()
    }
    lines = [(model, sorted(by.items())) for model, by in found.items() if by]
    if not lines:
        return None
    return Plot(
        "attack-shots",
        "Many-shot attack",
        "Negative log-likelihood of the inconsiderate answer, in nats a token, after k examples: lower is more likely.",
        "; ".join(f"{model}: {by[0][1].mean:.3f} to {by[-1][1].mean:.3f}" for model, by in lines) + ".",
        make_figure(
            [
                make_line(model, [k for k, _ in by], [one.mean for _, one in by], n)
                for n, (model, by) in enumerate(lines)
            ],
            "examples",
            "nats a token",
        ),
        ("model", "examples", "mean", "low", "high", "n"),
        [[model, k, one.mean, one.low, one.high, one.n] for model, by in lines for k, one in by],
    )


def _shots_of(task: str) -> int | None:
    benchmark, _, metric = task.partition("/")
    return num_shots(benchmark) if metric == "unsafe_nll" else None
