"""Whole runs: what they leave behind, resuming, signals, bad input. Real processes."""

import dataclasses
import datetime
import json
import os
import pathlib
import pty
import signal
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import PIL.Image
import pytest
from conftest import changed, random_net, save_run
from etils import epath

import vgg_flax
from tests import processes
from tests.processes import crcs, finish, finished_steps
from vgg_flax import config as config_lib
from vgg_flax import errors, storage
from vgg_flax.runs import checkpoint, directory, log, meter
from vgg_flax.training import resumption, trainer
from vgg_flax.training.plan import Plan

# 20 steps with all that a resume must carry on: dropout, BatchNorm across replicas,
# augmentation, the plateau rule (evaluated every 4 steps), gradient accumulation, what
# is drawn on the device, an average.
TINY = [
    f"--config={processes.ROOT / 'tests' / 'shallow.py'}",
    "--config.model.width_multiplier=0.0625",
    "--config.model.fc_widths=(16,16)",
    "--config.model.batch_norm_across_replicas=true",
    "--config.data.batch_size=32",
    "--config.optimizer.schedule=plateau",
    "--config.optimizer.plateau_patience=1",
    "--config.optimizer.accumulation_steps=2",
    "--config.regularization.label_smoothing=0.1",
    "--config.regularization.mixup_alpha=0.2",
    "--config.regularization.cutmix_alpha=1",
    "--config.regularization.random_erasing=0.25",
    "--config.averaging.decay=0.9",
    "--config.averaging.every_steps=2",
    "--config.eval_every_epochs=0.099",
    "--config.checkpoint_every_steps=3",
    "--config.log_every_steps=2",
    "--config.num_steps=20",
]


def start(workdir: pathlib.Path, digits_dir: str, *flags: str) -> processes.Process:
    """`python train.py` on two CPU devices."""
    data = f"--config.data.data_dir={digits_dir}"
    return processes.start(workdir, [[*TINY, data, *flags]])[0]


def events(workdir: pathlib.Path) -> list[dict[str, Any]]:
    return storage.read_records(epath.Path(workdir) / "events.jsonl")


def wait_for_step(process: processes.Process, workdir: pathlib.Path, step: int) -> None:
    """Returns when a checkpoint of at least `step` is finished."""
    processes.wait_for(
        [process],
        lambda: any(found >= step for found in finished_steps(workdir)),
    )


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, digits_dir: str
) -> pathlib.Path:
    """A run of 20 steps that nothing happened to."""
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    code, out, err = finish(start(workdir, digits_dir))
    assert code == 0, err
    assert "resumed" not in out
    return workdir


def test_a_run_leaves_records_curves_and_its_config(undisturbed: pathlib.Path) -> None:
    records = log.read_records(undisturbed)
    tests = [r for r in records if r["split"] == "test"]
    assert [(r["step"], r["count"]) for r in tests] == [(20, 360)]
    validations = [r for r in records if r["split"] == "validation"]
    assert [(r["step"], r["count"]) for r in validations] == [
        (step, 144) for step in (5, 9, 13, 17, 20)
    ]
    trained = [r for r in records if r["split"] == "train"]
    assert sum(r["count"] for r in trained) == 20 * 32
    for record in records:
        assert 0 <= record["top1"] <= record["top5"] <= 1
    assert {"learning_rate", "gradient_norm", "parameter_norm"} <= set(trained[0])
    saved = config_lib.from_dict(json.loads((undisturbed / "config.json").read_text()))
    assert saved.num_steps == 20
    with PIL.Image.open(undisturbed / "curves.png") as picture:
        assert picture.size == (1000, 400)
    events = list((undisturbed / "tensorboard").glob("events.*"))
    assert len(events) == 1
    assert events[0].stat().st_size > 1000


