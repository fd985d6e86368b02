"""The winner of a search, trained anew with other seeds and evaluated on test."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from contrastive_jax.evaluation.intervals import bootstrap_interval
from contrastive_jax.evaluation.tables import TITLES
from contrastive_jax.search.space import Hyperparameters, text_of
from contrastive_jax.search.trainer import Trainer
from contrastive_jax.train import TrainState, json_lines, trial_figures
from contrastive_jax.train.trial_assembly import AssembledTrials
from contrastive_jax.train.trial_folder import TRIALS, trial_key


def judge(
    trainer: Trainer, best: Hyperparameters, *, seeds: int, steps: int, folder: Path
) -> dict[str, Any]:
    """Trains the winner of a search with new seeds, and evaluates it on test.

    A search that evaluates its own trials on test reports the luck of the best of them. Trials that
    are stored are not trained again.

    Args:
      trainer: of trials.
      best: the hyperparameters that won.
      seeds: number of trainings, with seeds 1, 2, ...
      steps: of each.
      folder: where trials are stored; made if it is not there.

    Returns:
      Hyperparameters, the number of seeds, the seeds that `diverged`, and for each figure on `test`
      its mean and the ends of its interval over seeds.

    Example:
      >>> from pathlib import Path
      >>> import contrastive_jax as cj
      >>> from contrastive_jax.search import judge, make_trainer
      >>> from contrastive_jax.train.training import Training
      >>> digits, objective = cj.data.load("digits"), cj.train.objective("contrastive")
      >>> training = Training(
      ...     model=cj.models.Linear, data=digits, objective=objective, steps=4, batch_size=32
      ... )
      >>> trainer = make_trainer(training, strategy="sequential", report=lambda line: None)
      >>> results = judge(trainer, {"margin": 0.5}, seeds=1, steps=4, folder=Path())
      >>> 0 < results["test"]["map_at_r"]["mean"] < 1
      True
    """
    folder.mkdir(parents=True, exist_ok=True)
    points = [best | {"seed": seed} for seed in range(1, seeds + 1)]
    judged = {
        trial_key(line["hyperparameters"]): line["test"]
        for line in json_lines.read_lines(folder / TRIALS, keys=("hyperparameters",))
        if "test" in line and line.get("steps") == steps
    }
    left = [point for point in points if trial_key(point) not in judged]

    def finished(k: int, made: AssembledTrials, state: TrainState, diverged: int | None) -> None:
        test = None if diverged else trial_figures.on_test(made, state)
        judged[trial_key(left[k])] = test
        record = {"steps": steps, "hyperparameters": left[k], "test": test}
        json_lines.append_line(folder / TRIALS, record)

    trainer.train(left, stop=steps, finished=finished)
    by_seed = [judged[trial_key(point)] for point in points]
    whole = [test for test in by_seed if test]
    figures = {}
    if whole:
        figures = {
            key: bootstrap_interval([one[key] for one in whole])._asdict() for key in whole[0]
        }
    return {
        "hyperparameters": {name: value for name, value in best.items() if name != "seed"},
        "seeds": seeds,
        "diverged": [seed for seed, test in enumerate(by_seed, 1) if not test],
        "test": figures,
    }


def write_results(folder: Path, results: Mapping[str, Any]) -> str:
    """Writes `results.json`, and returns the figures of the winner on test as text.

    Args:
      folder: of the search.
      results: from `judge`.

    Returns:
      A line for the hyperparameters, and one for each figure, with its interval over several seeds.

    Example:
      >>> from pathlib import Path
      >>> from contrastive_jax.search.winner import write_results
      >>> auc = {"mean": 0.9, "low": 0.8, "high": 1.0}
      >>> results = {"hyperparameters": {"margin": 0.5}, "seeds": 3, "diverged": [2]}
      >>> print(write_results(Path(), results | {"test": {"auc": auc}}))
      the winner: margin 0.5; on test, means of 2 new seeds:
        pair ROC AUC: 0.9000 [0.8000, 1.0000]
    """
    # JSON has no NaN, which the ends of an interval of one seed are.
    text = json.dumps(dict(results), indent=2).replace("NaN", "null")
    (folder / "results.json").write_text(text + "\n")
    whole = results["seeds"] - len(results["diverged"])
    winner = text_of(results["hyperparameters"])
    lines = [f"the winner: {winner}; on test, means of {whole} new seeds:"]
    for key, title in TITLES.items():
        if key in results["test"]:
            line = "  {}: {mean:.4f}" + (" [{low:.4f}, {high:.4f}]" if whole > 1 else "")
            lines.append(line.format(title, **results["test"][key]))
    return "\n".join(lines)
