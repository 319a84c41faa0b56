"""The simulation as real processes: however it is cut, killed, starved or lied to, the same bytes, paid for once."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from actors import audience_of, observed_of
from conftest import ROOT, environment, launch
from journals import files_of, records_of
from servers import MAX_IN_FLIGHT, Mock
from waits import HANG_S, wait_until

from salign import compose
from salign.blocks import read_blocks
from salign.cluster import status
from salign.manifest import create_run
from salign.markers import read_done, read_failure
from salign.records import read_interactions
from salign.run import RunDir
from salign.society.shard import run_shard

pytestmark = pytest.mark.integration

MPIEXEC = str(Path(sys.executable).parent / "mpiexec")

# Worlds that stop after different rounds, of few questions, where everybody always remembers something: what is
# remembered when shows.
EQUAL = {
    "max_recall_distance": 2.0,
    "num_worlds": 4,
    "max_rounds": 4,
    "audience_size": 3,
    "num_initial_memories": 6,
    "stopping": {"window": 1, "min_rounds": 2, "tolerance": 1.2},
    "observer_check": None,
}
CASES = {
    "grid": {"topology": {"kind": "grid", "size": 4}, "rating": "parse"},
    "small_world": {
        "topology": {"kind": "small_world", "num_agents": 16, "num_neighbours": 4, "rewired_share": 0.2},
        "rating": "logprob",
        "stopping": {"window": 1, "min_rounds": 2, "tolerance": 0.3},  # ratings by probabilities differ less
    },
    "complete": {"topology": {"kind": "complete", "num_agents": 12}, "rating": "parse", "populations": ["half_half"]},
}
# 486 calls: 2 worlds of 9 agents, 3 rounds, 9 calls an interaction.
SERVED = {
    "num_worlds": 2,
    "topology": {"kind": "grid", "size": 3},
    "max_rounds": 3,
    "audience_size": 3,
    "num_initial_memories": 6,
    "rating": "parse",
    "stopping": None,
    "observer_check": None,
}
NUM_CALLS = 486


# --- what the tests are made of ------------------------------------------------------------------


def env():
    found = environment()
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        found.pop(name, None)
        found.pop(name.upper(), None)
    return found


def prepare(folder, society, engine=None, cluster=None, name="run"):
    tree = {
        "run": {"root": str(folder), "name": name, "seed": 3},
        "engine": engine or {"kind": "scripted"},
        "society": society,
        "cluster": cluster or {},
        "tracking": {"wandb": False},
    }
    return create_run(compose.parse(tree, "test"))


def command(run, shard=0, ranks=1, words=()):
    mpi = [MPIEXEC, "-n", str(ranks)] if ranks > 1 else []
    return [*mpi, sys.executable, str(ROOT / "jobs" / "simulate.py"), str(run.path), "--shard", str(shard), *words]


def simulate(run, shard=0, ranks=1, words=()):
    return subprocess.run(
        command(run, shard, ranks, words), capture_output=True, text=True, timeout=HANG_S, env=env(), check=False
    )


def complete(run, **options):
    """Simulates a shard, which must succeed; its bytes."""
    done = simulate(run, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return interactions(run)


def interactions(run, shard=0):
    assert read_done(run.shard(shard)) is not None
    return (run.shard(shard) / "interactions.jsonl").read_bytes()


@contextlib.contextmanager
def started(run, ranks=1):
    """A shard that is being simulated; killed at the end, if it is still there."""
    process = subprocess.Popen(
        command(run, ranks=ranks), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env()
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
        process.communicate()


def digest(run):
    return status.digest(run, run.config())


def printed_digest(run):
    words = [sys.executable, str(ROOT / "jobs" / "status.py"), str(run.path), "--digest"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=HANG_S, env=env(), check=False)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.split()
    assert len(line) == 64
    return line


def records(run):
    """The whole records of a shard's journal, all writers'."""
    return records_of(run.shard(0))


def keys_of(run):
    return {key.hex() for key, _ in records(run)}


def said_once(text, *words):
    """One paragraph that names the error, and no traceback."""
    assert "Traceback" not in text, text
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    for word in words:
        assert word in line
    return line


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The bytes of the served society, of a shard that nothing disturbed."""
    with Mock() as mock:
        run = prepare(tmp_path_factory.mktemp("served"), SERVED, mock.section())
        content = complete(run)
        answered = mock.answered()
    assert content.count(b"\n") == 54
    assert len(answered) == NUM_CALLS
    assert {len(times) for times in answered.values()} == {1}
    assert answered.keys() == keys_of(run)
    return content


# --- one society, however it is run --------------------------------------------------------------


