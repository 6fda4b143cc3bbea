"""Somebody's weights for a run, whose pixels hold where a file tells none."""

from typing import Any

from etils import epath

from vgg_flax import errors, loading
from vgg_flax.config import DataConfig
from vgg_flax.net import Net
from vgg_flax.weights import UntoldError, WeightsError


def load(path_or_name: epath.PathLike, data: DataConfig, **options: Any) -> Net:
    """`vgg_flax.load`; a file that does not tell its pixels has the run's.

    Args:
      path_or_name: as of `load`.
      data: the run's: its sizes, and the mean and std if it gives them.
      options: as of `load`.

    Raises:
      VGGFlaxError: as of `load`.
    """
    try:
        return loading.load(path_or_name, **options)
    except UntoldError as error:
        more: Any = {"crop_size": data.crop_size, "test_scale": data.test_scale}
        if data.mean and data.std:
            more |= {"mean": data.mean, "std": data.std}
        try:
            return loading.load(path_or_name, **options, **more)
        except UntoldError:
            raise WeightsError(
                f"{errors.shown(str(path_or_name))}: {error}; of a run, it is what "
                "config.data.mean and config.data.std say"
            ) from error
