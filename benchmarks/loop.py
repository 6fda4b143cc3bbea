"""The training loop against its bare compiled step: images/s, pairs taken in turn.

python -m benchmarks.loop [--pairs 5] [--steps 200]: prints, for the default recipe and
for vgg11 at 64 pixels, the median ratio loop / bare. The bare step is fed one batch
that is on the devices already; the loop is the trainer's, with its data, log and
metrics, without evaluation and saving. Also the resident memory at steps 100 and 1,000
(--memory).
"""

import argparse
import dataclasses
import pathlib
import statistics
import tempfile
import time

import jax
import psutil

from configs import default
from vgg_flax import config, parallel
from vgg_flax.training import trainer


def small_default() -> config.Config:
    """The default recipe, never evaluating before its end."""
    recipe = default.get_config()
    recipe.eval_every_epochs = 1e6
    recipe.checkpoint_every_steps = 10**9
    return recipe


def vgg11_at_64() -> config.Config:
    """Digits at 64 pixels through a full-width vgg11 with a small head."""
    recipe = small_default()
    recipe.model = config.ModelConfig(
        variant="vgg11", num_classes=10, in_channels=1, head="gap", initializer="glorot"
    )
    recipe.data.train_scale = (64, 64)
    recipe.data.crop_size = recipe.data.test_scale = 64
    recipe.data.batch_size = 32
    return recipe


def bare_seconds(run: trainer.Run, steps: int) -> float:
    """Seconds a step of the compiled step alone, which uses the run's state up."""
    step = run.job.compile_train_step(run.state)
    batch = parallel.shard(next(run.job.train_batches(0)))
    state, metrics = step(run.state, batch)
    jax.block_until_ready(state)
    begin = time.perf_counter()
    for _ in range(steps):
        state, metrics = step(state, batch)
    jax.block_until_ready((state, metrics))
    return (time.perf_counter() - begin) / steps


def loop_seconds(run: trainer.Run) -> float:
    """Seconds a step of the trainer's loop, from its third step on."""
    stamps: list[float] = []
    run.train(lambda _: stamps.append(time.perf_counter()))
    return (stamps[-2] - stamps[2]) / (len(stamps) - 4)  # the last one saves


def compare(name: str, recipe: config.Config, pairs: int, steps: int) -> None:
    """Prints the median ratio of `pairs` alternating measurements."""
    recipe = dataclasses.replace(recipe, num_steps=steps + 4)
    ratios, speeds = [], []
    for _ in range(pairs):
        with tempfile.TemporaryDirectory() as folder:
            with trainer.open_run(recipe, f"{folder}/bare") as run:
                bare = bare_seconds(run, steps)
            with trainer.open_run(recipe, f"{folder}/loop") as run:
                loop = loop_seconds(run)
        ratios.append(bare / loop)
        speeds.append(recipe.data.batch_size / loop)
    print(
        f"{name}: loop/bare {statistics.median(ratios):.3f} "
        f"({', '.join(f'{r:.3f}' for r in ratios)}), "
        f"{statistics.median(speeds):,.0f} images/s"
    )


def memory(recipe: config.Config) -> None:
    """Prints the resident memory at steps 100 and 1,000 of the loop."""
    resident: dict[int, int] = {}

    def note(step: int) -> None:
        if step in (100, 1000):
            resident[step] = psutil.Process().memory_info().rss

    recipe = dataclasses.replace(recipe, num_steps=1001)
    with (
        tempfile.TemporaryDirectory() as workdir,
        trainer.open_run(recipe, workdir) as run,
    ):
        run.train(note)
    mib = {step: size / 2**20 for step, size in resident.items()}
    print(
        f"memory: {mib[100]:,.0f} MiB at step 100, {mib[1000]:,.0f} MiB at step 1,000, "
        f"ratio {mib[1000] / mib[100]:.3f}"
    )


def main() -> None:
    """Runs the comparisons that were asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--memory", action="store_true", help="only the memory")
    options = parser.parse_args()
    assert pathlib.Path("configs").is_dir(), "run me from the project's folder"
    if options.memory:
        memory(small_default())
        return
    compare("default", small_default(), options.pairs, options.steps)
    compare("vgg11 at 64 pixels", vgg11_at_64(), options.pairs, options.steps // 4)


if __name__ == "__main__":
    main()
