"""What the worlds of a shard have in common, and how a world goes on in some of its rounds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from salign.config import SocietySection
from salign.records import Profile
from salign.society.calls import Speaker
from salign.society.memory import QuestionTable
from salign.society.prompts import Wording
from salign.society.protocols import protocol_of
from salign.society.sources import Choices, Exemplar, Label
from salign.society.studies import Studies


@dataclass(frozen=True)
class Setting:
    """What the worlds of a shard have in common.

    `num_questions` questions of the table, from its start, are asked; `speakers` are the run's engine, then one for
    each part of a mixed society; the first of them observes, unless there is an `observer`. `choices` are those of the
    questions that have some.
    """

    society: SocietySection
    seed: int
    table: QuestionTable
    num_questions: int
    prior: Sequence[Exemplar]
    speakers: Sequence[Speaker]
    observer: Speaker | None = None
    choices: Mapping[str, Choices] = field(default_factory=dict)
    profiles: Sequence[Profile] = ()
    before: "tuple[Setting, int] | None" = None
    """That of another run, which holds until a round: this one begins after it (`society.branch`)."""


class Phase:
    """How a world goes on in some of its rounds."""

    def __init__(self, setting: Setting, labels: Sequence[Label], number: int) -> None:
        self.setting = setting
        self.wording = Wording(setting.society)
        self.protocol = protocol_of(setting.society)
        self.studies = Studies(setting.society, labels, setting.speakers, setting.seed, number)
