"""Ctrl-C and SIGTERM in the middle of `fit`, each sent to a program of its own."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from contrastive_jax.train import metrics
from contrastive_jax.train.interruption import interruption, leave

ROOT = Path(__file__).parent.parent.parent
STEPS = 20
# After the first window it waits until the file `go` is there, so that the signal comes meanwhile.
PROGRAM = """
import signal, sys, time
from pathlib import Path
import jax, numpy as np
from contrastive_jax import models, train
from contrastive_jax.data.datasets import Dataset, Examples
from contrastive_jax.train import metrics

# A shell starts programs in the background with Ctrl-C ignored, which they would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
name, steps, *resume = sys.argv[1:]
runs = Path(name).parent
write = metrics.write_metrics

def write_and_wait(*arguments):
    write(*arguments)
    metrics.write_metrics = write
    print("window", flush=True)
    while not (runs / "go").exists():
        time.sleep(0.01)

metrics.write_metrics = write_and_wait
classes = np.arange(12) % 3
split = Examples(np.uint8(80 * classes[:, None, None, None] + np.zeros((12, 2, 2, 1))), classes)
run = train.fit(
    models.MLP, Dataset("shades", ("a", "b", "c"), split, split, split),
    train.objective("contrastive"), steps=int(steps), batch_size=6, log_every=5, validate_every=10,
    devices=jax.devices()[:1], runs=runs, name=Path(name).name, progress=False,
    resume=bool(resume),
)
print("done", run.threshold)
"""


def _started(path):
    command = [sys.executable, "-c", PROGRAM, str(path), str(STEPS)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("interruption")


@pytest.fixture(scope="module")
def programs(runs, longer):
    """Programs that are in the middle of a training, by the folder of the run."""
    names = ("SIGTERM", "SIGINT", "twice") if longer else ("SIGTERM", "twice")
    started = {name: _started(runs / name / name) for name in names}
    for name in started:
        (runs / name).mkdir()
    yield started
    for program in started.values():
        program.kill()
        program.communicate()


def _steps(path):
    return [record["step"] for record in metrics.read_metrics(path) if "loss" in record]


# What Ctrl-C does otherwise is in the tests of handlers, of a second signal and of the end below.
@pytest.mark.parametrize(
    ("name", "codes"),
    [
        ("SIGTERM", {0}),
        pytest.param("SIGINT", {130, -signal.SIGINT}, marks=pytest.mark.long),
    ],
)
def test_a_signal_saves_at_the_end_of_the_step(programs, runs, name, codes):
    program = programs[name]
    assert program.stdout.readline() == "window\n", program.stderr.read()
    program.send_signal(getattr(signal, name))
    (runs / name / "go").touch()
    output, errors = program.communicate(timeout=300)
    assert program.returncode in codes, errors
    assert "done" not in output
    assert f"{name} is saved at step 5; resume it to go on, by --resume {name} or fit(" in errors
    assert _steps(runs / name / name) == [1, 2, 3, 4, 5]
    assert (runs / name / name / "checkpoints" / "5").is_dir()


def test_a_run_that_was_stopped_goes_on(runs, programs, monkeypatch, capsys):
    path = runs / "SIGTERM" / "SIGTERM"
    if not (path / "checkpoints" / "5").is_dir():
        pytest.skip("it was not stopped")
    # In this process, which is another one than that which was stopped.
    monkeypatch.setattr(sys, "argv", ["-c", str(path), str(STEPS), "resume"])
    monkeypatch.setattr(metrics, "write_metrics", metrics.write_metrics)
    exec(PROGRAM, {"__name__": "__main__"})
    assert "done" in capsys.readouterr().out
    assert _steps(path) == [*range(1, STEPS + 1)]
    assert (path / "run.json").exists()


def test_a_second_signal_leaves_at_once(programs, runs):
    program = programs["twice"]
    assert program.stdout.readline() == "window\n", program.stderr.read()
    program.send_signal(signal.SIGINT)
    deadline = time.monotonic() + 60
    # The file `go` is not there: the step does not come to its end.
    while program.poll() is None and time.monotonic() < deadline:
        time.sleep(0.3)
        program.send_signal(signal.SIGINT)
    _, errors = program.communicate(timeout=300)
    assert program.returncode in {130, -signal.SIGINT}
    assert "KeyboardInterrupt" in errors
    assert "is saved" not in errors
    assert not [*(runs / "twice" / "twice" / "checkpoints").glob("[0-9]*")]


def test_handlers_are_put_back_and_left_alone_in_threads():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    for number in (signal.SIGTERM, signal.SIGINT):
        with interruption() as stop:
            assert not stop()
            signal.raise_signal(number)
            assert stop()
            assert stop.signal == number
            # From now on a signal acts as without this.
            assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    with pytest.raises(RuntimeError, match="inside"), interruption():
        raise RuntimeError("inside")
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before

    def in_a_thread():
        with interruption() as stop:
            seen.append((stop(), signal.getsignal(signal.SIGINT)))

    seen = []
    thread = threading.Thread(target=in_a_thread)
    thread.start()
    thread.join()
    assert seen == [(False, before[0])]


def test_the_program_ends_by_the_kind_of_the_signal():
    with pytest.raises(KeyboardInterrupt, match="saved"):
        leave(signal.SIGINT, "saved")
    with pytest.raises(SystemExit) as ended:
        leave(signal.SIGTERM, "saved")
    assert ended.value.code == 0
