"""An api over a fresh database and a placement without a node."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from tests.fakes.clock import FakeClock
from tests.fakes.control_plane import client_of, make_key, write_template
from tests.fakes.placement import FakePlacement
from tests.fakes.workshop import FakeWorkshop

from cloche_server.api.control import ControlPlane
from cloche_server.config import Config, Limits
from cloche_server.store.store import Store


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def placement(clock: FakeClock) -> FakePlacement:
    return FakePlacement(clock)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    made = Config(state=str(tmp_path), isolation="fake", limits=Limits(max_sandboxes=5))
    write_template(made)
    return made


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A new database, made once: the migrations take longer than most tests."""
    path = tmp_path_factory.mktemp("db") / "new.sqlite3"
    Store.open(path, owner_uid=path.parent.stat().st_uid).close()
    return path.read_bytes()


@pytest.fixture
def store(config: Config, migrated: bytes) -> Iterator[Store]:
    config.database.parent.mkdir()
    config.database.write_bytes(migrated)
    opened = Store.open(config.database, owner_uid=config.state_dir.stat().st_uid)
    yield opened
    opened.close()


@pytest.fixture
def workshop() -> FakeWorkshop:
    return FakeWorkshop()


@pytest.fixture
def control(
    config: Config, store: Store, placement: FakePlacement, clock: FakeClock, workshop: FakeWorkshop
) -> ControlPlane:
    return ControlPlane.assemble(config, store, placement, clock, workshop)


@pytest.fixture
async def client(control: ControlPlane) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(control, make_key(control, "default")) as made:
        yield made


@pytest.fixture
async def stranger(control: ControlPlane) -> AsyncIterator[httpx.AsyncClient]:
    """A client of another team."""
    async with client_of(control, make_key(control, "others")) as made:
        yield made


@pytest.fixture
async def nobody(control: ControlPlane) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a key."""
    async with client_of(control, None) as made:
        yield made