def test_a_runs_events_tell_its_story_in_order(undisturbed: pathlib.Path) -> None:
    with (undisturbed / "events.jsonl").open() as stream:
        told = [json.loads(line) for line in stream]
    ends = [i for i, event in enumerate(told) if event["event"] == "complete"]
    told = told[: ends[0] + 1]  # another test starts the complete run again
    times = [event["time"] for event in told]
    assert times == sorted(times)
    assert all(time.endswith("+00:00") for time in times)
    assert told[0]["event"] == "start"
    assert (told[0]["devices"], told[0]["processes"]) == (2, 1)
    assert told[0]["versions"] == directory.versions()
    kinds = [(e["event"], e["step"]) for e in told if "save" not in e["event"]]
    evaluations = [
        (f"evaluation_{what}", step)
        for step in (5, 9, 13, 17, 20, 20)  # the last one: of the test split
        for _ in ("params", "average")
        for what in ("started", "finished")
    ]
    expected = [("start", 0), ("compiled", 0), *evaluations, ("complete", 20)]
    assert kinds == expected
    saves = [3, 5, 6, 9, 12, 13, 15, 17, 18, 20]
    for what in ("save_started", "save_finished"):
        assert [e["step"] for e in told if e["event"] == what] == saves
    whole = [e["productive_seconds"] for e in told if "productive_seconds" in e]
    assert whole == sorted(whole) and 0 < whole[1] < whole[-1]
    end, wall = told[-1], told[-1]["wall_seconds"]
    assert end["goodput"] == pytest.approx(end["productive_seconds"] / wall, abs=1e-4)
    assert end["goodput"] == end["goodput_since_start"]
    began, ended = (
        datetime.datetime.fromisoformat(text) for text in (told[0]["began"], times[-1])
    )
    assert wall == pytest.approx((ended - began).total_seconds(), abs=0.1)
    records = [r for r in log.read_records(undisturbed) if r["split"] == "train"]
    assert all(0 <= r["goodput"] == r["goodput_since_start"] < 1 for r in records)


def test_the_newest_three_checkpoints_and_the_best_are_kept(
    undisturbed: pathlib.Path,
) -> None:
    validations = [
        r for r in log.read_records(undisturbed) if r["split"] == "validation_ema"
    ]
    best = max(r["top1"] for r in validations)
    with checkpoint.Checkpoints(undisturbed / "checkpoints", keep=3) as checkpoints:
        steps = checkpoints.steps()
        best_step = checkpoints.best_step()
    assert steps[-3:] == [17, 18, 20]
    assert best in [r["top1"] for r in validations if r["step"] == best_step]
    assert set(steps) == {17, 18, 20, best_step}


@pytest.mark.slow  # tests/faults has it too
def test_after_kill_9_a_run_resumes_to_the_same_bits(
    undisturbed: pathlib.Path, digits_dir: str, tmp_path: pathlib.Path
) -> None:
    process = start(tmp_path, digits_dir)
    wait_for_step(process, tmp_path, 9)
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    before = events(tmp_path)
    with (tmp_path / "events.jsonl").open("a") as stream:
        stream.write('{"time": "2026-01-01T00:')  # as if killed in the middle of it
    code, out, err = finish(start(tmp_path, digits_dir))
    assert code == 0, err
    assert "resumed at step" in out
    after = events(tmp_path)
    assert after[: len(before)] == before
    began, resumed, *_, end = after[len(before) :]
    assert [e["event"] for e in (began, resumed, end)] == [
        *("start", "resumed", "complete")
    ]
    kept = [
        e["productive_seconds"]
        for e in before
        if e["event"] == "save_started" and e["step"] == resumed["step"]
    ]
    since = end["goodput_since_start"] * end["wall_seconds"]
    first = datetime.datetime.fromisoformat(before[0]["began"])
    wall = datetime.datetime.fromisoformat(end["time"]) - first
    assert end["wall_seconds"] == pytest.approx(wall.total_seconds(), abs=0.1)
    assert 0 < end["productive_seconds"] - kept[0] < since
    assert crcs(tmp_path, 20) == crcs(undisturbed, 20)
    ours, theirs = log.read_records(tmp_path), log.read_records(undisturbed)
    for split in ("validation", "test"):
        assert [(r["step"], r["loss"]) for r in ours if r["split"] == split] == [
            (r["step"], r["loss"]) for r in theirs if r["split"] == split
        ]


