"""What one question may cost, and how many are answered at once."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass, replace

_SMALL_PARSED_BYTES = 2**20  # read within a third of a second
OUT_OF_MEMORY = 75  # exit code of a child that reached its limit
_BYTES_A_SECOND = 8 * 2**20  # at which a dataset's integers are looked through, where every byte is one of them


@dataclass(frozen=True)
class Limits:
    """Of one child, and of the pool."""

    memory_bytes: int
    cpu_seconds: int  # for one question
    seconds: float  # for one question, by the clock
    at_once: int
    queue_seconds: float  # how long a question waits for a free child

    def for_bytes(self, size: int) -> Limits:
        """With the time that it takes to look through so many bytes of data as well."""
        more = size // _BYTES_A_SECOND
        return replace(self, cpu_seconds=self.cpu_seconds + more, seconds=self.seconds + more)


@dataclass(frozen=True)
class Cost:
    """What a question is known to take before it is asked."""

    parsed_bytes: int = 0  # headers and other JSON
    data_bytes: int = 0  # of a dataset, looked through

    @property
    def is_large(self) -> bool:
        """Whether it may take longer than others should wait."""
        return self.parsed_bytes > _SMALL_PARSED_BYTES or self.data_bytes > _BYTES_A_SECOND


def bound_memory(memory_bytes: int) -> None:
    """From here on this process gets no more memory than that, and leaves no core file."""
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA) if sys.platform == "linux" else ():  # others have no such
        resource.setrlimit(kind, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def bound_processor(seconds: int) -> None:
    """So much processor time from now on; then the kernel sends SIGXCPU, which ends the process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    spent = int(usage.ru_utime + usage.ru_stime) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (spent + seconds, resource.RLIM_INFINITY))
