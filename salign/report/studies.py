"""The report's figures of surveys and interventions."""

from salign.report.figures import Plot, by_round, make_figure, make_line, round_axis
from salign.report.record import RunRecord
from salign.society.studies import SURVEY
from salign.tracking.metrics import mean


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


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"
