"""Where a sweep's trials are kept: a SQLite file in its directory, or a server that many machines reach."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import URL, event, make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, OperationalError, ProgrammingError

T = TypeVar("T")
# A server that went away without a word is noticed in about a minute, not after the two hours that TCP may take.
_OF_A_LOST_CONNECTION = {
    "connect_timeout": 15,
    "keepalives_idle": 20,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,  # milliseconds
}
TRIAL = "SCALEDL_TRIAL"  # environment: the study and number of a trial, with its URL, which no config or log shall hold
# The last two: another worker has created the same tables at the same moment.
OUTAGE = (OperationalError, StorageInternalError, IntegrityError, ProgrammingError)


def url_of(storage: str | None, folder: Path) -> str:
    """
    Raises:
        ValueError: it is no URL of a database.
    """
    given = storage or os.environ.get("SCALEDL_SWEEP_STORAGE")
    if not given:
        return URL.create("sqlite", database=str(folder.absolute() / "study.db")).render_as_string()
    try:
        url = make_url(given)
    except (ArgumentError, ValueError):  # whose message would show a password
        raise ValueError(
            "hydra.sweeper.storage is no URL of a database; give one such as postgresql://user@host/name"
        ) from None
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    return url.render_as_string(hide_password=False)


def without_secrets(url: str) -> str:
    """The URL as a log may show it; its query may hold a password as well."""
    return make_url(url).set(query={}).render_as_string(hide_password=True)


def connect(url: str) -> RDBStorage:
    """
    Raises:
        ImportError: the database's driver is missing.
        OSError: the database cannot be reached.
    """
    try:
        return patiently(lambda: _open(url), seconds=5)
    except ImportError as error:
        raise ImportError(
            f"{without_secrets(url)} needs a driver that is missing; for PostgreSQL: pip install 'scaledl[postgres]'"
        ) from error
    except OUTAGE as error:
        reason = str(getattr(error, "orig", error)).strip().splitlines()[0]
        raise OSError(f"{without_secrets(url)} cannot be reached: {reason}") from error


def _open(url: str) -> RDBStorage:
    if not url.startswith("sqlite"):
        patience = _OF_A_LOST_CONNECTION if url.startswith("postgresql+psycopg") else {}
        return RDBStorage(url, engine_kwargs={"pool_pre_ping": True, "connect_args": patience})
    storage = RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})
    # Python's driver begins a transaction at the first write only: two workers could both read that a trial is free.
    event.listen(storage.engine, "connect", lambda connection, record: setattr(connection, "isolation_level", None))
    event.listen(storage.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    storage.engine.dispose()
    return storage


def patiently(ask: Callable[[], T], seconds: float = 300) -> T:
    """What a database answers, also one that is away for a while.

    Raises:
        OperationalError: it was away for longer.
    """
    deadline, pause = time.monotonic() + seconds, 0.2
    while True:
        try:
            return ask()
        except OUTAGE:
            if time.monotonic() + pause > deadline:
                raise
            time.sleep(pause)
            pause = min(2 * pause, 10)
