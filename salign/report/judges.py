"""The report's figure of how those who rate see the models of a run's generations."""

from salign.report.figures import Plot, long_rows, make_figure, make_line, round_axis
from salign.report.record import RunRecord


def by_generation(record: RunRecord) -> list[Plot]:
    """Draws how each who rates sees the models of the generations."""
    table = record.generations
    curves = {} if table is None else {who: values for who, values in table.curves.items() if any(values)}
    if not curves:
        return []
    models = list(range(max(map(len, curves.values()))))
    lines = [(who, models[: len(values)], values) for who, values in curves.items()]
    traces = [make_line(who, x, y, number) for number, (who, x, y) in enumerate(lines)]
    words = "; ".join(
        f"{who} from {there[0]:.3g} to {there[-1]:.3g}"
        for who, _, values in lines
        for there in [[value for value in values if value is not None]]
    )
    return [
        Plot(
            "generations-ratings",
            "Ratings of the models, by who rates",
            "Means, 1 to 7. A model that is trained on a judge's ratings comes to please that judge: where its line "
            "rises, and that of a judge on whose ratings nothing was trained does not, believe the second.",
            words + ".",
            make_figure(traces, "trained for so many generations", "mean rating", xaxis=round_axis(models)),
            ("who", "generations", "mean rating"),
            long_rows(lines),
            shape="wide",
        )
    ]
