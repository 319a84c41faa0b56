"""The gate before an engine, against simulated engines in virtual time."""

import asyncio
import random
import selectors
import statistics

import pytest

from salign.engines.gate import Gate

# --- virtual time --------------------------------------------------------------------------------


class VirtualTime(selectors.SelectSelector):
    """Whoever would wait finds that the time has come."""

    now = 0.0

    def select(self, timeout=None):
        assert timeout is not None, "everybody waits, and nobody for the clock"
        self.now += max(timeout, 0.0)
        return super().select(0)


def virtually(coroutine):
    """Runs a coroutine in a loop whose clock leaps from event to event."""
    selector = VirtualTime()

    def loop_factory():
        loop = asyncio.SelectorEventLoop(selector)
        loop.time = lambda: selector.now
        return loop

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(coroutine)


class Load:
    """Workers that make calls through a gate, and what came of it."""

    def __init__(self, gate: Gate):
        self.gate = gate
        self.limits: list[int] = []
        self.num_done = 0

    async def work(self, call, num_workers: int, seconds: float, tokens=lambda: 45):
        """Calls without a break; `call(tokens)` is the engine."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds

        async def worker():
            while loop.time() < end:
                await self.gate.enter()
                start, asked = loop.time(), tokens()
                await call(asked)
                self.gate.leave(loop.time() - start, asked)
                self.num_done += 1
                self.limits.append(self.gate.limit)

        await asyncio.gather(*(worker() for _ in range(num_workers)))


class Refusing:
    """Takes `capacity` calls of 1 s (noisy) at a time and answers 429 to others, which come back after a pause."""

    def __init__(self, gate: Gate, capacity: int):
        self.gate = gate
        self.capacity = capacity
        self.in_flight = self.most_tries = self.num_served = 0
        self.rng = random.Random(1)

    async def call(self, tokens):
        for tried in range(100):
            self.most_tries = max(self.most_tries, tried + 1)
            if self.in_flight < self.capacity:
                self.in_flight += 1
                await asyncio.sleep(self.rng.lognormvariate(0, 0.6))
                self.in_flight -= 1
                self.num_served += 1
                return
            self.gate.pushed_back()
            await asyncio.sleep(min(0.75 * 2**tried, 8) * (1 - 0.2 * self.rng.random()))
        raise AssertionError


class Queueing:
    """A queue before `capacity` slots; a token takes 20 ms."""

    def __init__(self, capacity: int, sigma: float = 0.3):
        self.slots = asyncio.Semaphore(capacity)
        self.rng = random.Random(2)
        self.sigma = sigma

    async def call(self, tokens):
        async with self.slots:
            await asyncio.sleep(tokens * 0.02 * self.rng.lognormvariate(0, self.sigma))


def lengths(seed=3):
    rng = random.Random(seed)
    return lambda: max(4, min(256, int(rng.lognormvariate(3.8, 0.6))))


# --- adapting ------------------------------------------------------------------------------------


def test_the_limit_rises_by_one_after_as_many_good_calls_as_it_is():
    async def run():
        gate = Gate(8, adaptive=True)
        for _ in range(8):
            await gate.enter()
        gate.pushed_back()
        for _ in range(8):
            gate.leave(1.0, 45)
        limits = [gate.limit]
        for _ in range(limits[0]):
            await gate.enter()
        while gate.limit < limits[0] + 2:
            gate.leave(1.0, 45)
            limits.append(gate.limit)
            await gate.enter()
        return limits

    first, *others = virtually(run())
    assert 1 < first < 8
    assert others == [*[first] * (first - 1), *[first + 1] * (first + 1), first + 2]


def test_refusals_settle_the_limit_at_what_the_engine_takes():
    async def run():
        gate = Gate(256, adaptive=True)
        load = Load(gate)
        engine = Refusing(gate, 20)
        await load.work(engine.call, 300, 120.0)
        load.limits.clear()
        engine.num_served, start = 0, asyncio.get_running_loop().time()
        await load.work(engine.call, 300, 600.0)
        seconds = asyncio.get_running_loop().time() - start
        return load, engine, engine.num_served / seconds

    load, engine, served_per_s = virtually(run())
    assert min(load.limits) >= 10
    assert max(load.limits) <= 30
    mean_s = 1.2  # exp(0.6**2 / 2)
    assert served_per_s > 0.7 * engine.capacity / mean_s
    assert load.gate.num_pushbacks > 0


def test_the_limit_comes_back_when_refusals_end():
    async def run():
        gate = Gate(64, adaptive=True)
        load = Load(gate)
        engine = Refusing(gate, 8)
        await load.work(engine.call, 80, 60.0)
        low, engine.capacity = gate.limit, 1000
        await load.work(engine.call, 80, 300.0)
        return low, gate.limit

    low, late = virtually(run())
    assert low <= 16
    assert late == 64


def test_calls_of_one_round_trip_lower_the_limit_once():
    async def run():
        gate = Gate(100, adaptive=True)
        for _ in range(100):
            await gate.enter()
        for _ in range(100):
            gate.pushed_back()
        assert (gate.limit, gate.num_pushbacks) == (70, 100)
        for _ in range(60):
            gate.leave(1.0, 10)
        gate.pushed_back()
        gate.pushed_back()
        assert gate.limit == 49

    virtually(run())


def test_a_limit_of_one_is_the_least_and_comes_back():
    async def run():
        gate = Gate(4, adaptive=True)
        for _ in range(20):
            gate.pushed_back()
        assert gate.limit == 1
        for _ in range(1 + 2 + 3):
            await gate.enter()
            gate.leave(1.0, 10)
        assert gate.limit > 1

    virtually(run())


def test_few_calls_do_not_raise_the_limit():
    async def run():
        gate = Gate(256, adaptive=True)
        for _ in range(6):
            gate.pushed_back()
        low = gate.limit
        assert 10 < low < 40
        for _ in range(5000):
            await gate.enter()
            gate.leave(1.0, 10)
        assert gate.limit == low

    virtually(run())


@pytest.mark.slow
@pytest.mark.parametrize("most", [8, 32, 256])
@pytest.mark.parametrize("seed", range(2))
def test_steady_noise_lowers_nothing(most, seed):
    async def run():
        gate = Gate(most, adaptive=True)
        load = Load(gate)
        rng, length = random.Random(seed), lengths(seed)
        await load.work(
            lambda tokens: asyncio.sleep(tokens * 0.02 * rng.lognormvariate(0, 0.6)), most, 25_000 / most, length
        )
        return load

    load = virtually(run())
    assert load.num_done > 12_000
    assert statistics.fmean(limit == most for limit in load.limits) > 0.99
    assert min(load.limits) >= 0.85 * most


def test_phases_of_short_and_long_calls_lower_nothing():
    """A rating is nearly all prompt: its one token takes 20 times as long as one of many."""

    async def run():
        gate = Gate(64, adaptive=True)
        load = Load(gate)
        for _ in range(5):
            await load.work(lambda tokens: asyncio.sleep(0.4 + 0.02 * tokens), 64, 60.0, lengths())
            await load.work(lambda tokens: asyncio.sleep(0.4 + 0.02 * tokens), 64, 60.0, lambda: 1)
        return load

    assert min(virtually(run()).limits) == 64


def test_latency_that_rises_with_the_calls_lowers_the_limit():
    async def run():
        gate = Gate(256, adaptive=True)
        load = Load(gate)
        engine = Queueing(16)
        await load.work(engine.call, 16, 400.0, lengths())  # as fast as it can be
        assert gate.limit == 256
        load.num_done = 0
        start = asyncio.get_running_loop().time()
        await load.work(engine.call, 256, 600.0, lengths())
        return load, load.num_done / (asyncio.get_running_loop().time() - start)

    load, calls_per_s = virtually(run())
    assert 16 <= min(load.limits) < 100
    assert calls_per_s > 0.9 * 16 / (0.02 * 53)  # the engine is busy all the time


def test_latency_stops_at_a_sixteenth():
    async def run():
        gate = Gate(256, adaptive=True)
        seconds = 1.0
        for _ in range(2000):
            await gate.enter()
            gate.leave(seconds, 10)
        for _ in range(60_000):
            seconds *= 1.001  # without an end
            await gate.enter()
            gate.leave(min(seconds, 1e300), 10)
        return gate.limit

    assert virtually(run()) == 16


def test_a_gate_that_does_not_adapt_stays():
    async def run():
        gate = Gate(40, adaptive=False)
        load = Load(gate)
        engine = Refusing(gate, 20)
        await load.work(engine.call, 80, 60.0)
        return load

    load = virtually(run())
    assert set(load.limits) == {40}
    assert load.gate.num_pushbacks > 0


# --- slots ---------------------------------------------------------------------------------------


def test_a_free_slot_is_had_without_suspending():
    gate = Gate(2, adaptive=True)
    for number in (1, 2):
        with pytest.raises(StopIteration):  # ran to its end, and no loop was needed
            gate.enter((5,)).send(None)
        assert gate.in_flight == number


def test_the_bound_holds():
    async def run():
        gate, most, now = Gate(7, adaptive=True), 0, 0

        async def call(number):
            nonlocal most, now
            await gate.enter((number % 3,))
            now += 1
            most = max(most, now)
            assert gate.in_flight <= 7
            await asyncio.sleep(number % 5)
            now -= 1
            gate.leave(1.0)

        await asyncio.gather(*map(call, range(200)))
        return most, gate.in_flight

    assert virtually(run()) == (7, 0)


def test_the_lowest_priority_goes_first_and_equals_in_their_order():
    async def run():
        gate, order = Gate(1, adaptive=False), []
        await gate.enter()

        async def call(priority, name):
            await gate.enter(priority)
            order.append(name)
            gate.leave(1.0)

        asked = [((2,), "a"), ((1, 5), "b"), ((1,), "c"), ((2,), "d"), ((1, 5), "e"), ((), "f")]
        calls = [asyncio.create_task(call(*one)) for one in asked]
        await asyncio.sleep(0)
        gate.leave(1.0)
        await asyncio.gather(*calls)
        return "".join(order)

    assert virtually(run()) == "fcbead"


def test_a_call_that_gives_up_waiting_keeps_no_slot():
    async def run():
        gate = Gate(1, adaptive=True)
        await gate.enter()
        waiting = [asyncio.create_task(gate.enter((number,))) for number in range(4)]
        await asyncio.sleep(0)
        waiting[0].cancel()  # waits still
        await asyncio.sleep(0)
        gate.leave(1.0)  # the slot is given to 1, which has not run yet
        assert gate.in_flight == 1
        waiting[1].cancel()
        done = await asyncio.gather(*waiting[:3], return_exceptions=True)
        assert [type(result) for result in done] == [asyncio.CancelledError, asyncio.CancelledError, type(None)]
        assert gate.in_flight == 1
        assert not waiting[3].done()
        gate.leave()
        await waiting[3]
        gate.leave()
        assert gate.in_flight == 0
        with pytest.raises(StopIteration):
            gate.enter().send(None)

    virtually(run())


def test_a_limit_that_rises_lets_in_who_waits():
    async def run():
        gate = Gate(10, adaptive=True)
        for _ in range(10):
            await gate.enter()
        gate.pushed_back()
        assert gate.limit == 7
        waiting = [asyncio.create_task(gate.enter()) for _ in range(500)]
        for _ in range(300):
            await asyncio.sleep(0)
            gate.leave(1.0, 10)
        assert gate.limit == 10
        assert gate.in_flight == 10
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    virtually(run())
