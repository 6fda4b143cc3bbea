"""Trains a VGG: `python train.py --config=configs/default.py --workdir=DIR`.

Any field of the config can be overridden: `--config.optimizer.learning_rate=0.02`. A
sweep trains with each of several values: `--sweep seed='[0, 1, 2]'`.
Running the same command again resumes. Exit codes: 0 done; 1 an error that the last
line explains; 129, 130 and 143 stopped by SIGHUP (the terminal closed), Ctrl-C and
SIGTERM, after saving what was done since the last save (a second Ctrl-C does not wait).
"""

import pathlib
import sys
from typing import Any

from absl import app, flags, logging

from vgg_flax import config, console, errors, spelling
from vgg_flax.config import recipe, reference, sweep

# Shown by --help, which takes % for the program's name.
__doc__ = f"{__doc__}\n{reference.help_text()}".replace("%", "%%")
_HELP = {"--help", "--helpfull", "--helpshort", "-help", "-?"}
_DEFAULT = str(pathlib.Path(__file__).parent / "configs" / "default.py")


def main(_: list[str]) -> None:
    """Runs the config of the flags in the workdir of the flags."""
    logging.set_verbosity(logging.WARNING)  # Orbax and TFDS tell each step they take
    path, settings = recipe.of_flags()
    if not flags.FLAGS.sweep:
        settings = config.check(settings)
    points = sweep.points(flags.FLAGS.sweep, settings)
    sweep.check_index(flags.FLAGS.sweep_index, len(points))
    # Not before: a mistake in the flags is told at once, these take seconds.
    from vgg_flax.parallel import compilation_cache, distributed
    from vgg_flax.training import objectives, optimizers, sweeping, trainer

    name = pathlib.Path(path).stem + "_sweep" * bool(points)
    workdir = flags.FLAGS.workdir or f"runs/{name}"
    distributed.initialize(flags.FLAGS.distributed)
    compilation_cache.set_up(flags.FLAGS.compilation_cache)
    objective = objectives.of_recipe(path)

    def optimizer_of(settings: config.Config) -> Any:
        return optimizers.of_recipe(path, settings)

    if points:
        index = flags.FLAGS.sweep_index
        sweeping.run(points, workdir, objective, optimizer_of, index)
    else:
        optimizer = optimizer_of(settings)
        trainer.train_and_evaluate(settings, workdir, objective, optimizer)


def define_flags(
    arguments: list[str], flag_values: flags.FlagValues = flags.FLAGS
) -> None:
    """Defines all flags: the recipe with its fields, the workdir, and how it is run.

    Args:
      arguments: the command line that will be parsed, the program's name first.
      flag_values: where.

    Raises:
      ConfigError: a file or field that does not exist.
    """
    recipe.check_names(arguments[1:])
    recipe.define_flag(_DEFAULT, flag_values, arguments)
    flags.declare_key_flag("config", flag_values)  # shown by --help
    flags.DEFINE_string(
        "workdir",
        None,
        "where the run lives; default: runs/NAME_OF_THE_CONFIG, of a sweep with _sweep",
        flag_values=flag_values,
    )
    flags.DEFINE_multi_string(
        "sweep",
        [],
        "NAME=VALUES, again for each of several fields: trains with each of VALUES, a "
        "Python list, each in a folder of the workdir; NAME,NAME=ROWS of fields that "
        "change together (docs/recipes.md)",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "sweep_index",
        None,
        "trains this one of the sweep's runs, from 0: for a job array",
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "distributed",
        "auto",
        "how processes find each other: auto (as JAX detects it: Slurm, Cloud TPU, "
        "GKE, Open MPI), off, or ADDRESS:PORT,COUNT,INDEX",
        flag_values=flag_values,
    )
    flags.DEFINE_boolean(
        "compilation_cache",
        True,
        "whether compiled programs are kept for the next start, in `compiled` in "
        "~/.cache/vgg_flax (VGG_FLAX_CACHE; JAX_COMPILATION_CACHE_DIR: just these)",
        flag_values=flag_values,
    )


def run() -> int:
    """The program; returns its exit code, if it did not exit by itself."""
    arguments = ["--help" if a == "-h" else a for a in sys.argv]
    try:
        define_flags(arguments)
        app.run(main, arguments)
    except SystemExit:  # absl ends --help with 1, as if it had failed
        if _HELP.isdisjoint(arguments):
            raise
        return 0
    except errors.Interrupted as stop:
        print(stop, file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:  # before the first step, or a second one
        print("stopped by SIGINT", file=sys.stderr)
        return 130
    except errors.VGGFlaxError as error:
        print(f"error: {spelling.line(str(error))}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    with console.outliving_readers():
        sys.exit(run())
