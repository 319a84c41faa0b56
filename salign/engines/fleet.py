"""The servers of a fleet as one engine, whichever of them are there.

Each server registers itself in the run's folder and shows there that it lives (`salign.engines.serving`). Shards take
what they find: a call goes to the server with the fewest of their calls in flight, and elsewhere when that one goes.
"""

import asyncio
import contextlib
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from salign.config import Fleet, OpenAIEngine, ServedEngine
from salign.engines import openai
from salign.engines.loads import Loads
from salign.engines.proxy import Client, ProxyEngine
from salign.errors import CallRejectedError, ConfigError, EngineError, EngineUnavailableError
from salign.storage import part_of, write_atomic

logger = logging.getLogger(__name__)

T = TypeVar("T")

BEAT_S = 5.0
"""How often a server shows that it lives."""
LIFE_S = 6 * BEAT_S
"""After so long without it a server counts as gone."""
LOOK_S = 2.0
"""How often shards look which servers are there."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 5.0


class Registration(BaseModel):
    """What a server says of itself; its key is in a file beside it.

    Attributes:
        base_url: Where it is reached, up to `/v1`.
        identity: Which model it serves: its name, and the digest of its weights.
        served: The name that it is asked under.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_url: str
    identity: str
    served: str


def _key_file(file: Path) -> Path:
    return file.with_suffix(".key")


def register(file: Path, registration: Registration, key: str) -> None:
    """Makes a server known; both files are for the user alone."""
    before = os.umask(0o077)
    try:
        write_atomic(_key_file(file), key)
        write_atomic(file, registration.model_dump_json() + "\n")
    finally:
        os.umask(before)


def unregister(file: Path) -> None:
    """Takes a server out."""
    file.unlink(missing_ok=True)
    _key_file(file).unlink(missing_ok=True)


def agree_on(folder: Path, identity: str) -> str:
    """What the first server of a fleet said that it serves, which may be this one."""
    folder.mkdir(parents=True, exist_ok=True)
    part = part_of(folder / "identity")
    part.write_text(identity, encoding="utf-8")
    try:
        with contextlib.suppress(FileExistsError):
            os.link(part, folder / "identity")
    finally:
        part.unlink(missing_ok=True)
    return (folder / "identity").read_text(encoding="utf-8")


class ServerClient(Client, Protocol):
    """What asks one server."""

    async def close(self) -> None:
        """Asks it nothing more."""


Connect = Callable[[ServedEngine, Registration, str], ServerClient]
_Said = tuple[Registration, str]


@dataclass(eq=False)
class _Member:
    """A server that has registered, as one shard knows it.

    `said`: its registration and its key. `state` is of its file: (inode, time of the last sign of life). `resting`: a
    call found it away when its file was in this state; it is left alone until it shows another sign. `seen`: when it
    showed one last, `looked`: when its file was looked at last.
    """

    name: str
    engine: ServerClient
    said: _Said
    state: tuple[int, int]
    seen: float
    looked: float
    resting: tuple[int, int] | None = None
    is_gone: bool = False
    tasks: set["asyncio.Task[Any]"] = field(default_factory=set)

    async def ask(self, call: Callable[[ServerClient], Awaitable[T]]) -> T:
        task = asyncio.ensure_future(call(self.engine))
        self.tasks.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            own = asyncio.current_task()
            if self.is_gone and not (own is not None and own.cancelling()):
                raise EngineUnavailableError(f"the server {self.name} is gone") from None
            task.cancel()
            raise
        finally:
            self.tasks.discard(task)

    async def leave(self) -> None:
        """Lets its calls go, which are asked elsewhere."""
        self.is_gone = True
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.engine.close()


