"""When a world stops, and what its figures must meet to count."""

from pydantic import model_validator

from salign.config.base import Count, NotNegative, Positive, Section, Share, unless
from salign.config.sources import EverydaySource, Source


class Stopping(Section):
    """Stop once alignment x engagement is shown to gain less than `tolerance` from one window of rounds to the next.

    The gain is of the geometric mean of the criteria's mean ratings, each on a scale from 1 to 7. "Shown": even the
    upper end of its confidence interval is less. Where the data cannot show that, windows grow and the world continues.
    """

    tolerance: Positive = 0.3
    """Rating points that a window must gain over the one before for the world to continue."""
    window: Count = 10
    """Shortest window, in rounds; for longer windows `tolerance` grows in proportion."""
    min_rounds: Count = 20
    """The first round after which a world may stop."""
    criteria: tuple[str, ...] | None = None
    """The criteria whose product must rise for the world to continue; None: all that observers rate."""

    @model_validator(mode="after")
    def _possible(self) -> "Stopping":
        mistake = f"min_rounds {self.min_rounds} is less than two windows of {self.window} rounds: nothing to compare"
        return unless(self, [mistake] if self.min_rounds < 2 * self.window else [])


class Gates(Section):
    """What a shard must meet to count as done."""

    min_rated_share: Share = 0.8
    """Share of ratings that could be read."""
    max_failed_share: Share = 0.1
    """Share of interactions that failed."""
    max_refused_call_share: Share = 0.1
    """Share of calls that the engine refused."""
    max_repeated_share: Share = 0.5
    """Share of drafts and revisions that repeat one given to another question in the same round."""
    min_initial_recall_share: Share = 0.1
    """Share of first-round drafts that recall an initial memory; below it, populations make no difference.

    Ignored where agents start without memories.
    """
    min_digit_mass: Share = 0.5
    """Median probability of the digits before it is scaled to sum to 1. Below half, the model would rather
    say something else than a rating: one way of asking gave 0.075 and a mean rating of 1.6, a better one 0.94 and
    4.9."""
    min_rating_sd: NotNegative = 0.05
    """Standard deviation of the audience's ratings, and of the observers' by each criterion, where there are 20 or
    more; on a scale from 1 to 7, and on others in proportion. The default is a hundredth of the scale's width; the
    embedded model reaches 0.2 to 0.4."""
    max_flagged_share: Share = 0.2
    """Share of drafts, reasons and revisions that rate themselves, imitate a frame or control tokens, or repeat the
    prompt. Of 2,281 answers written by people and larger models, none rates itself
    or spells a control token."""
    max_cut_share: Share = 0.5
    """Share of drafts, reasons and revisions cut by max_tokens: they are never learnt as the best response."""


class ObserverCheck(Section):
    """Pairs of a good and a bad answer on which the observer is tested before a run relies on it.

    The first shard tests it for the run; the figures are in its `done.json` and in the report.
    """

    pairs: Source = EverydaySource(split="held_out")
    """A source with a good and a bad answer to each question."""
    num_pairs: Count = 36
    """How many of the pairs are used. With 36, a judge that is right in 7 of 10 is told from a coin in about 7 of 10
    runs."""
    min_agreement: Share | None = None
    """Below this share of pairs, the run fails. None: it warns and continues, since a run may study a weak observer,
    and the pairs may be about something else than the run."""
