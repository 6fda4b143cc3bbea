"""Real runs leave a trace of just the steps that were asked for."""

import gzip
import json
import pathlib

import jax
import pytest
from conftest import changed
from etils import epath

from vgg_flax import config as config_lib
from vgg_flax import errors, storage
from vgg_flax.runs import profiling
from vgg_flax.training import trainer


def traced_steps(workdir: pathlib.Path) -> list[list[int]]:
    """The numbers of the steps in each trace, oldest trace first."""
    traces = []
    for folder in sorted(workdir.glob("profile/plugins/profile/*")):
        (xplane,) = folder.glob("*.xplane.pb")  # what xprof reads
        assert xplane.stat().st_size > 1000
        (events,) = folder.glob("*.trace.json.gz")  # the same, as JSON
        with gzip.open(events) as stream:
            told = json.load(stream)["traceEvents"]
        steps = [e["args"]["step_num"] for e in told if e.get("name") == "train"]
        traces.append(sorted(map(int, steps)))
    return traces


@pytest.mark.slow  # a run that ends early, below, traces its own steps too
def test_a_run_traces_the_steps_asked_for_and_a_resumed_one_its_own(
    bare_config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    config = changed(
        bare_config,
        data__validation_split="",
        data__test_split="test[:64]",
        checkpoint_every_steps=3,  # saves in the middle
        num_steps=9,
        profile__start_step=4,
        profile__num_steps=3,
    )
    trainer.train_and_evaluate(config, tmp_path)
    assert traced_steps(tmp_path) == [[4, 5, 6]]
    told = storage.read_records(epath.Path(tmp_path) / "events.jsonl")
    (event,) = [event for event in told if event["event"] == "profiled"]
    assert (event["step"], event["first_step"], event["last_step"]) == (6, 4, 6)

    # Free on resume, though more steps are not; past its place; cut by the run's end.
    longer = changed(
        config, profile__num_steps=100, num_steps=12, resume_with_changes=True
    )
    trainer.train_and_evaluate(longer, tmp_path)
    assert traced_steps(tmp_path)[1:] == [[11, 12]]
    free = changed(longer, profile__start_step=7, resume_with_changes=False)
    trainer.train_and_evaluate(free, tmp_path)  # complete: nothing to trace


def test_without_being_asked_a_run_leaves_no_trace(
    bare_config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    config = changed(
        bare_config, num_steps=3, profile__start_step=2, data__test_split="test[:64]"
    )
    assert config.profile.num_steps == 0
    trainer.train_and_evaluate(config, tmp_path)
    assert not (tmp_path / "profile").exists()


@pytest.mark.slow
def test_a_run_that_ends_early_leaves_no_trace_running(
    bare_config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    config = changed(
        bare_config,
        optimizer__learning_rate=1e38,
        optimizer__warmup_epochs=0.1,  # the first step at a rate of 0
        profile__start_step=2,
        profile__num_steps=50,
    )
    with pytest.raises(errors.VGGFlaxError, match="at step"):
        trainer.train_and_evaluate(config, tmp_path)
    assert traced_steps(tmp_path)[0][0] == 2
    jax.profiler.start_trace(tmp_path / "another")  # raises where one is under way
    jax.profiler.stop_trace()


def test_a_trace_that_cannot_be_kept_is_logged_and_training_goes_on(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "profile").write_text("not a folder")
    asked = config_lib.ProfileConfig(start_step=1, num_steps=1)
    profiler = profiling.Profiler(
        asked, epath.Path(tmp_path), start_step=0, total_steps=9, active=True
    )
    profiler.start()
    profiler.stop()
    assert "the profile is not in" in caplog.text
