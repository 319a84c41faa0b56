"""What is shown of shards whose engine answers nobody."""

import time

from salign.plan import Unit
from salign.tracking.metrics import WAITING_S, MetricsLog
from salign.tracking.progress import reached, waits, watch_simulation


def test_shards_that_wait_say_since_when(tmp_path, monkeypatch):
    monkeypatch.setattr("salign.tracking.metrics.time.time", lambda: 100_000.0)
    shards = [Unit("simulate", str(number), tmp_path / str(number)) for number in range(3)]
    for shard, waited in zip(shards, (0.0, 60.0, 30.0), strict=True):
        with MetricsLog(shard.folder / "metrics.jsonl") as log:
            log.log({"sim/calls": 7, "sim/calls_most": 9, WAITING_S: 120.0})
            log.log({"sim/calls": 8, WAITING_S: waited})
    since = time.strftime("%H:%M:%S", time.localtime(100_000 - 60))
    assert waits(shards) == f"2 of 3 waiting for the engine since {since}"
    assert reached(watch_simulation(shards))[2].startswith(waits(shards))
    assert waits(shards[1:2]) == f"waiting for the engine since {since}"
    assert waits(shards[:1]) == ""
