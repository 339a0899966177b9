"""Databases for sweeps: a file, and a PostgreSQL server of the test's own."""

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a fresh server with a password; skips where its programs or its driver are missing."""
    pytest.importorskip("psycopg", reason="PostgreSQL's driver is missing: pip install 'scaledl[postgres]'")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found:
        pytest.skip("no PostgreSQL server on this machine: apt-get install postgresql")
    as_user = []
    if os.geteuid() == 0:  # which PostgreSQL refuses
        if shutil.which("runuser") is None:
            pytest.skip("PostgreSQL does not run as root, and there is no runuser")
        as_user = ["runuser", "-u", "postgres", "--"]
    home = Path(tempfile.mkdtemp(prefix="postgres-"))  # pytest's own directories are closed to the server's user
    home.chmod(0o755)
    password = "p-" + secrets.token_hex(8)
    (home / "password").write_text(password)
    (home / "data").mkdir()
    if as_user:
        shutil.chown(home, "postgres")
        shutil.chown(home / "data", "postgres")
        shutil.chown(home / "password", "postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = [*as_user, str(found[-1] / "initdb"), "-D", str(home / "data"), "-U", "sweeper", "-A", "scram-sha-256"]
    subprocess.run([*run, f"--pwfile={home / 'password'}", "--no-sync"], check=True, capture_output=True, cwd=home)
    control = [*as_user, str(found[-1] / "pg_ctl"), "-D", str(home / "data"), "-w", "-l", str(home / "log")]
    options = f"-p {port} -k {home} -c listen_addresses=127.0.0.1 -c fsync=off"
    subprocess.run([*control, "-o", options, "start"], check=True, stdout=subprocess.DEVNULL, cwd=home)
    yield f"postgresql://sweeper:{password}@127.0.0.1:{port}/postgres"
    subprocess.run([*control, "-m", "immediate", "stop"], check=True, stdout=subprocess.DEVNULL, cwd=home)
    shutil.rmtree(home)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'study.db'}"
    url = request.getfixturevalue("postgres").replace("postgresql:", "postgresql+psycopg:")
    name = "t" + secrets.token_hex(4)
    import psycopg

    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return url.rpartition("/")[0] + "/" + name
