"""A run's directory is one run's at a time: a second is refused, a lost one stops."""

import json
import pathlib

import pytest
from conftest import changed

import vgg_flax
from vgg_flax import config as config_lib
from vgg_flax import errors
from vgg_flax.runs import lease
from vgg_flax.training import trainer


def contents(workdir: pathlib.Path) -> dict[str, bytes]:
    """All that starts share: TensorBoard's file is each start's own."""
    files = (path for path in workdir.rglob("*") if path.is_file())
    own = ("lease.json", "tensorboard")
    return {
        str(path.relative_to(workdir)): path.read_bytes()
        for path in files
        if path.relative_to(workdir).parts[0] not in own
    }


@pytest.fixture
def config(bare_config: config_lib.Config) -> config_lib.Config:
    return changed(
        bare_config,
        data__validation_split="",
        num_steps=4,
        checkpoint_every_steps=2,
        log_every_steps=1,
    )


def test_a_second_run_is_refused_and_writes_nothing_and_readers_are_not(
    config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    with trainer.open_run(config, tmp_path) as run:
        run.train()
        run.saver.wait()
        before = contents(tmp_path)
        with pytest.raises(errors.VGGFlaxError, match="is held by process") as caught:
            trainer.train_and_evaluate(config, tmp_path)
        assert f"--workdir={tmp_path} " in str(caught.value)
        assert "\n" not in str(caught.value)
        vgg_flax.load(tmp_path)
        assert contents(tmp_path) == before
        assert run.test()["step"] == 4
    assert not (tmp_path / "lease.json").exists()


def test_a_run_that_was_taken_over_writes_no_more(
    config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    before, path = {}, tmp_path / "lease.json"

    def lose(step: int) -> None:
        if step == 2:
            run.saver.wait()
            taken = {"token": "another", "pid": 7, "host": "elsewhere"}
            path.write_text(json.dumps({**json.loads(path.read_text()), **taken}))
            before.update(contents(tmp_path))

    with (
        pytest.raises(lease.LeaseError, match="taken over by process 7 on elsewhere"),
        trainer.open_run(config, tmp_path) as run,
    ):
        run.train(lose)
    assert before == contents(tmp_path)
    assert json.loads(path.read_text())["token"] == "another"
