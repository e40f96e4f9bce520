"""What the processor was used for: without this project, so that any program can ask."""

import resource
import time


def cpu_seconds() -> float:
    """Return what this process has taken, and those that it started and that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime
