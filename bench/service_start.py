"""How long the API process takes until it answers, and what it holds in memory then.

Judged by processor time: starting is computing in one thread, so on an idle machine that is the time on the clock, and
on a busy one the clock tells of the others.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from http.client import HTTPConnection
from pathlib import Path

import psutil

from app.listening import listen
from app.settings import Settings
from app.store.migrate import migrate

MOST_SECONDS, MOST_BYTES = 1.0, 150e6


def main() -> int:
    with tempfile.TemporaryDirectory() as folder, listen("127.0.0.1", 0) as listener:
        migrate(Settings(data_dir=Path(folder)).resolved_database_url)
        # As it is installed: compiled. Where Python may write no bytecode, each start would compile the sources again.
        compiled = {"PYTHONPYCACHEPREFIX": str(Path(folder) / "compiled"), "PYTHONDONTWRITEBYTECODE": ""}
        subprocess.run([sys.executable, "-c", "import app.serving"], env=os.environ | compiled, check=True)
        began = time.monotonic()
        command = [sys.executable, "-m", "app.api", "--fd", str(listener.fileno())]
        api = subprocess.Popen(
            command,
            env=os.environ | compiled | {"COGRAM_DATA_DIR": folder},
            pass_fds=[listener.fileno()],
            stderr=subprocess.DEVNULL,
        )
        try:
            # The socket listens already, so the first answer comes when the process is there to give it.
            connection = HTTPConnection("127.0.0.1", listener.getsockname()[1], timeout=30)
            connection.request("GET", "/v1/healthz/live")
            status = connection.getresponse().status
            seconds = time.monotonic() - began
            process = psutil.Process(api.pid)
            resident, times = process.memory_info().rss, process.cpu_times()
            computing = times.user + times.system
        finally:
            api.terminate()
            api.wait()
    print(f"ready after {seconds:.2f} s, of which {computing:.2f} s computing (at most {MOST_SECONDS})")
    print(f"{resident / 1e6:.0f} MB resident (at most {MOST_BYTES / 1e6:.0f})")
    return 0 if status == 200 and computing < MOST_SECONDS and resident < MOST_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
