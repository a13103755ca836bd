"""The first start: a team, a key, the operator's token, and the files they are kept in for the operator."""

import os
import secrets
from datetime import UTC, datetime
from pathlib import Path

from cloche_server.config import API_UID, Config
from cloche_server.ids import hash_api_key, new_api_key
from cloche_server.store.keys import DEFAULT_TEAM
from cloche_server.store.store import Store


def ensure_first_key(config: Config) -> str | None:
    """Make the database and, when it has no key at all, the default team and its first key. Idempotent.

    The key's file (`STATE/api-key`, mode 0600) is written before the row: a crash between the two leaves a
    file whose key the next start takes over, never a key that nobody knows.

    Returns:
        The key when this call made it known to the server, else None.

    Raises:
        Unavailable: The database cannot be opened or written.
    """
    store = open_as_operator(config)
    try:
        if store.keys.list():
            return None
        path = config.state_dir / "api-key"
        key = _read_key(path)
        if key is None:
            key = new_api_key()
            _write_secret(path, key)
        store.keys.create("first start", DEFAULT_TEAM, datetime.now(UTC), key=key)
        return key
    finally:
        store.close()


def ensure_admin_token(config: Config) -> None:
    """Make the operator's token where there is none, and tell the api its hash. Idempotent.

    `STATE/admin-token` is root's alone (0600): removing it and starting the server again makes another one.
    """
    path = config.state_dir / "admin-token"
    try:
        token = path.read_text().strip()
    except FileNotFoundError:
        token = ""
    if not token:
        token = f"cloche_admin_{secrets.token_hex(32)}"
        _write_secret(path, token)
    digest = config.admin_token_hash
    _write_secret(digest, hash_api_key(token))
    if os.geteuid() == 0:
        # SAFETY: just written by us; the folder is the api's, who could at most harm its own file.
        os.chown(digest, API_UID, API_UID, follow_symlinks=False)


def open_as_operator(config: Config) -> Store:
    """Open the store from outside the api; as root the files are given to the api's user."""
    return Store.open(config.database, owner_uid=API_UID if os.geteuid() == 0 else os.geteuid())


def _read_key(path: Path) -> str | None:
    try:
        key = path.read_text().strip()
    except FileNotFoundError:
        return None
    return key if key.startswith("e2b_") and len(key) == len(new_api_key()) else None


def _write_secret(path: Path, value: str) -> None:
    staged = path.with_name(f"{path.name}.new")
    staged.unlink(missing_ok=True)
    # SAFETY: O_EXCL with its final mode: no link is followed, and nobody else reads it at any moment.
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(value + "\n")
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)
