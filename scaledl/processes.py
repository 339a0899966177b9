"""A command that this one stands for: it gets our signals, and we end as it does."""

import signal
import subprocess
from collections.abc import Mapping


def run(command: list[str], environment: Mapping[str, str] | None = None) -> int:
    """Run a command to its end; its exit code.

    Ctrl-C reaches every process of the terminal, so this one only waits for the command to stop; SIGTERM is passed on.
    """
    started = subprocess.Popen(command, env=environment)
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda number, frame: None),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda number, frame: started.terminate()),
    }
    try:
        return started.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
