"""Time that the devices spend without a batch is seen, and told with what helps."""

import io
import pathlib
import threading
import time
from collections.abc import Iterator

import pytest
import samples
from conftest import changed

from vgg_flax import config as config_lib
from vgg_flax.runs import log
from vgg_flax.runs.waiting import Waiting
from vgg_flax.training import trainer


class Step:
    """What a step gives that ends when it is told to."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    def block_until_ready(self) -> "Step":
        assert self.ended.wait(60)
        return self


def test_only_what_a_step_does_not_hide_is_waiting() -> None:
    waiting, step = Waiting(), Step()

    def batches() -> Iterator[int]:
        time.sleep(0.02)  # before the first step
        yield 0
        time.sleep(0.02)  # while the devices are busy with it
        yield 1
        step.ended.set()
        time.sleep(0.2)  # when they are not any more
        yield 2

    drawn = waiting.drawn(batches())
    assert next(drawn) == 0 and waiting.seconds == 0
    waiting.step_sent({"loss": step})
    assert next(drawn) == 1 and waiting.seconds == 0
    start = time.perf_counter()
    assert next(drawn) == 2
    # Sleeping takes no less than it says; the thread hears of the end a moment later.
    assert 0.1 < waiting.seconds <= time.perf_counter() - start
    assert list(drawn) == []


@pytest.mark.slow  # it waits
def test_a_run_that_waits_for_data_says_so_once(
    bare_config: config_lib.Config,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Photos of megapixels for a net of a few weights, decoded by one thread."""
    stream = io.BytesIO()
    samples.pictures()[0].resize((1920, 1280)).save(stream, "JPEG")
    for split in ("train", "test"):
        for name in range(2):
            path = tmp_path / split / str(name % 2) / f"{name}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(stream.getvalue())
    config = changed(
        bare_config,
        model__num_classes=2,
        model__in_channels=3,
        data__name="folder",
        data__data_dir=str(tmp_path),
        data__train_split="train",
        data__validation_split="",
        data__batch_size=16,
        data__eval_batch_size=8,
        data__mean=None,
        data__std=None,
        data__num_threads=1,
        data__prefetch=1,
        num_steps=6,
        log_every_steps=2,
    )
    trainer.train_and_evaluate(config, tmp_path / "run")
    records = log.read_records(tmp_path / "run")
    shares = [r["waiting_for_data"] for r in records if r["split"] == "train"]
    # The first batches were made while the step was compiled.
    assert len(shares) == 3 and all(0.1 <= share <= 1 for share in shares[1:])
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if line.startswith("waiting for data ")]
    assert len(told) == 1 and "--config.data.train_resize=cv2" in told[0]
    waited = sum(share >= 0.1 for share in shares)
    assert sum("  waiting for data " in line for line in lines) == waited
