"""Two real processes compare what they run, stop at one step, and never hang."""

import pathlib
import signal
import subprocess
import sys

import PIL.Image
import pytest
from conftest import changed

from tests import processes
from vgg_flax import config as config_lib
from vgg_flax import errors
from vgg_flax.parallel import distributed
from vgg_flax.runs import log


def start_processes(
    recipes: list[config_lib.Config],
    folder: pathlib.Path,
    devices: int | list[int] = 4,
    folders: list[pathlib.Path] | None = None,
) -> list[processes.Process]:
    """Starts a process for each recipe, whose run is in `folder`/run.

    Args:
      recipes: of each process.
      folder: of the recipes and the run.
      devices: CPU devices, of each process or of all together.
      folders: each process's working directory.
    """
    arguments = [
        [processes.write_recipe(recipe, folder / f"recipe{i}.py")]
        for i, recipe in enumerate(recipes)
    ]
    return processes.start(folder / "run", arguments, devices=devices, folders=folders)


@pytest.fixture
def long_config(bare_config: config_lib.Config) -> config_lib.Config:
    """More steps than any test waits for, evaluated often."""
    return changed(
        bare_config,
        data__eval_batch_size=16,
        data__validation_split="train[90%:93%]",
        log_every_steps=1,
        eval_every_epochs=0.5,
        num_steps=100_000,
    )


def wait_for_steps(started: list[processes.Process], workdir: pathlib.Path) -> None:
    """Returns once the processes have made some steps."""

    def made_some() -> bool:
        return any(r["step"] >= 3 for r in log.read_records(workdir))

    processes.wait_for(started, made_some)


