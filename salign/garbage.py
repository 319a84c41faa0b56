"""How often Python looks for cyclic garbage, where millions of objects come and go without making any."""

import contextlib
import gc
from collections.abc import Iterator

# Objects that may be allocated (some MB) before cyclic garbage is looked for. 100 calls of a society leave 10 objects
# in cycles, and reading interactions leaves none; all others are freed by their reference counts.
_NUM_OBJECTS = 50_000


@contextlib.contextmanager
def rare_collections() -> Iterator[None]:
    """Collects cyclic garbage rarely: at the interpreter's default, every 700 objects, it takes a tenth of the time."""
    before = gc.get_threshold()
    gc.set_threshold(_NUM_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
