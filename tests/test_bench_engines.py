"""What `salign bench engines` measures beside the fleet: the counts exactly, each part in a run of a moment."""

import asyncio
import json
import random
from pathlib import Path

import pytest

from salign.bench import bare, engines
from salign.bench.bare import Bodies, Cost, Shape, ask, each, hold, over, over_llama, post, recording
from salign.bench.prefixes import figures_of, num_hit, prompts_of
from salign.bench.society import Bench
from salign.errors import ConfigError

MOCK = Path(__file__).parent / "integration" / "mock_engine.py"
TINY = {"topology": {"size": 2, "radius": 1}, "audience_size": 2, "max_rounds": 2, "observer_check": None}
SHAPE = Shape(TINY, slots=4, num_pairs=1, ms_per_token=0.1)


def begun_alike(one, other):
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def by_brute_force(prompts, block):
    """Each prompt against all before it: its longest beginning that was there, in whole blocks, never all of it."""
    hit = 0
    for number, prompt in enumerate(prompts):
        there = max((begun_alike(prompt, before) for before in prompts[:number]), default=0)
        hit += min(there, len(prompt) - 1) // block * block
    return hit


def drawn(seed, num=60):
    """Prompts that branch off from one another, of lengths that are multiples of a block and not."""
    draw = random.Random(seed)
    prompts = [[0, 1, 2]]
    for _ in range(num):
        begun = draw.choice(prompts)
        prompts.append(
            [*begun[: draw.randint(0, len(begun))], *(draw.randrange(3) for _ in range(draw.randint(1, 20)))]
        )
    return prompts


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("block", [1, 4, 16])
def test_hits_are_those_of_a_comparison_with_every_earlier_prompt(seed, block):
    prompts = drawn(seed)
    found = num_hit(prompts, block)
    assert found == by_brute_force(prompts, block)
    assert block == 16 or found > 0
    everything = sum(map(len, prompts))
    assert found == num_hit(prompts, block, everything)  # a bound that is never reached changes nothing


def test_without_a_bound_every_order_hits_the_same():
    prompts = [tuple(prompt) for prompt in drawn(7)]
    assert num_hit(prompts, 1) - num_hit(sorted(prompts), 1) == pytest.approx(0, abs=len(prompts))  # a prompt's last
    longer = [(*prompt, 99, number) for number, prompt in enumerate(prompts)]  # no prompt is another's beginning
    assert num_hit(longer, 1) == num_hit(sorted(longer), 1) == num_hit(longer[::-1], 1)


def test_of_a_full_cache_what_was_used_longest_ago_goes_first_and_of_one_prompt_its_end():
    a, b, c = ([n, n, n, n, 9] for n in (1, 2, 3))  # two blocks of 2 each
    assert num_hit([a, b, a], 2, 4) == 4
    assert num_hit([a, b, c, a], 2, 4) == 0
    assert num_hit([a, b, a, c, a], 2, 4) == 4 + 4  # `a` was used after `b`
    assert num_hit([a, b, a], 2, 3) == 2  # one block had to go: the second of `a`
    assert num_hit([a, a], 2, 1) == 2
    assert num_hit([[1, 1], [1, 1]], 2) == 0  # the last token of a prompt is computed
    assert num_hit([], 2) == 0


def test_prompts_in_turn_lose_a_small_cache_that_the_best_order_would_use():
    """Two families of prompts that come in turn; the cache has room for one of them."""
    families = [[[family] * 65_536 + [n] for n in range(3)] for family in (1, 2)]
    in_turn = [prompt for pair in zip(*families, strict=True) for prompt in pair]
    free, large, small = figures_of(in_turn)
    assert free.value == 1.0
    assert large.value == 1.0
    assert small.value == 0.0
    assert "0.000 and 0.667 of 393,222 tokens in 6 prompts" in small.note
    assert "by single tokens 0.667" in free.note
    [figure, *_] = figures_of([[1], [2]])
    assert figure.value is None


