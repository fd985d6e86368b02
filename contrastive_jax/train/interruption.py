"""Signals that ask a training to stop, which it does between two steps."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Interruption:
    """The signal that asked to stop, None as long as there was none."""

    signal: int | None = None

    def __call__(self) -> bool:
        """Returns whether a signal has asked to stop."""
        return self.signal is not None


@contextlib.contextmanager
def interruption() -> Iterator[Interruption]:
    """Catches the first SIGINT (Ctrl-C) or SIGTERM; a second one acts at once, as without this.

    Outside of the main thread, which alone receives signals, nothing is caught.

    Yields:
      An object that is called to ask whether a signal has come.

    Example:
      >>> import signal
      >>> from contrastive_jax.train.interruption import interruption
      >>> with interruption() as stop:
      ...     before = stop()
      ...     signal.raise_signal(signal.SIGINT)
      ...     before, stop()
      (False, True)
    """
    stop = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: Any) -> None:
        stop.signal = number
        restore()

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, handle)
    try:
        yield stop
    finally:
        restore()


def leave(number: int, message: str) -> None:
    """Ends the program after a signal for which the training was saved.

    Raises:
      KeyboardInterrupt: after SIGINT, with the message.
      SystemExit: after SIGTERM, with exit code 0.

    Example:
      >>> import signal
      >>> from contrastive_jax.train.interruption import leave
      >>> leave(signal.SIGTERM, "saved")
      Traceback (most recent call last):
          ...
      SystemExit: 0
    """
    if number == signal.SIGINT:
        raise KeyboardInterrupt(message)
    raise SystemExit(0)
