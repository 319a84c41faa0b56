"""The report's figures of surveys, interventions and profiles."""

from salign.report.figures import Plot, by_round, make_figure, make_line, round_axis
from salign.report.record import RunRecord
from salign.society.studies import SURVEY
from salign.tracking.metrics import mean

MAX_ATTRIBUTES = 12
"""Attributes that are drawn, of those that tell agents apart."""


def opinions(record: RunRecord) -> Plot | None:
    """The answers to the survey, by round."""
    survey = record.config.society.survey
    if not record.paths or survey is None:
        return None
    lines = []
    for question in survey.questions:
        means, spreads = (
            by_round(record.paths, mean, f"sim/{SURVEY}_{question.name}_{what}") for what in ("mean", "sd")
        )
        there = [number for number, value in enumerate(means) if value is not None]
        asked, after = [means[number] for number in there], [number + 1 for number in there]
        lines.append((question, after, asked, [spreads[number] for number in there]))
    traces = [
        make_line(question.name, after, asked, number) for number, (question, after, asked, _) in enumerate(lines)
    ]
    begun = "".join(f" From round {one.from_round} on: {one.name}." for one in record.config.society.interventions)
    return Plot(
        "opinions",
        "What agents answer to the survey",
        f"Means over all who were asked, in all worlds that reached a round, each on its own scale.{begun}",
        "; ".join(
            f"{question.name} (from {question.scale_in_words}): "
            f"{_number(asked[0] if asked else None)} at first, {_number(asked[-1] if asked else None)} at last"
            for question, _, asked, _ in lines
        )
        + ".",
        make_figure(traces, "round", "mean answer", xaxis=round_axis(range(1, len(means) + 1))),
        ("question", "round", "mean answer", "standard deviation"),
        [
            [question.name, *row]
            for question, after, asked, spreads in lines
            for row in zip(after, asked, spreads, strict=True)
        ],
    )


def by_attributes(record: RunRecord) -> list[Plot]:
    """Ratings of the outcome by each attribute of who says it, a line for each value."""
    if record.society is None:
        return []
    found, criterion, role = record.society.by_attribute, record.society.criteria[0], record.society.observed[-1]
    plots = []
    for number, name in enumerate(list(found.groups)[:MAX_ATTRIBUTES]):
        rows = [
            (value, round_, int(num), total / num)
            for (other, value, round_), (num, total) in sorted(found.sums.items())
            if other == name
        ]
        if not rows:
            continue
        by_value: dict[str, list[tuple[int, float]]] = {}
        for value, round_, _, rating in rows:
            by_value.setdefault(value, []).append((round_, rating))
        traces = [
            make_line(value, [x for x, _ in points], [y for _, y in points], line)
            for line, (value, points) in enumerate(by_value.items())
        ]
        words = "; ".join(
            f"{value}: {points[0][1]:.2f} at first, {points[-1][1]:.2f} at last" for value, points in by_value.items()
        )
        rounds = sorted({round_ for _, round_, *_ in rows})
        plots.append(
            Plot(
                f"attribute-{number}",
                f"By {name}",
                f"Mean {criterion} of the {role}s of agents of each {name}; what else goes with it may be the reason.",
                words + ".",
                make_figure(traces, "round", criterion, xaxis=round_axis(rounds)),
                (name, "round", "ratings", criterion),
                [list(row) for row in rows],
            )
        )
    return plots


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"
