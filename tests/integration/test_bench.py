"""Benches that are no part of the tests' own measurements still run."""

import pytest

from salign.bench import protocols
from salign.society.protocols import PROTOCOLS

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("kind", PROTOCOLS)
def test_every_protocol_is_measured(kind):
    said: list[str] = []
    [figure] = protocols.measure([kind], said.append, num_rounds=1)
    assert said == [kind]
    assert figure.name.startswith(f"{kind}: ")
    assert figure.value is not None
    assert figure.value > 0