@pytest.mark.slow  # the next test, which is not, sends SIGTERM to one of two, too
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_process_stops_both_at_one_step(
    number: signal.Signals, long_config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    with processes.killed_at_the_end(
        start_processes([long_config] * 2, tmp_path)
    ) as started:
        wait_for_steps(started, workdir)
        started[1].send_signal(number)
        ended = [processes.finish(process, 120) for process in started]
    assert [one.code for one in ended] == [143, 143], ended
    said = [one.err.splitlines()[-1] for one in ended]
    assert said[0] == said[1]
    assert said[0].startswith("stopped by SIGTERM at step ")
    step = int(said[0].split()[5])
    assert processes.finished_steps(workdir)[-1] == step
    if number == signal.SIGINT:
        return
    longer = changed(long_config, num_steps=step + 1, resume_with_changes=True)
    (alone,) = start_processes([longer], tmp_path)
    code, out, err = processes.finish(alone)
    assert code == 0, err[-3000:]
    assert f"resumed at step {step}" in out


HANG_UPS = """
import os, signal
from vgg_flax.parallel.signals import Signals
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
with Signals() as signals:
    for _ in range(3):  # a terminal and its shell may both send it
        os.kill(os.getpid(), signal.SIGHUP)
    print(signals.poll().name)
signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
with Signals() as signals:
    os.kill(os.getpid(), signal.SIGHUP)
    print(signals.poll())
"""


def test_a_hang_up_is_noted_unless_it_is_ignored() -> None:
    (alone,) = processes.start_python([["-c", HANG_UPS]], devices=1)
    ended = processes.finish(alone, 60)
    assert (ended.code, ended.out.split()) == (0, ["SIGHUP", "None"]), ended


SIGNAL_AFTER_A_SAVE = """
import os, pathlib, signal, sys, time
import jax, jax.numpy as jnp
from vgg_flax.parallel import distributed
from vgg_flax.parallel.signals import Signals
from vgg_flax.runs import checkpoint
distributed.initialize(sys.argv[2].partition("=")[2])
folder = pathlib.Path(sys.argv[1])
with Signals() as signals, checkpoint.Checkpoints(folder, keep=3) as checkpoints:
    for _ in range(30):  # steps and evaluated batches: polls run ahead of steps
        assert signals.poll() is None
    checkpoints.save(5, {"params": {"w": jnp.ones(3)}}, {}, None)
    checkpoints.wait()
    if jax.process_index() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(3)  # the processes agree where to stop, by what was asked last
    polls = 31
    while (received := signals.poll()) is None and polls < 300:
        polls += 1
        distributed.wait_for_all("a step")
        time.sleep(0.02)
print("heard", received.name if received else None, "at poll", polls)
"""


def test_a_signal_after_a_save_is_heard_though_orbax_asks_for_it_too(
    tmp_path: pathlib.Path,
) -> None:
    with processes.killed_at_the_end(
        processes.start_python(
            [["-c", SIGNAL_AFTER_A_SAVE, str(tmp_path / "checkpoints")]] * 2, devices=2
        )
    ) as started:
        ended = [processes.finish(process, 120) for process in started]
    assert [one.code for one in ended] == [0, 0], ended
    heard = [one.out.splitlines()[-1] for one in ended]
    assert heard[0] == heard[1]
    assert heard[0].startswith("heard SIGTERM at poll ")


FIRST_ACTS = """
import sys, time
from vgg_flax.errors import VGGFlaxError
from vgg_flax.parallel import distributed
def refuse():
    raise VGGFlaxError("held by another")
distributed.initialize(sys.argv[1].partition("=")[2])
distributed.by_first(lambda: time.sleep(40))  # no collective waits so long on CPUs
distributed.wait_for_all("acted")
try:
    distributed.by_first(refuse)
except VGGFlaxError as error:
    print(error)
"""


@pytest.mark.slow  # it waits
def test_what_the_first_process_does_may_take_long_and_fail() -> None:
    with processes.killed_at_the_end(
        processes.start_python([["-c", FIRST_ACTS]] * 2, devices=2)
    ) as started:
        ended = [processes.finish(process, 120) for process in started]
    assert [one.code for one in ended] == [0, 0], ended
    told = [one.out.splitlines()[-1] for one in ended]
    assert told == ["held by another", "process 0 could not begin, and says why"]


def assert_all_refuse(
    started: list[processes.Process], *parts: str, workdir: pathlib.Path
) -> list[processes.Ended]:
    """All end with code 1 and a message with these parts, before anything is done."""
    ended = [processes.finish(process, 120) for process in started]
    assert [one.code for one in ended] == [1, 1]
    for one in ended:
        for part in parts:
            assert part in one.err
    assert not workdir.exists()
    return ended


def test_a_process_with_other_settings_is_found_before_the_first_step(
    long_config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    other = changed(long_config, data__flip=True, data__batch_size=32, seed=7)
    ended = assert_all_refuse(
        start_processes([long_config, other], tmp_path),
        "[1] differ from process 0 in config.data.batch_size, config.data.flip, "
        "config.seed;",
        workdir=tmp_path / "run",
    )
    for one, here in zip(ended, ("seed=0", "seed=7"), strict=True):
        assert here in one.err


@pytest.mark.slow  # other settings are above
def test_a_process_with_other_devices_is_found_before_the_first_step(
    long_config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    assert_all_refuse(
        start_processes([long_config] * 2, tmp_path, devices=[3, 1]),
        "numbers of devices: 3 in process 0, 1 in process 1; give each",
        workdir=tmp_path / "run",
    )


def write_images(folder: pathlib.Path) -> None:
    """80 images of a shade each, in two classes, for training, and as many to test."""
    for split in ("train", "test"):
        for label in ("dark", "light"):
            (folder / split / label).mkdir(parents=True)
            for i in range(40):
                shade = i + (150 if label == "light" else 0)
                image = PIL.Image.new("L", (32, 32), shade)
                image.save(folder / split / label / f"{i}.png")


@pytest.fixture
def image_config(long_config: config_lib.Config) -> config_lib.Config:
    """Training on the images in `images`, from wherever the process stands."""
    return changed(
        long_config,
        model__num_classes=2,
        data__name="folder",
        data__data_dir="images",
        data__train_split="train",
        data__validation_split="",
        data__batch_size=16,
    )


@pytest.mark.slow  # tests/evaluation has it in plain pytest, and settings are above
def test_a_process_with_other_images_is_found_before_the_first_step(
    image_config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    folders = [tmp_path / "here", tmp_path / "there"]
    for folder in folders:
        write_images(folder / "images")
    moved = folders[1] / "images" / "train" / "dark" / "7.png"
    moved.rename(moved.with_name("97.png"))  # as many images, of the same classes
    assert_all_refuse(
        start_processes([image_config] * 2, tmp_path, folders=folders),
        "[1] differ from process 0 in data;",
        workdir=tmp_path / "run",
    )


@pytest.mark.parametrize(
    "where", ["on", "host,2,0", "host:1,2", "host:1,2,2", "host:1,two,0", "h:1,2,0,0"]
)
def test_where_the_processes_are_is_checked(where: str) -> None:
    with pytest.raises(errors.ConfigError, match="expected auto, off, or ADDRESS"):
        distributed.initialize(where)


def test_off_and_auto_do_nothing_on_a_plain_machine() -> None:
    program = (
        "import jax; from vgg_flax.parallel import distributed\n"
        "for where in ('off', 'auto'):\n"
        "    distributed.initialize(where)\n"
        "    assert not jax.distributed.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(("then", "code"), [("", 1), ("dog.rest()", 0)])
def test_the_watchdog_bites_unless_told_to_rest(then: str, code: int) -> None:
    program = f"""
import time
from vgg_flax.parallel import watchdog
dog = watchdog.Watchdog(1.0)
dog.step_ended()
{then}
time.sleep(3)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert ("most recent call first" in done.stderr) == (code == 1)
