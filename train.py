"""Trains a VGG: `python train.py --config=configs/default.py --workdir=DIR`.

Any field of the config can be overridden: `--config.optimizer.learning_rate=0.02`.
Running the same command again resumes. Exit codes: 0 done; 1 an error that the last
line explains; 130 and 143 stopped by Ctrl-C and SIGTERM, after saving.
"""

import pathlib
import re
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from vgg_flax import config, distributed, trainer

_DEFAULT = str(pathlib.Path(__file__).parent / "configs" / "default.py")


def main(_: list[str]) -> None:
    """Runs the config of the flags in the workdir of the flags."""
    logging.set_verbosity(logging.WARNING)  # Orbax and TFDS tell each step they take
    path = config_flags.get_config_filename(flags.FLAGS["config"])
    workdir = flags.FLAGS.workdir or f"runs/{pathlib.Path(path).stem}"
    settings = flags.FLAGS.config
    if not isinstance(settings, config.Config):
        raise config.ConfigError(
            f"--config={path} is not a recipe; expected a Python file whose "
            "get_config() returns a vgg_flax.config.Config"
        )
    distributed.initialize(flags.FLAGS.distributed)
    trainer.train_and_evaluate(settings, workdir)


def _define_flags() -> None:
    for argument in sys.argv[1:]:
        match = re.match(r"--?config\.([\w.]+)", argument)
        if match and match[1] not in config.flatten(config.Config()):
            raise config.unknown_key(match[1])
        match = re.match(r"--?config=(.*)", argument)
        if match and not pathlib.Path(match[1]).is_file():
            raise config.ConfigError(f"--config={match[1]}: there is no such file")
    config_flags.DEFINE_config_file(
        "config", _DEFAULT, "a recipe: a Python file with get_config()"
    )
    flags.DEFINE_string(
        "workdir", None, "where the run lives; default: runs/NAME_OF_THE_CONFIG"
    )
    flags.DEFINE_string(
        "distributed",
        "auto",
        "how processes find each other: auto (as JAX detects it: Slurm, Cloud TPU, "
        "GKE, Open MPI), off, or ADDRESS:PORT,COUNT,INDEX",
    )


if __name__ == "__main__":
    try:
        _define_flags()
        app.run(main)
    except distributed.Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(stop.exit_code)
    except config.VGGFlaxError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
