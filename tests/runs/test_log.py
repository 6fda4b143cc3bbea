"""A run's records reach whoever looks while it goes on; pictures not too often."""

import pathlib

from etils import epath

from vgg_flax.runs import events, log
from vgg_flax.training.objectives import CLASSIFICATION

RECORD = {
    **{"step": 1, "epoch": 0.5, "split": "validation", "count": 8},
    **{"loss": 2.0, "top1": 0.25, "top1_count": 2, "top5": 0.5, "top5_count": 4},
}


def test_tensorboard_sees_each_validation_and_pictures_come_rarely(
    tmp_path: pathlib.Path,
) -> None:
    with log.Log(
        epath.Path(tmp_path),
        CLASSIFICATION.metrics,
        start=events.Position(),
        total_steps=2,
        active=True,
    ) as told:
        (file,) = (tmp_path / "tensorboard").iterdir()
        empty = file.stat().st_size
        told.record(RECORD)
        told.draw()
        assert file.stat().st_size > empty
        assert not (tmp_path / "curves.png").exists()
        told.draw(last=True)
        assert (tmp_path / "curves.png").stat().st_size > 1000