def test_a_ratio_is_the_median_of_those_of_pairs():
    figure = over("ours over theirs", [(10.0, 20.0), (9.0, 10.0), (30.0, 40.0)], "calls/s", ">= 0.97", "; 7 calls")
    assert figure.value == pytest.approx(0.75)
    assert figure.note == "10.0 and 20.0 calls/s; ratios from 0.500 to 0.900; 7 calls"
    assert figure.to_reach == ">= 0.97"
    cost = Cost(num_calls=30, seconds=2.0, processor=0.5)
    assert (cost.rate, cost.rate_of_processor) == (15.0, 60.0)


@pytest.fixture(scope="module")
def bodies():
    """What a society of four sent to the mock engine."""
    found = Bodies(MOCK, SHAPE)
    assert found.sent
    return found


@pytest.mark.slow
def test_the_bare_client_and_ours_send_what_the_society_sent(bodies, tmp_path):
    with bodies.engine(0.0) as url:
        with recording(url) as (through, society):
            num_calls = hold(Bench(tmp_path), through, SHAPE).num_calls
        assert sorted(society[-num_calls:]) == sorted(bodies.sent)
        for send in (post, ask):
            with recording(url) as (through, sent):
                cost = asyncio.run(send(through, bodies.sent, 1))
            assert sent == bodies.sent
            assert cost.num_calls == len(sent)
            assert cost.seconds > 0
            assert cost.processor > 0


def test_items_are_sent_in_order_and_so_many_at_a_time():
    begun, in_flight, most = [], 0, 0

    async def send(item):
        nonlocal in_flight, most
        begun.append(item)
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(0)
        in_flight -= 1

    assert asyncio.run(each(range(10), 3, send)).num_calls == 10
    assert (begun, most) == (list(range(10)), 3)


def test_a_server_that_refuses_ends_the_bare_client(bodies):
    with bodies.engine(0.0) as url, pytest.raises(bare.aiohttp.ClientResponseError, match="404"):
        asyncio.run(post(f"{url}/nowhere", bodies.sent[:1], 1))


@pytest.mark.slow
@pytest.mark.parametrize("part", [bare.over_mock, bare.client])
def test_a_part_gives_a_ratio_and_the_two_rates(bodies, part):
    [figure] = part(bodies)
    assert figure.value > 0
    assert f"; {len(bodies.sent)} calls" in figure.note
    assert figure.to_reach.startswith(">= 0.")


@pytest.mark.slow
def test_prompts_are_read_in_the_model_s_template(bodies):
    pytest.importorskip("transformers")
    from salign.models import load_tokenizer

    try:
        tokenizer = load_tokenizer("smollm2-135m")
    except ConfigError as error:
        pytest.skip(f"the embedded model cannot be had here: {error}")
    [tokens] = prompts_of(bodies.sent[:1])
    assert json.loads(bodies.sent[0])["messages"][-1]["content"] in tokenizer.decode(tokens)
    free, *bounded = bare.prefixes(bodies)
    assert free.value == pytest.approx(1.0, abs=0.02)
    assert all(0 < figure.value <= 1.01 for figure in bounded)


@pytest.mark.integration
def test_llama_cpp_answers_the_society_and_the_bare_client(monkeypatch):
    pytest.importorskip("xllamacpp")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    one = {"criteria": [{"name": "alignment"}], "stopping": None}
    [figure] = over_llama(bare.LLAMA._replace(society={**bare.LLAMA.society, **one}, num_pairs=1))
    if figure.value is None:
        pytest.skip(figure.note)
    assert figure.value > 0
    assert "; 20 calls" in figure.note


def test_what_cannot_be_served_here_is_said(monkeypatch):
    def missing(*_):
        raise ConfigError("xllamacpp is not installed")

    monkeypatch.setattr(bare, "program_of", missing)
    [figure] = over_llama()
    assert (figure.value, figure.note) == (None, "xllamacpp is not installed")


def test_without_the_mock_engine_the_error_says_how_to_name_one(tmp_path):
    with pytest.raises(ConfigError, match=r"no mock engine .*nowhere\.py.*--mock-engine"):
        engines.measure(tmp_path / "nowhere.py", ["client"], lambda _: None)


def test_an_unknown_part_is_named():
    with pytest.raises(ConfigError, match=r"no part nothing .*fleet, society, llama, client, prefixes"):
        engines.measure(MOCK, ["nothing"], lambda _: None)
