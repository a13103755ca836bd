"""The store as one value: what the api holds on to."""

from pathlib import Path
from typing import NamedTuple, Self

from cloche_server.store.builds import Builds
from cloche_server.store.cached_steps import CachedSteps
from cloche_server.store.events import Events
from cloche_server.store.keys import Keys
from cloche_server.store.liveness import Liveness
from cloche_server.store.pausing import Pausing
from cloche_server.store.sandboxes import Sandboxes
from cloche_server.store.session import Database, prepare_file
from cloche_server.store.snapshots import Snapshots
from cloche_server.store.team_load import TeamLoad
from cloche_server.store.template_tags import TemplateTags
from cloche_server.store.templates import Templates
from cloche_server.store.volumes import Volumes


class Store(NamedTuple):
    """All tables, by subject."""

    database: Database
    keys: Keys
    templates: Templates
    builds: Builds
    template_tags: TemplateTags
    cached_steps: CachedSteps
    sandboxes: Sandboxes
    pausing: Pausing
    snapshots: Snapshots
    volumes: Volumes
    liveness: Liveness
    events: Events
    team_load: TeamLoad

    @classmethod
    def open(cls, path: Path, *, owner_uid: int) -> Self:
        """Make the file when it is missing, owned by `owner_uid`, and bring its tables up to date.

        Raises:
            Unavailable: The file cannot be opened or written.
        """
        prepare_file(path, owner_uid)
        database = Database(path)
        try:
            database.migrate()
        except BaseException:
            database.close()
            raise
        return cls(
            database,
            Keys(database),
            Templates(database),
            Builds(database),
            TemplateTags(database),
            CachedSteps(database),
            Sandboxes(database),
            Pausing(database),
            Snapshots(database),
            Volumes(database),
            Liveness(database),
            Events(database),
            TeamLoad(database),
        )

    def close(self) -> None:
        """Close all connections."""
        self.database.close()
