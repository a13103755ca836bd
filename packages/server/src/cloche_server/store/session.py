"""The database itself: one SQLite file, one writer at a time, readers beside it.

Each transaction is one plain function that runs in a worker thread: one hop per transaction, where an async
driver needs one per statement, and the command line and the server share the same code.
"""

import functools
import os
import sqlite3
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread
from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.exc import DatabaseError, IntegrityError, ProgrammingError

from cloche_server.store.schema import VERSION
from cloche_wire.errors import NotEnoughSpace, Unavailable

LOCK_WAIT_MS = 2000
"""How long a writer waits for another process (`cloche key`) before it answers 503."""
READERS = 8
MIGRATIONS = Path(__file__).parent / "migrations"

T = TypeVar("T")
Work = Callable[[Connection], T]


class Database:
    """Runs functions inside transactions."""

    def __init__(self, path: Path) -> None:
        """Prepare an engine; nothing is opened yet."""
        self._engine = _make_engine(path)
        self._limiter = anyio.CapacityLimiter(READERS)
        self._writer = anyio.Lock()

    async def read(self, work: Work[T]) -> T:
        """Run `work` on one consistent view.

        Raises:
            Unavailable: The file is locked or cannot be read.
        """
        return await anyio.to_thread.run_sync(functools.partial(self.read_now, work), limiter=self._limiter)

    async def write(self, work: Work[T]) -> T:
        """Run `work` as the only writer; all of it is kept, or, on any error, nothing.

        Raises:
            Unavailable: Another process holds the lock, or the file cannot be written.
            NotEnoughSpace: The disk is full.
        """
        # The lock queues our own writers fairly; SQLite's busy handler would poll with growing naps instead.
        async with self._writer:
            return await anyio.to_thread.run_sync(
                functools.partial(self.write_now, work), limiter=self._limiter
            )

    def read_now(self, work: Work[T]) -> T:
        """Like `read`, for callers without an event loop."""
        with _translated(), self._engine.connect() as connection:
            return work(connection)

    def write_now(self, work: Work[T]) -> T:
        """Like `write`, for callers without an event loop."""
        with _translated(), self._engine.connect() as connection:
            connection = connection.execution_options(cloche_writes=True)
            with connection.begin():
                return work(connection)

    def migrate(self) -> None:
        """Bring the tables to this version's shape; a no-op when they are.

        Raises:
            Unavailable: A later version of the server has worked on them, or they cannot be read.
        """
        found = self.read_now(_version)
        if found == VERSION:
            return
        if found is not None and found > VERSION:
            raise Unavailable(
                f"the database is of a later version: {found}",
                hint="run that version, or take another --state",
            )
        # Imported here, since it takes longer than all the rest of a start.
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))

        def upgrade(connection: Connection) -> None:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

        self.write_now(upgrade)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


def prepare_file(path: Path, owner_uid: int) -> None:
    """Make the database's folder (0700) and file (0600), both owned by `owner_uid`. Idempotent.

    Only root may name another owner than itself. SQLite gives its journal files the owner and mode of the
    main file when it runs as root (sqlite3, `findCreateFileMode`), so that root can work on the database
    without locking its owner out.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # SAFETY: no tenant can write to this folder; O_NOFOLLOW refuses a link that the folder's owner, who is
    # less trusted than root, may have put in the place of the file.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if os.geteuid() == 0:
            os.chown(path.parent, owner_uid, owner_uid, follow_symlinks=False)
            os.fchown(descriptor, owner_uid, owner_uid)
    finally:
        os.close(descriptor)


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    return None if found is None else str(found)


def _make_engine(path: Path) -> Engine:
    # The connection used last comes first: the others' caches of pages are out of date since it wrote.
    # Taken in turn, a create after some traffic read and wrote 285 KB in 88 calls; so it is 66 KB in 34.
    engine = create_engine(f"sqlite:///{path}", pool_size=READERS + 1, max_overflow=4, pool_use_lifo=True)

    def set_up(connection: sqlite3.Connection, _: object) -> None:
        # Transactions are ours to open: the driver would otherwise begin one before the first write only.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {LOCK_WAIT_MS}")
        cursor.execute("PRAGMA journal_mode = WAL")
        # With a WAL, NORMAL survives kill -9 of any process; only a power cut may lose the last commits.
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("cloche_writes", False)
        # IMMEDIATE takes the write lock first, so that what is read before a write cannot change under it.
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    event.listen(engine, "connect", set_up)
    event.listen(engine, "begin", begin)
    return engine


@contextmanager
def _translated() -> Generator[None]:
    try:
        yield
    except DatabaseError as error:
        if isinstance(error, IntegrityError | ProgrammingError):
            raise  # our own mistake, not the file's
        if "full" in str(error.orig):
            raise NotEnoughSpace("no space left for the database") from error
        raise Unavailable(f"the database does not answer: {error.orig}") from error