@pytest.mark.slow  # test_distributed.py sends one in plain pytest
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_step_and_says_how_to_resume(
    number: signal.Signals,
    undisturbed: pathlib.Path,
    digits_dir: str,
    tmp_path: pathlib.Path,
) -> None:
    process = start(tmp_path, digits_dir)
    wait_for_step(process, tmp_path, 3)
    process.send_signal(number)
    code, _, err = finish(process)
    assert code == 128 + number
    assert f"stopped by {number.name} at step" in err
    assert "run the same command again" in err
    stopped_at = int(err.split("at step ")[1].split()[0])
    told = [(e["event"], e["step"], e.get("signal")) for e in events(tmp_path)[-2:]]
    assert told == [
        ("save_finished", stopped_at, None),
        ("stopped", stopped_at, number.name),
    ]
    code, out, err = finish(start(tmp_path, digits_dir))
    assert code == 0, err
    assert f"resumed at step {stopped_at}" in out
    assert crcs(tmp_path, 20) == crcs(undisturbed, 20)


# Takes a terminal as its own and goes on as another program: ARGV: FD, ARGUMENTS.
ON_A_TERMINAL = """
import os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
os.login_tty(int(sys.argv[1]))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


@pytest.mark.slow
def test_a_terminal_that_closes_loses_nothing(
    digits_dir: str, undisturbed: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    ours, theirs = pty.openpty()
    arguments = [str(processes.ROOT / "train.py"), f"--workdir={tmp_path}"]
    arguments += [*TINY, f"--config.data.data_dir={digits_dir}"]
    process = subprocess.Popen(
        [sys.executable, "-c", ON_A_TERMINAL, str(theirs), *arguments],
        pass_fds=[theirs],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "2"},
    )
    os.close(theirs)
    while not any(step >= 3 for step in finished_steps(tmp_path)):
        assert os.read(ours, 1000)  # who does not read makes it wait
    os.close(ours)
    assert process.wait(120) == 128 + signal.SIGHUP
    told = events(tmp_path)[-1]
    assert (told["event"], told["signal"]) == ("stopped", "SIGHUP")
    code, out, err = finish(start(tmp_path, digits_dir))
    assert code == 0, err
    assert f"resumed at step {told['step']}" in out
    assert crcs(tmp_path, 20) == crcs(undisturbed, 20)


@pytest.mark.slow
def test_a_run_goes_on_when_nobody_reads_what_it_says(
    digits_dir: str, tmp_path: pathlib.Path
) -> None:
    process = start(tmp_path, digits_dir)
    assert process.stdout and process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    code, _, err = finish(process)
    assert code == 0 and "Error" not in err, err
    assert events(tmp_path)[-1]["event"] == "complete"


@pytest.mark.slow
def test_a_signal_during_evaluation_loses_nothing(tmp_path: pathlib.Path) -> None:
    root = tmp_path / "images"
    for split, count in (("train", 32), ("val", 64)):
        for label in ("dark", "light"):
            (root / split / label).mkdir(parents=True)
            for i in range(count // 2):
                shade = 8 * (i % 16) + (120 if label == "light" else 0)
                image = PIL.Image.new("L", (32, 32), shade)
                image.save(root / split / label / f"{i}.png")
    flags = [
        f"--config.data.data_dir={root}",
        "--config.data.name=folder",
        "--config.model.variant=vgg11",  # how a run stops is not of its net
        "--config.model.head=gap",
        "--config.model.batch_norm_across_replicas=false",
        "--config.optimizer.accumulation_steps=1",
        "--config.model.num_classes=2",
        "--config.data.train_split=train",
        "--config.data.validation_split=val",
        "--config.data.test_split=val",
        "--config.data.eval_batch_size=8",
        "--config.eval_every_epochs=3",
        "--config.num_steps=6",
    ]
    whole, interrupted = tmp_path / "whole", tmp_path / "interrupted"
    code, _, err = finish(start(whole, "", *flags))
    assert code == 0, err

    # One validation image leads to a pipe: a reader of it is in the first evaluation.
    image = root / "val" / "light" / "7.png"
    data = image.read_bytes()
    image.unlink()
    os.mkfifo(tmp_path / "pipe")
    image.symlink_to(tmp_path / "pipe")
    process = start(interrupted, "", *flags)
    with image.open("wb") as pipe:
        process.send_signal(signal.SIGTERM)
        pipe.write(data)
    code, _, err = finish(process)
    assert code == 143, err
    assert "stopped by SIGTERM at step 3 of 6" in err
    image.unlink()
    image.write_bytes(data)
    code, out, err = finish(start(interrupted, "", *flags))
    assert code == 0, err
    assert "resumed at step 3" in out
    assert crcs(interrupted, 6) == crcs(whole, 6)
    for workdir in (whole, interrupted):
        records = log.read_records(workdir)
        steps = [r["step"] for r in records if r["split"] == "validation"]
        assert steps == [3, 6], workdir


@pytest.mark.slow  # tests/faults has it too
def test_a_damaged_checkpoint_falls_back_loudly_and_ends_at_the_same_bits(
    undisturbed: pathlib.Path, digits_dir: str, tmp_path: pathlib.Path
) -> None:
    process = start(tmp_path, digits_dir)
    wait_for_step(process, tmp_path, 12)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 143
    steps = finished_steps(tmp_path)
    arrays = [
        p for p in (tmp_path / f"checkpoints/{steps[-1]}").rglob("*") if p.is_file()
    ]
    largest = max(arrays, key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    code, out, err = finish(start(tmp_path, digits_dir))
    assert code == 0, err
    assert f"{steps[-1]} is damaged" in err or f"{steps[-1]} cannot be read" in err
    assert f"resumed at step {steps[-2]}" in out
    assert (tmp_path / "damaged" / str(steps[-1])).is_dir()
    told = [(e["event"], e["step"]) for e in events(tmp_path)]
    i = told.index(("damaged", steps[-1]))
    assert told[i - 1] == ("start", 0)
    assert told[i + 1] == ("resumed", steps[-2])
    assert crcs(tmp_path, 20) == crcs(undisturbed, 20)


def test_changed_settings_stop_a_resume_and_are_listed(
    undisturbed: pathlib.Path, tmp_path: pathlib.Path, digits_dir: str
) -> None:
    flags = ["--config.optimizer.learning_rate=0.5", "--config.data.flip=true"]
    code, _, err = finish(start(undisturbed, digits_dir, *flags))
    assert code == 1
    assert "config.optimizer.learning_rate: 0.02 -> 0.5" in err
    assert "config.data.flip: False -> True" in err
    assert "--config.resume_with_changes=true" in err
    assert err.count("->") == 2


def test_a_complete_run_started_again_tells_the_result_as_its_last_line(
    undisturbed: pathlib.Path, digits_dir: str
) -> None:
    """Also with other settings of those that change nothing of the training."""
    records = log.read_records(undisturbed)
    (test,) = [r for r in records if r["split"] == "test_ema"]
    flags = ["--config.log_every_steps=7", "--config.data.num_threads=1"]
    code, out, err = finish(start(undisturbed, digits_dir, *flags))
    assert code == 0, err
    assert "complete" in out
    top1 = f"test_ema top1 {test['top1']:.2%} ({test['top1_count']}/360)"
    assert out.splitlines()[-1].startswith(top1)
    assert log.read_records(undisturbed) == records


@pytest.mark.slow  # test_resumption.py goes on with changes too
def test_resume_with_changes_goes_on(
    bare_config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    trainer.train_and_evaluate(changed(bare_config, num_steps=2), tmp_path)
    longer = changed(bare_config, num_steps=3, resume_with_changes=True)
    assert trainer.train_and_evaluate(longer, tmp_path)["step"] == 3


def test_a_loss_that_is_not_finite_stops_at_once_and_keeps_the_last_good_step(
    bare_config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    config = changed(
        bare_config,
        num_steps=10,
        eval_every_epochs=0.1,
        optimizer__schedule="step",
        optimizer__decay_epochs=(0.2,),
        optimizer__decay_factor=1.0,
    )
    diverging = changed(
        config, optimizer__learning_rate=1e38, optimizer__warmup_epochs=0.2
    )
    diverging = changed(diverging, optimizer__warmup_epochs=0.1)
    with pytest.raises(
        meter.NonFiniteError, match=r"at step \d+.*learning_rate"
    ) as caught:
        trainer.train_and_evaluate(diverging, tmp_path)
    with checkpoint.Checkpoints(tmp_path / "checkpoints", keep=3) as checkpoints:
        kept = max(checkpoints.steps(), default=None)
        said = f"checkpoint, of step {kept}, is kept" if kept else "no step was saved"
        assert said in str(caught.value)
        for step in checkpoints.steps():
            leaves = checkpoints.read(step).leaves
            assert all(abs(float(x.sum())) < 1e38 for x in leaves.values()), step
    records = log.read_records(tmp_path)
    assert all(abs(r["loss"]) < 1e38 for r in records)
    last = events(tmp_path)[-1]
    assert (last["event"], last["type"]) == ("error", "NonFiniteError")


@pytest.mark.slow
def test_a_checkpoint_is_said_to_be_kept_only_where_there_is_one(
    bare_config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    config = changed(bare_config, num_steps=3)
    diverging = changed(
        config, num_steps=9, optimizer__learning_rate=1e38, resume_with_changes=True
    )
    with pytest.raises(meter.NonFiniteError, match="; no step was saved before"):
        trainer.train_and_evaluate(diverging, tmp_path / "new")
    trainer.train_and_evaluate(config, tmp_path / "resumed")
    match = "; the last good checkpoint, of step 3, is kept"
    with pytest.raises(meter.NonFiniteError, match=match):
        trainer.train_and_evaluate(diverging, tmp_path / "resumed")


def test_the_compiled_step_never_recompiles(
    bare_config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    import jax

    compiled: list[str] = []

    def listener(event: str, duration: float, **_: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    config = changed(bare_config, num_steps=2)
    trainer.train_and_evaluate(config, tmp_path / "short")  # compiles helpers too
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        trainer.train_and_evaluate(config, tmp_path / "two")
        two = len(compiled)
        trainer.train_and_evaluate(changed(config, num_steps=9), tmp_path / "nine")
        nine = len(compiled) - two
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert two > 0
    assert nine == two


def test_a_run_transfers_only_what_it_says(
    bare_config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    """Training, validating, the plateau rule, saving and testing: JAX would raise."""
    config = changed(
        bare_config,
        optimizer__schedule="plateau",
        num_steps=5,
        eval_every_epochs=0.1,
        log_every_steps=1,
    )
    with trainer.open_run(config, tmp_path) as run, jax.transfer_guard("disallow"):
        run.train()
        assert run.test()["step"] == 5


def test_undecodable_images_are_skipped_and_counted_when_asked(
    bare_config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    root = tmp_path / "images"
    for split in ("train", "test"):
        for label in ("a", "b"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for i in range(8):
                image = PIL.Image.new("L", (40, 40), 200 if label == "a" else 50)
                image.save(folder / f"{i}.png")
        (root / split / "a" / "3.png").write_bytes(b"not an image")
    config = changed(
        bare_config,
        model__num_classes=2,
        data__name="folder",
        data__data_dir=str(root),
        data__train_split="train",
        data__validation_split="",
        data__batch_size=16,
        data__eval_batch_size=8,
        num_steps=2,
    )
    with pytest.raises(
        vgg_flax.data.batches.DataError, match=r"3\.png.*on_bad_image=skip"
    ):
        trainer.train_and_evaluate(config, tmp_path / "stop")
    config = changed(config, data__on_bad_image="skip")
    record = trainer.train_and_evaluate(config, tmp_path / "skip")
    assert (record["count"], record["skipped"]) == (15, 1)
    trained = [r for r in log.read_records(tmp_path / "skip") if r["split"] == "train"]
    assert sum(r["count"] for r in trained) == 30
    assert sum(r["skipped"] for r in trained) == 2


def test_without_a_test_split_validations_result_is_the_last_line(
    bare_config: config_lib.Config,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From a table of paths and labels, whose splits are taken as they are."""
    rows = ["path,label,split"]
    for i in range(24):
        shade, label = (200, "light") if i % 2 else (50, "dark")
        PIL.Image.new("L", (40, 40), shade).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,{label},{'valid' if i > 15 else 'train'}")
    (tmp_path / "photos.csv").write_text("\n".join(rows))
    config = changed(
        bare_config,
        model__num_classes=0,
        data__name="folder",
        data__data_dir=str(tmp_path / "photos.csv"),
        data__train_split="auto",
        data__validation_split="auto",
        data__test_split="auto",
        data__batch_size=16,
        data__eval_batch_size=8,
        num_steps=2,
    )
    record = trainer.train_and_evaluate(config, tmp_path / "run")
    assert (record["split"], record["count"], record["step"]) == ("validation", 8, 2)
    out = capsys.readouterr().out
    assert "examples: train 16 (train), validation 8 (valid)" in out
    assert out.splitlines()[-1].startswith("validation top1 ")
    saved = json.loads((tmp_path / "run/config.json").read_text())["data"]
    assert (saved["train_split"], saved["validation_split"]) == ("train", "valid")
    assert saved["test_split"] == ""


