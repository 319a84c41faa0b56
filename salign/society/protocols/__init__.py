"""The ways in which agents may interact, by the kind that a config names."""

from typing import Any

from salign.config import SocietySection
from salign.society.protocols.back_scatter import BackScatter
from salign.society.protocols.base import Protocol
from salign.society.protocols.critics import Critics
from salign.society.protocols.deliberation import Deliberation
from salign.society.protocols.dialogue import Dialogue
from salign.society.protocols.feed import Feed
from salign.society.protocols.game import Game
from salign.society.protocols.norms import Norms
from salign.society.protocols.rehearsal import Rehearsal
from salign.society.protocols.relay import Relay
from salign.society.protocols.sample import Sample

PROTOCOLS: dict[str, type[Protocol[Any]]] = {
    "back_scatter": BackScatter,
    "critics": Critics,
    "feed": Feed,
    "norms": Norms,
    "rehearsal": Rehearsal,
    "deliberation": Deliberation,
    "dialogue": Dialogue,
    "game": Game,
    "relay": Relay,
    "sample": Sample,
}


def protocol_of(society: SocietySection) -> Protocol[Any]:
    """The protocol of a society."""
    return PROTOCOLS[society.protocol.kind](society, society.protocol)