class FleetEngine(ProxyEngine):
    """The engine of a shard. It is made inside the event loop that it is used in, and looked after by `open_fleet`.

    Args:
        fleet: Which.
        folder: Where its servers register.
        connect: Makes what asks a server, of the fleet's section, its registration and its key; None: through HTTP.
    """

    def __init__(self, fleet: Fleet, folder: Path, connect: Connect | None = None) -> None:
        super().__init__()
        self.identity = ""  # until the first server is there
        self._section = fleet.section
        self._name = fleet.name
        self._folder = folder
        self._connect = connect or _by_http
        self._members: dict[str, _Member] = {}
        self._refused: dict[str, _Said | str] = {}
        self._dead: dict[str, tuple[int, int]] = {}
        self._there = Loads[_Member]()  # those that are not resting
        self._changed = asyncio.Event()
        self._lost_since: float | None = None

    # --- the engine ---

    def _clients(self) -> list[ServerClient]:
        return [member.engine for member in self._members.values()]

    @property
    def waiting_since(self) -> float | None:
        """Since when no server is there; None while one is."""
        return self._lost_since

    async def _call(self, call: Callable[[ServerClient], Awaitable[T]]) -> T:
        num_failures = 0
        while True:
            await self.first()
            member = self._there.least()
            try:
                with self._there.one_more(member):
                    return await member.ask(call)
            except CallRejectedError:
                raise
            except (EngineUnavailableError, ConfigError) as error:
                # It ended, or somebody else listens there by now and refuses the key.
                self._rest(member)
                if not member.is_gone:
                    logger.info("the server %s of the fleet %s does not answer: %s", member.name, self._name, error)
            except EngineError:  # of a server that answers
                num_failures += 1
                if num_failures > self._section.num_retries:
                    raise
                await asyncio.sleep(min(_FIRST_PAUSE_S * 2.0**num_failures, _LONGEST_PAUSE_S))

    def _rest(self, member: _Member) -> None:
        """Asks a server nothing more until it shows another sign of life."""
        member.resting = member.state
        self._there.remove(member)
        if not self._there:
            self._changed.clear()

    async def first(self) -> None:
        """Waits for a server, if none is there.

        Raises:
            EngineUnavailableError: None came in time.
        """
        while not self._there:
            now = time.time()
            self._lost_since = now if self._lost_since is None else self._lost_since
            left_s = self._lost_since + self._section.patience_s - now
            if left_s <= 0:
                raise EngineUnavailableError(
                    f"no server of the fleet {self._name} was there for engine.patience_s = "
                    f"{self._section.patience_s:g} s. Its logs are in {self._folder}; `salign status` says which of "
                    "its servers run. Launch again: what is complete is kept."
                )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left_s)
        self._lost_since = None

    # --- who is there ---

    async def watch(self) -> None:
        """Looks again and again which servers are there, until it is cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Takes in servers that came, and lets go of those that went or showed no sign of life."""
        now = asyncio.get_running_loop().time()
        there = self._signs_of_life(now)
        for name, member in list(self._members.items()):
            state = there.get(name)
            if state is not None and state[0] == member.state[0]:
                if state != member.state:
                    member.state, member.seen = state, now
                wakes = member.resting not in (None, member.state)
                # Another registration's file may have the inode that the one before left.
                if not wakes or self._read(name) == member.said:
                    if wakes:
                        member.resting = None
                        self._there.add(member, len(member.tasks))
                    if now - member.seen < LIFE_S:
                        continue
                    self._dead[name] = state
            del self._members[name]
            self._there.remove(member)
            logger.info("the server %s of the fleet %s is gone", name, self._name)
            await member.leave()
        # Else all shards would begin with the same.
        for name, state in random.sample(sorted(there.items()), len(there)):
            # One that shows no sign of life, or is of another model, may be a file that was left behind.
            if name not in self._members and self._dead.get(name) != state:
                self._register(name, state, now)
        self._changed.set() if self._there else self._changed.clear()

    def _signs_of_life(self, now: float) -> dict[str, tuple[int, int]]:
        """By name, what changes with each registration, and with each sign of life.

        Who is listed is known at each look. The files of those that answer are looked at three times in the time after
        which a server without a sign counts as gone: with a thousand servers and a hundred shards, a shared file system
        would have nothing else to do.
        """
        found = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self._folder) as entries:
            for entry in entries:
                if not entry.name.endswith(".json") or entry.name.startswith("."):
                    continue
                name = entry.name.removesuffix(".json")
                member = self._members.get(name)
                if member is not None and member.resting is None and now - member.looked < LIFE_S / 3:
                    found[name] = member.state
                    continue
                with contextlib.suppress(FileNotFoundError):
                    status = Path(entry.path).stat()  # of a shared file system, not what the folder had of it
                    found[name] = status.st_ino, status.st_mtime_ns
                    if member is not None:
                        member.looked = now
        return found

    def _read(self, name: str) -> _Said | str:
        """What a server says of itself, or why that cannot be read."""
        file = self._folder / f"{name}.json"
        try:
            return Registration.model_validate_json(file.read_text("utf-8")), _key_file(file).read_text("utf-8")
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            return str(error).splitlines()[0]

    def _register(self, name: str, state: tuple[int, int], now: float) -> None:
        said = self._read(name)
        if self._refused.get(name) == said:
            return
        if isinstance(said, str):
            self._refuse(name, said, f"its registration {self._folder / name}.json cannot be read ({said})")
            return
        row, key = said
        try:
            identity = (self._folder / "identity").read_text(encoding="utf-8")
        except FileNotFoundError:  # not to be seen from this node yet
            return
        if row.identity != identity:
            self._refuse(name, said, f"it serves {row.identity}, and the first one {identity}")
            return
        try:
            engine = self._connect(self._section, row, key)
        except ValidationError:
            self._refuse(name, said, f"{row.base_url!r} in {self._folder / name}.json is no address")
            return
        self.identity = identity
        self._take_in(engine)
        member = self._members[name] = _Member(name, engine, said, state, now, now)
        self._there.add(member)

    def _refuse(self, name: str, said: _Said | str, why: str) -> None:
        self._refused[name] = said
        logger.warning("the server %s of the fleet %s is left out: %s", name, self._name, why)

    async def close(self) -> None:
        for member in self._members.values():
            await member.leave()


def client_of(section: ServedEngine, row: Registration) -> OpenAIEngine:
    """How a server is called: a call that finds nobody is made elsewhere, and not again.

    Raises:
        ValidationError: It is no address.
    """
    shared = (OpenAIEngine.model_fields.keys() & ServedEngine.model_fields.keys()) - {"kind", "model", "num_retries"}
    of = section.model_dump(include=shared)
    return OpenAIEngine(kind="openai", base_url=row.base_url, model=row.served, patience_s=0.0, num_retries=0, **of)


def _by_http(section: ServedEngine, row: Registration, key: str) -> ServerClient:
    return openai.OpenAIEngine(client_of(section, row), row.served, identity=row.identity, api_key=key)


@contextlib.asynccontextmanager
async def open_fleet(fleet: Fleet, folder: Path, connect: Connect | None = None) -> AsyncIterator[FleetEngine]:
    """The engine of a fleet, from when its first server is there; the arguments are those of `FleetEngine`.

    Raises:
        EngineUnavailableError: No server came in time.
    """
    engine = FleetEngine(fleet, folder, connect)
    watching = asyncio.create_task(engine.watch())
    try:
        await engine.first()
        yield engine
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await engine.close()
