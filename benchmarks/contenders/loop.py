"""The training loop, or its bare compiled step: seconds of so many steps.

The bare step is fed one batch that is on the devices already; the loop is the
trainer's, with its data, log and metrics, without evaluation and saving.
"""

import contextlib
import dataclasses
import pathlib
import tempfile
import time
from typing import Any

import jax

from benchmarks.contenders import serve
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


RECIPES = {"default recipe": small_default, "vgg11 at 64 pixels": vgg11_at_64}


def _bare(recipe: config.Config, folder: str) -> serve.Run:
    """The compiled step alone, of a run that stays open."""
    run = contextlib.ExitStack().enter_context(trainer.open_run(recipe, folder))
    step = run.job.compile_train_step(run.state, 0)
    batch = parallel.shard(next(run.job.train_batches(0)))
    kept: list[Any] = [run.state]

    def steps(repetitions: int) -> None:
        metrics: Any = None
        for _ in range(repetitions):
            kept[0], metrics = step(kept[0], batch)
        jax.block_until_ready((kept, metrics))

    return steps


def _loop(recipe: config.Config, folder: str) -> serve.Run:
    """A run anew each time, timed from its third step on."""

    def steps(repetitions: int) -> float:
        stamps: list[float] = []
        asked = dataclasses.replace(recipe, num_steps=repetitions + 4)
        with (
            tempfile.TemporaryDirectory(dir=folder) as workdir,
            trainer.open_run(asked, workdir) as run,
        ):
            run.train(lambda _: stamps.append(time.perf_counter()))
        return stamps[-2] - stamps[2]  # the last step saves

    return steps


def _resident(recipe: config.Config, folder: str) -> serve.Run:
    """Resident memory at step 1,000 over that at step 100."""

    def growth(_: int) -> float:
        mib: dict[int, float] = {}

        def note(step: int) -> None:
            if step in (100, 1000):
                mib[step] = serve.status_mib("VmRSS")

        asked = dataclasses.replace(recipe, num_steps=1001)
        with (
            tempfile.TemporaryDirectory(dir=folder) as workdir,
            trainer.open_run(asked, workdir) as run,
        ):
            run.train(note)
        return mib[1000] / mib[100]

    return growth


_WHATS = {"bare": _bare, "loop": _loop, "resident": _resident}


def prepare(spec: dict[str, Any]) -> tuple[serve.Run, dict[str, Any]]:
    """The work of `spec`: "bare", "loop" or "resident", and a key of `RECIPES`."""
    folder = pathlib.Path(spec["folder"], f"loop-{spec['what']}")
    folder.mkdir(exist_ok=True)
    workdir = tempfile.mkdtemp(dir=folder)
    return _WHATS[spec["what"]](RECIPES[spec["recipe"]](), workdir), {}


if __name__ == "__main__":
    serve.serve(prepare)