@pytest.fixture(scope="module")
def societies(tmp_path_factory):
    """The society section of each case."""
    path = tmp_path_factory.mktemp("questions") / "questions.txt"
    path.write_text("".join(f"What should I say to my {who}?\n" for who in ("sister", "boss", "friend", "child")))
    questions = {"kind": "text", "path": str(path)}
    return {case: {**EQUAL, "questions": questions, **society} for case, society in CASES.items()}


@pytest.fixture(scope="module")
def references(tmp_path_factory, societies):
    """The digest of each case as one shard of one process."""
    found = {}
    for case, society in societies.items():
        run = prepare(tmp_path_factory.mktemp(case), society)
        complete(run)
        found[case] = digest(run)
        assert printed_digest(run) == found[case]
        facts = read_done(run.shard(0)).facts
        assert len(set(facts["rounds"].values())) > 1, (
            "the worlds do not stop at different rounds: choose another tolerance"
        )
    assert len(set(found.values())) == len(CASES)
    return found


VARIANTS = {
    "4 shards": {"society": {"num_shards": 4}},
    "2 ranks": {"ranks": 2},
    "4 ranks": {"ranks": 4},
    "lockstep": {"society": {"schedule": "lockstep"}},
    "2 ranks, lockstep": {"ranks": 2, "society": {"schedule": "lockstep"}},
    "1 in flight": {"engine": {"kind": "scripted", "max_in_flight": 1}},
    "64 in flight, 5 alive": {"engine": {"kind": "scripted", "max_in_flight": 64}, "society": {"max_alive": 5}},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", CASES)
def test_the_same_society_has_the_same_digest_however_it_is_run(tmp_path, societies, references, case, variant):
    how = VARIANTS[variant]
    society = {**societies[case], **how.get("society", {})}
    ranks = how.get("ranks", 1)
    run = prepare(tmp_path, society, how.get("engine"), {"ranks_per_shard": ranks})
    for shard in range(society.get("num_shards", 1)):
        if ranks > 1:
            complete(run, shard=shard, ranks=ranks)
        else:  # one process is one here, too
            run_shard(run, run.config(), shard)
    assert digest(run) == references[case]
    if ranks > 1:
        assert len(files_of(run.shard(0))) == ranks


@pytest.mark.parametrize("case", CASES)
def test_a_killed_shard_goes_on_to_the_same_digest(tmp_path, societies, references, case):
    for number in range(10):  # the process may end before it is killed
        run = prepare(tmp_path, societies[case], name=f"run{number}")
        with started(run) as process:
            if wait_until(lambda run=run: len(records(run)) > 100, process):
                process.kill()
                process.wait()
        if read_done(run.shard(0)) is None:
            break
    assert not (run.shard(0) / "interactions.jsonl").exists()
    num_kept = len(records(run))
    assert num_kept > 100
    complete(run)
    assert digest(run) == references[case]
    assert read_done(run.shard(0)).facts["num_journaled_calls"] == num_kept


def test_a_replay_as_a_process_gives_the_same_digest(tmp_path, societies, references):
    run = prepare(tmp_path, societies["grid"], cluster={"ranks_per_shard": 2})
    complete(run, ranks=2)
    for path in (run.shard(0) / "interactions.jsonl", run.shard(0) / "done.json"):
        path.unlink()
    complete(run, words=["--replay"])  # by one process, from the journals of two
    assert digest(run) == references["grid"]


def test_a_digest_of_what_is_not_complete_is_refused(tmp_path, societies):
    run = prepare(tmp_path, {**societies["grid"], "num_shards": 2})
    complete(run, shard=0)
    words = [sys.executable, str(ROOT / "jobs" / "status.py"), str(run.path), "--digest"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=HANG_S, env=env(), check=False)
    assert (done.returncode, done.stdout) == (1, "")
    said_once(done.stderr, "shard 1", "is not complete", "--shard 1")


# --- killed ------------------------------------------------------------------------------------


def test_a_shard_killed_again_and_again_pays_for_no_call_twice_that_it_had_noted(tmp_path, served):
    """What may be paid for twice: calls that were in flight at a kill, so at most `max_in_flight` for each.

    A call whose record is in the journal is never asked again.
    """
    chance = random.Random(5)
    kills = []
    with Mock("--ms-per-call", 10) as mock:
        run = prepare(tmp_path, SERVED, mock.section())
        for _ in range(6):
            before = len(records(run))
            more = chance.randrange(1, 70)
            with started(run) as process:
                assert wait_until(lambda b=before, m=more: len(records(run)) >= b + m, process)
                time.sleep(chance.random() * 0.03)
                process.kill()
                process.wait()
            assert read_done(run.shard(0)) is None
            kills.append((keys_of(run), mock.answered()))
        assert complete(run) == served
        answered = mock.answered()
    assert len(answered) == NUM_CALLS
    for noted, then in kills:
        assert {key: then[key] for key in noted} == {key: answered[key] for key in noted}
    twice = {key: times for key, times in answered.items() if len(times) > 1}
    assert sum(len(times) - 1 for times in twice.values()) <= len(kills) * MAX_IN_FLIGHT
    # Each of them was on its way at a kill: answered, and not noted.
    assert twice.keys() <= {key for noted, then in kills for key in then.keys() - noted}
    assert keys_of(run) == answered.keys()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_a_shard_that_is_told_to_end_does_so_and_goes_on_later(tmp_path, served, number, code):
    with Mock("--ms-per-call", 20) as mock:
        run = prepare(tmp_path, SERVED, mock.section())
        with started(run) as process:
            assert wait_until(lambda: len(records(run)) > 40, process)
            process.send_signal(number)
            said, _ = process.communicate(timeout=HANG_S)
        assert process.returncode == code
        assert "Traceback" not in said
        assert "launch again to continue" in said
        assert read_done(run.shard(0)) is None
        assert read_failure(run.shard(0)) is None
        assert [path.name for path in files_of(run.shard(0))] == ["journal-00000.packed"]
        noted = keys_of(run)
        assert len(noted) > 40
        then = mock.answered()
        assert complete(run) == served
        answered = mock.answered()
    assert {key: then[key] for key in noted} == {key: answered[key] for key in noted}
    assert read_done(run.shard(0)).facts["num_journaled_calls"] == len(noted)


def test_a_shard_ends_when_told_even_where_no_call_ends(tmp_path):
    with Mock("--hang-every", 1) as mock:
        run = prepare(tmp_path, SERVED, mock.section())
        with started(run) as process:
            assert wait_until(lambda: mock.get("stats")["in_flight"] > 0, process)
            process.terminate()
            process.communicate(timeout=HANG_S)
    assert process.returncode == 143


# --- engines that misbehave ----------------------------------------------------------------------


def test_failures_and_hangs_are_bridged_and_unread_ratings_counted(tmp_path):
    society = {**SERVED, "num_worlds": 1, "max_rounds": 2}
    with Mock("--garble-every", 3) as mock:
        undisturbed = prepare(tmp_path, society, mock.section(), name="undisturbed")
        expected = complete(undisturbed)
    words = ("--fail-every", 7, "--garble-every", 3, "--hang-every", 50, "--ms-per-call", 2)
    with Mock(*words) as mock:
        run = prepare(tmp_path, society, mock.section(timeout_s=1, max_in_flight=64))
        assert complete(run) == expected
    facts = read_done(run.shard(0)).facts
    assert facts["num_calls"] > NUM_CALLS // 3  # ratings that were asked for again
    assert facts["num_pushbacks"] > 0
    assert 0 < facts["num_missing_ratings"] < 0.1 * facts["num_ratings"]
    held = list(read_interactions(run.shard(0) / "interactions.jsonl"))
    ratings = [item.rating for i in held for item in audience_of(i)]
    ratings += [
        rating
        for i in held
        for r in (observed_of(i, "draft"), observed_of(i, "revision"))
        for rating in (r.alignment, r.engagement)
    ]
    assert ratings.count(None) == facts["num_missing_ratings"]
    assert {rating for rating in ratings if rating is not None} <= {float(number) for number in range(1, 8)}


def test_an_answer_under_another_name_ends_the_shard_and_what_it_said_can_be_dropped(tmp_path, served):
    with Mock("--exchange-at", 200) as mock:
        run = prepare(tmp_path, SERVED, mock.section())
        done = simulate(run)
        assert done.returncode == 1
        said_once(
            done.stderr, "the answers of mock came as 'mock' (", "as 'other': the server must serve a single model"
        )
        again = simulate(run)
        assert (again.returncode, "came as 'mock'" in again.stderr) == (1, True)
        others = {key.hex() for key, row in records(run) if b'"other"' in row}
        assert 1 <= len(others) <= 3 * MAX_IN_FLIGHT
        kept = keys_of(run) - others
        mock.kill()
        mock.start()
        config = str(run.path / "config.yaml")
        nobody = launch(config, "--prepare", "--drop-answers-of=nobody", env=env())
        assert nobody.returncode == 2
        assert "no answer of what is not done came as 'nobody'; they came as 'mock', 'other'." in nobody.stderr
        dropped = launch(config, "--prepare", "--drop-answers-of=other", env=env())
        assert f"{len(others)} answers of other are dropped" in dropped.stdout, dropped.stderr
        assert keys_of(run) == kept
        assert complete(run) == served
        assert mock.answered().keys() == keys_of(run) - kept


def test_a_model_that_gives_no_ratings_fails_the_gate_with_figures(tmp_path):
    with Mock("--garble-every", 1) as mock:
        run = prepare(tmp_path, SERVED, mock.section())
        done = simulate(run)
    assert done.returncode == 1
    line = said_once(done.stderr, "shard 0 does not count as done", "0.0% of ", "society.gates.min_rated_share = 80.0%")
    assert "54 of 54 interactions failed" in line
    assert "no rating of the audience could be read" in line
    assert read_done(run.shard(0)) is None
    assert read_failure(run.shard(0))[0] in line


def test_an_engine_that_is_started_again_in_mid_run_is_waited_for(tmp_path, served):
    with Mock("--ms-per-call", 10) as mock:
        run = prepare(tmp_path, SERVED, mock.section())
        with started(run) as process:
            assert wait_until(lambda: len(records(run)) > 100, process)
            mock.kill()
            noted = keys_of(run)
            time.sleep(0.5)
            mock.start()
            said, _ = process.communicate(timeout=HANG_S)
        assert process.returncode == 0, said
        assert interactions(run) == served
        assert not noted & mock.answered().keys()


def test_an_engine_that_stays_away_ends_the_shard_with_one_error(tmp_path, served):
    with Mock("--ms-per-call", 10) as mock:
        run = prepare(tmp_path, SERVED, mock.section(num_retries=1, patience_s=1))
        with started(run) as process:
            assert wait_until(lambda: len(records(run)) > 100, process)
            mock.kill()
            said, _ = process.communicate(timeout=HANG_S)
        assert process.returncode == 1
        line = said_once(said, f"the engine at http://127.0.0.1:{mock.port}/v1 is unreachable")
        error, code = read_failure(run.shard(0))
        assert (f"error: {error}", code) == (line, 1)
        noted = keys_of(run)
        again = simulate(run)  # it is still away
        assert again.returncode == 1
        said_once(again.stderr, "is unreachable")
        mock.start()
        assert complete(run) == served
        assert mock.answered().keys() == keys_of(run) - noted
    assert read_failure(run.shard(0)) is None


# --- ranks ---------------------------------------------------------------------------------------


def ranks_of(run):
    """The processes of a shard's ranks."""
    found = {}
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit() and str(run.path) in (process / "cmdline").read_text():
                variables = dict(word.partition("=")[::2] for word in (process / "environ").read_text().split("\0"))
                if "PMI_RANK" in variables:
                    found[int(variables["PMI_RANK"])] = int(process.name)
    return found


@contextlib.contextmanager
def two_ranks(folder, *words, **settings):
    with Mock("--ms-per-call", 10, *words) as mock:
        run = prepare(folder, SERVED, mock.section(**settings), {"ranks_per_shard": 2})
        yield run, mock


@pytest.mark.parametrize(
    ("rank", "number"),
    [(0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGTERM), (None, signal.SIGTERM)],
    ids=["SIGKILL of rank 0", "SIGKILL of rank 1", "SIGTERM of rank 1", "SIGTERM of mpiexec"],
)
def test_a_rank_that_dies_ends_all_and_the_shard_goes_on_later(tmp_path, served, rank, number):
    with two_ranks(tmp_path) as (run, mock):
        with started(run, ranks=2) as process:
            assert wait_until(lambda: len(records(run)) > 100, process)
            processes = ranks_of(run)
            assert set(processes) == {0, 1}
            os.kill(process.pid if rank is None else processes[rank], number)
            said, _ = process.communicate(timeout=HANG_S)
        assert process.returncode not in (0, None)
        assert number == signal.SIGKILL or process.returncode == 143
        assert "Traceback" not in said
        assert wait_until(lambda: not ranks_of(run))
        assert read_done(run.shard(0)) is None
        noted, then = keys_of(run), mock.answered()
        assert complete(run, ranks=2) == served
        answered = mock.answered()
    assert {key: then[key] for key in noted} == {key: answered[key] for key in noted}
    assert sum(len(times) - 1 for times in answered.values()) <= 2 * MAX_IN_FLIGHT


def test_an_error_of_one_rank_ends_all_and_is_named(tmp_path, served):
    with two_ranks(tmp_path, "--refuse-at", 200) as (run, _):
        done = simulate(run, ranks=2)
        assert done.returncode == 1
        assert "Traceback" not in done.stdout + done.stderr
        error, code = read_failure(run.shard(0))
        assert "HTTP 402: the quota is used up" in error
        assert code == 1
        assert "HTTP 402: the quota is used up" in done.stderr
        assert wait_until(lambda: not ranks_of(run))  # mpiexec does not wait for their last moment
        assert read_done(run.shard(0)) is None
        assert complete(run, ranks=2) == served
    assert read_failure(run.shard(0)) is None


def test_a_shard_of_ranks_goes_on_with_another_number_of_them(tmp_path, served):
    with two_ranks(tmp_path, "--refuse-at", 200) as (run, mock):
        assert simulate(run, ranks=2).returncode == 1
        noted, then = keys_of(run), mock.answered()
        run = prepare(tmp_path, SERVED, mock.section(), {"ranks_per_shard": 1})
        assert complete(run) == served
        answered = mock.answered()
    assert {key: then[key] for key in noted} == {key: answered[key] for key in noted}


def test_a_slow_rank_changes_nothing(tmp_path, served):
    with two_ranks(tmp_path, "--slow-every", 9) as (run, mock):
        assert complete(run, ranks=2) == served
        assert {len(times) for times in mock.answered().values()} == {1}


def test_a_second_launch_of_a_shard_of_ranks_is_refused_and_disturbs_nothing(tmp_path, served):
    with two_ranks(tmp_path) as (run, mock), started(run, ranks=2) as process:
        assert wait_until(lambda: len(records(run)) > 20, process)
        with mock.paused():  # so that it is at work however long the second takes
            second = simulate(run, ranks=2)
            assert process.poll() is None
        assert second.returncode == 1
        assert "is already being worked on by process" in second.stderr
        assert "Traceback" not in second.stderr
        said, _ = process.communicate(timeout=HANG_S)
        assert process.returncode == 0, said
        assert interactions(run) == served
        assert keys_of(run) == mock.answered().keys()
        assert {len(times) for times in mock.answered().values()} == {1}


@pytest.mark.parametrize(("configured", "launched"), [(2, 3), (2, 1), (1, 2)])
def test_another_number_of_ranks_than_configured_is_refused(tmp_path, configured, launched):
    run = prepare(tmp_path, SERVED, cluster={"ranks_per_shard": configured})
    done = simulate(run, ranks=launched)
    assert done.returncode == 2
    assert f"cluster.ranks_per_shard is {configured} and MPI started {launched} process" in done.stderr
    assert f"`mpiexec -n {configured} python jobs/simulate.py RUN --shard N`" in done.stderr
    assert "Traceback" not in done.stderr
    assert not run.shard(0).exists()


def test_a_launch_starts_the_ranks_of_a_shard_itself(tmp_path, tiny_model, societies, references):
    tree = {
        "run": {"root": str(tmp_path), "name": "run", "seed": 3},
        "model": str(tiny_model),
        "engine": {"kind": "scripted"},
        "society": {**societies["grid"], "num_shards": 2},
        "cluster": {"ranks_per_shard": 2, "num_workers": 1},
        "train": {"stages": []},
        "evaluate": {"models": ["base"], "num_questions": 2, "answer": {"max_tokens": 4}, "num_resamples": 100},
        "tracking": {"wandb": False},
    }
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(tree))
    done = launch(str(config), env=env())
    assert done.returncode == 0, done.stdout + done.stderr
    run = RunDir(tmp_path / "run")
    assert digest(run) == references["grid"]
    for shard in range(2):
        assert [path.name for path in files_of(run.shard(shard))] == ["journal-00000.packed", "journal-00001.packed"]


# --- a full disk ---------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no mount: {error}")
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("room", [40_000, 80_000])
def test_a_full_disk_ends_the_shard_with_one_error_and_it_goes_on_when_there_is_room(
    tmp_path, small_disk, served, room
):
    with Mock() as mock:
        run = prepare(small_disk, SERVED, mock.section())
        filler = small_disk / "filler"
        free = os.statvfs(small_disk)
        filler.write_bytes(b"x" * (free.f_bavail * free.f_bsize - room))
        done = simulate(run)
        assert done.returncode == 1, done.stdout + done.stderr
        said_once(done.stderr, "no space left on the disk", "launch again")
        assert read_done(run.shard(0)) is None
        for path in files_of(run.shard(0)):
            assert sum(block.end - block.start for block in read_blocks(path)) == path.stat().st_size
        noted, then = keys_of(run), mock.answered()
        assert noted
        filler.unlink()
        assert complete(run) == served
        answered = mock.answered()
    assert {key: then[key] for key in noted} == {key: answered[key] for key in noted}
