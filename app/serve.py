"""``cogram serve``: everything on one machine, in one foreground process that keeps its parts running.

Broker, API, dispatcher and worker are processes of their own. Nothing of them outlives this one.
"""

from __future__ import annotations

import fcntl
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import FrameType

from app.broker import ping
from app.children import Child, Program, stop_together
from app.embedded_broker import EmbeddedBroker
from app.listening import CannotServe, check_access, listen
from app.queues import IO, OF_FUSIONS
from app.settings import Settings
from app.store.blobs import Incoming
from app.store.migrate import migrate

_START_SECONDS = 60.0
_GRACE_SECONDS = 8.0  # for jobs to let go and requests to end
_BROKER_GRACE_SECONDS = 3.0
_MOST_DEATHS_AT_START = 3
_LOOK_SECONDS = 0.1
_NICENESS = 10  # of fusions: they share the machine with the API, whose callers wait for an answer


def serve(settings: Settings, on_ready: Callable[[str], None]) -> None:
    """Runs until SIGTERM or SIGINT; after SIGUSR2, until the running fusions have ended. ``on_ready`` gets the address.

    Raises:
        CannotServe: when something stands in the way of the start.
    """
    check_access(settings)
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(settings.data_dir), _stop_signals() as stop, listen(settings.host, settings.port) as listener:
        broker = None if settings.broker_url else EmbeddedBroker(settings.broker_socket)
        try:
            _Supervisor(settings, listener, broker).run(stop, on_ready)
        finally:
            if broker is not None:
                broker.clean_up()


class _Supervisor:
    """The children, in the order in which they need each other."""

    def __init__(self, settings: Settings, listener: socket.socket, broker: EmbeddedBroker | None) -> None:
        self._settings = settings
        self._host, self._port = listener.getsockname()[:2]
        self._broker = broker
        self._broker_url = broker.url if broker else settings.resolved_broker_url
        environment = {
            "COGRAM_DATA_DIR": str(settings.data_dir.resolve()),
            "DATABASE_URL": settings.resolved_database_url,
            "BROKER_URL": self._broker_url,
        }
        python = sys.executable
        self._broker_children = [Child(broker.program())] if broker else []
        self._api = Child(
            Program(
                "api",
                (python, "-m", "app.api", "--fd", str(listener.fileno())),
                environment | _metrics_port(settings, 0),
                descriptors=(listener.fileno(),),  # held here, so that callers wait while a new API starts
            )
        )
        self._draining = False
        self._fusion_workers = [
            self._worker(
                f"worker {number + 1}",
                ",".join(OF_FUSIONS),
                environment | _metrics_port(settings, 2 + number),
                niceness=_NICENESS,
            )
            for number in range(settings.workers)
        ]
        self._others = [
            Child(Program("dispatcher", (python, "-m", "worker.dispatcher"), environment | _metrics_port(settings, 1))),
            self._worker(
                "io", IO, environment | _metrics_port(settings, 2 + settings.workers)
            ),  # no webhook waits behind a fusion
            *self._fusion_workers,
        ]

    @staticmethod
    def _worker(name: str, queues: str, environment: dict[str, str], niceness: int = 0) -> Child:
        command = (sys.executable, "-m", "worker", "--queues", queues)
        return Child(Program(name, command, environment, niceness=niceness))

    def run(self, stop: _Stop, on_ready: Callable[[str], None]) -> None:
        """Starts all, tells when they are ready, keeps them running until ``stop``, ends them."""
        try:
            self._start(stop)
            if not stop.asked:
                on_ready(self._address())
            while not stop.wait(_LOOK_SECONDS):
                for child in self._all():
                    child.keep_running()
                if stop.draining and self._drained():
                    break
        finally:
            stop_together([self._api, *self._others], _GRACE_SECONDS)
            stop_together(self._broker_children, _BROKER_GRACE_SECONDS)

    def _drained(self) -> bool:
        """Lets the fusion workers finish what they run and take nothing new; whether all have ended."""
        if not self._draining:
            self._draining = True
            for worker in self._fusion_workers:
                worker.let_end(signal.SIGUSR2)
        return all(worker.is_gone() for worker in self._fusion_workers)

    def _start(self, stop: _Stop) -> None:
        for child in self._broker_children:
            child.start()
        self._wait(stop, self._broker_children, lambda: _answers(lambda: ping(self._broker_url)))
        if stop.asked:
            return
        Incoming(self._settings.incoming_dir).sweep()  # the folder's lock is ours, so nobody writes
        migrate(self._settings.resolved_database_url)
        self._api.start()  # alone first: the worker loads torch, and would take the processor from it
        self._wait(stop, [*self._broker_children, self._api], lambda: _answers(self._ask_api))
        for child in self._others:
            child.start()

    def _wait(self, stop: _Stop, started: list[Child], is_ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not is_ready() and not stop.wait(_LOOK_SECONDS / 4):
            for child in started:
                child.keep_running()
                if child.deaths >= _MOST_DEATHS_AT_START:
                    raise CannotServe(
                        f"{child.program.name} ended {child.deaths} times at its start; its log is above."
                    )
            if time.monotonic() > deadline:
                last = started[-1].program.name if started else "the broker"
                raise CannotServe(f"{last} was not ready within {_START_SECONDS:.0f} seconds; the log is above.")

    def _ask_api(self) -> None:
        connection = HTTPConnection(self._host, self._port, timeout=2)
        try:
            connection.request("GET", "/v1/healthz/live")
            connection.getresponse().read()
        finally:
            connection.close()

    def _address(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    def _all(self) -> list[Child]:
        return [*self._broker_children, self._api, *self._others]


def _metrics_port(settings: Settings, place: int) -> dict[str, str]:
    """The API has the port that is set; then come the dispatcher, the workers, and the one for webhooks."""
    return {"COGRAM_METRICS_PORT": str(settings.metrics_port + place)} if settings.metrics_port else {}


def _answers(ask: Callable[[], None]) -> bool:
    try:
        ask()
    except (OSError, HTTPException):
        return False
    return True


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two services in one folder would take each other's work apart."""
    with (folder / "serve.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CannotServe(
                f"another cogram serve uses {folder}. Stop it, or choose another folder with --data-dir."
            ) from error
        yield


class _Stop:
    """Set by a signal. No lock: the handler runs in the thread that waits, and would wait for itself."""

    def __init__(self) -> None:
        self.asked = False
        self.draining = False

    def wait(self, seconds: float) -> bool:
        """Whether it was set, at the latest after ``seconds``."""
        if not self.asked:
            time.sleep(seconds)
        return self.asked


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    stop = _Stop()

    def ask(_signal: int, _frame: FrameType | None) -> None:
        stop.asked = True

    def drain(_signal: int, _frame: FrameType | None) -> None:
        stop.draining = True

    handlers = {signal.SIGTERM: ask, signal.SIGINT: ask, signal.SIGUSR2: drain}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
