"""Trains a VGG: `python train.py --config=configs/default.py --workdir=DIR`.

Any field of the config can be overridden: `--config.optimizer.learning_rate=0.02`.
Running the same command again resumes. Exit codes: 0 done; 1 an error that the last
line explains; 130 and 143 stopped by Ctrl-C and SIGTERM, after saving.
"""

import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from vgg_flax import config, trainer

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    str(pathlib.Path(__file__).parent / "configs" / "default.py"),
    "a recipe: a Python file with get_config()",
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "where the run lives; default: runs/NAME_OF_THE_CONFIG"
)


def main(_: list[str]) -> None:
    """Runs the flags' config in the flags' workdir."""
    logging.set_verbosity(logging.WARNING)  # Orbax and TFDS tell each step they take
    name = pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    try:
        trainer.train_and_evaluate(_CONFIG.value, _WORKDIR.value or f"runs/{name}")
    except trainer.Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(stop.exit_code)
    except config.VGGFlaxError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    app.run(main)