def test_init_from_takes_the_papers_layers_or_all_of_them(
    tiny_config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    config = changed(tiny_config, model__variant="vgg11")
    save_run(random_net("vgg11", in_channels=1), tmp_path / "a")
    source = vgg_flax.load(tmp_path / "a").variables["params"]
    deeper = changed(
        config,
        model__variant="vgg13",
        init_from=str(tmp_path / "a"),
        init_layers=config_lib.PAPER_INIT_LAYERS,
        seed=1,
    )
    weights = vgg_flax.load(tmp_path / "a")
    params = resumption.new_state(deeper, weights).params
    for layer in params:
        same = layer in source and (
            params[layer]["kernel"].shape == source[layer]["kernel"].shape
            and bool((params[layer]["kernel"] == source[layer]["kernel"]).all())
        )
        assert same == (layer in config_lib.PAPER_INIT_LAYERS), layer

    whole = changed(config, init_from=str(tmp_path / "a"), seed=2)
    params = resumption.new_state(whole, weights).params
    jax.tree.map(np.testing.assert_array_equal, params, source)
    wrong = changed(deeper, init_layers=())
    with pytest.raises(errors.ConfigError, match=r"--config\.model\.variant=vgg11"):
        trainer.train_and_evaluate(wrong, tmp_path / "wrong")
    wrong = changed(deeper, init_layers=("conv9_9",))
    with pytest.raises(errors.ConfigError, match="conv9_9"):
        trainer.train_and_evaluate(wrong, tmp_path / "wrong2")
    with pytest.raises(checkpoint.CheckpointError, match=r"'config', .*init_from"):
        trainer.train_and_evaluate(config, tmp_path / "a")  # a net, and no run


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"data__batch_size": 100}, "data.batch_size=100 .* 8 device.* 96 or 104"),
        ({"data__batch_size": 4}, "try 8"),
        ({"data__eval_batch_size": 9}, "data.eval_batch_size=9 .* 8 or 16"),
        ({"optimizer__accumulation_steps": 3}, "8 device.* x 3 .* 48 or 72"),
        ({"model__num_classes": 11}, "10 classes.*--config.model.num_classes=10"),
        ({"model__fc6_window": 2}, "crop_size=32 .* 64 pixels .*fc6_window=1"),
        ({"model__dtype": "float64"}, "JAX_ENABLE_X64=1"),
        ({"model__variant": "vgg12"}, "'vgg12'.*vgg11"),
        ({"data__name": "mnits"}, "mnist"),
        ({"data__test_split": "tset"}, "tset.*test"),
        ({"data__name": "cifar10", "model__in_channels": 1}, "prepare cifar10"),
    ],
)
def test_bad_settings_stop_before_anything_is_made(
    fields: dict[str, object],
    expected: str,
    tiny_config: config_lib.Config,
    tmp_path: pathlib.Path,
) -> None:
    with pytest.raises(errors.VGGFlaxError, match=expected):
        trainer.train_and_evaluate(changed(tiny_config, **fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_is_a_file_is_named(
    tiny_config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.ConfigError, match=r"--workdir=.*file.*choose another"):
        trainer.train_and_evaluate(tiny_config, tmp_path / "file")


def test_the_plan_counts_examples_not_batches() -> None:
    config = config_lib.Config(num_epochs=2.0, eval_every_epochs=0.5)
    config.data.batch_size = 64
    plan = Plan.of(config, 1293)
    assert plan.total_steps == 41  # ceil(2 * 1293 / 64)
    due = [step for step in range(42) if plan.validates_at(step)]
    assert due == [11, 21, 31, 41]
    assert dataclasses.replace(plan, checkpoint_every_steps=20).saves_at(20)


@pytest.mark.parametrize("keep", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_the_newest_checkpoints_are_kept_and_no_others(
    keep: int, bare_config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    config = changed(
        bare_config,
        data__validation_split="",
        num_steps=5,
        checkpoint_every_steps=1,
        keep_checkpoints=keep,
    )
    trainer.train_and_evaluate(config, tmp_path)
    with checkpoint.Checkpoints(checkpoint.folder_of(tmp_path), 9) as checkpoints:
        assert checkpoints.steps() == [1, 2, 3, 4, 5][-keep:]
