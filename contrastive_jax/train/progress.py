"""Lines and bars that tell how a training goes."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from contrastive_jax.data.datasets import Dataset, PairDataset
from contrastive_jax.train.validation import TITLES


class Progress:
    """A progress bar on a terminal, and a line at each validation elsewhere."""

    def __init__(
        self,
        where: Path,
        data: Dataset | PairDataset,
        steps: int,
        start: int,
        *,
        shown: bool,
        resumed: bool,
    ):
        self.shown, self.steps, self.bar = shown, steps, None
        if not shown:
            return
        print(f"{where}: {data.name}, {_size(data)}, {steps:,} steps")
        if start or resumed:
            without = "" if start else ", as there is no good checkpoint"
            print(f"{where} goes on from step {start:,}{without}")
        if sys.stderr.isatty():
            with contextlib.suppress(ImportError):
                from tqdm import tqdm

                self.bar = tqdm(total=steps, initial=start, unit="step", desc="compiling")
        if self.bar is None:
            print("compiling the training step", flush=True)

    def window(self, now: int, means: Mapping[str, float]) -> None:
        self.last = means
        if self.bar is not None:
            self.bar.set_description("")
            self.bar.update(now - self.bar.n)
            self.bar.set_postfix_str(_line(means))

    def validation(self, now: int, figures: Mapping[str, float]) -> None:
        if not self.shown:
            return
        shown = ", ".join(
            f"{title} {figures[name]:.4f}" for name, title in TITLES.items() if name in figures
        )
        text = f"step {now:,}: {_line(self.last)}; validation {shown}"
        if self.bar is not None:
            self.bar.write(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


@contextlib.contextmanager
def step_bar(steps: int, *, shown: bool = True) -> Iterator[Callable[[int], Any]]:
    """Shows a bar of the steps of all trials of a grid, where there is a terminal.

    Args:
      steps: of all trials together.
      shown: whether to show it.

    Yields:
      A function that takes the number of steps taken since its last call.

    Example:
      >>> from contrastive_jax.train.progress import step_bar
      >>> with step_bar(100) as advance:
      ...     advance(50)
    """
    bar = None
    if shown and sys.stderr.isatty():
        with contextlib.suppress(ImportError):
            from tqdm import tqdm

            bar = tqdm(total=steps, unit="step", smoothing=0.05)
    try:
        yield (lambda taken: None) if bar is None else bar.update
    finally:
        if bar is not None:
            bar.close()


def _size(data: Dataset | PairDataset) -> str:
    if isinstance(data, PairDataset):
        pairs, images = len(data.train.labels), len(data.images)
        return f"{pairs:,} training pairs of {images:,} {_noun(data.images)}"
    return f"{len(data.train.classes):,} training {_noun(data.train.images)}"


def _noun(images: np.ndarray) -> str:
    return "vectors" if images.ndim == 2 else "images"


def _line(means: Mapping[str, float]) -> str:
    return (
        "loss {loss:.4f}, positive {positive_distance:.2f}, negative {negative_distance:.2f}, "
        "{pairs_per_second:,.0f} pairs/s".format(**means)
        + (f", active {means['active_fraction']:.0%}" if "active_fraction" in means else "")
    )
