"""Seeds that say where they are from."""

from salign.seeds import derive, rng


def test_a_seed_is_the_same_on_every_machine():
    assert derive(0, 3, 1, 42, "draft", 0) == 2075662107


def test_a_seed_has_31_bits():
    seeds = [derive(0, number) for number in range(2000)]
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert max(seeds) > 2**30


def test_parts_of_a_seed_do_not_run_together():
    assert len({derive(1, 23), derive(12, 3), derive(123), derive("1", "2", "3")}) == 4


def test_generators_of_one_place_draw_the_same():
    assert rng(1, "a").random() == rng(1, "a").random()
    assert rng(1, "a").random() != rng(1, "b").random()
