"""The report's figures of attacks: the curve of a many-shot attack, and refusals by family."""

from salign.evaluation.jailbreaks import FAMILIES, refused_of
from salign.evaluation.under_attack import num_shots
from salign.report.figures import Plot, make_arms, make_figure, make_line
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


def is_by_family(task: str) -> bool:
    """Whether a figure of the evaluation is of the refusals under the attacks of one family."""
    return task.startswith(f"hh_a/{refused_of('')}")


def refusals_by_family(record: RunRecord) -> Plot | None:
    """Draws how often models refuse HH's questions, as they are and in the ways of each family; None where unknown."""
    names = {"no attack": "hh/refused", **{family: f"hh_a/{refused_of(family)}" for family in FAMILIES}}
    lines = [
        (model, [(name, figures[task]) for name, task in names.items() if task in figures])
        for model, figures in record.evaluation.items()
        if any(map(is_by_family, figures))
    ]
    if not lines:
        return None
    return Plot(
        "attack-refusals",
        "Refusals under attack",
        "The share of HH's questions that a model refuses, by family of attack, with 95 % intervals. Refusing is right "
        "for some of these questions and wrong for others: look at how far an attack moves a model.",
        "; ".join(f"{model}: {', '.join(f'{name} {one.mean:.0%}' for name, one in by)}" for model, by in lines) + ".",
        make_figure(
            [
                make_line(
                    model,
                    [name for name, _ in by],
                    [one.mean for _, one in by],
                    number,
                    mode="markers",
                    error_y=make_arms([(one.low, one.mean, one.high) for _, one in by]),
                )
                for number, (model, by) in enumerate(lines)
            ],
            "",
            "share refused",
            yaxis={"range": [-0.02, 1.02]},
            scattermode="group",
        ),
        ("model", "attack", "mean", "low", "high", "n"),
        [[model, name, one.mean, one.low, one.high, one.n] for model, by in lines for name, one in by],
    )
