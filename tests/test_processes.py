"""Two real processes train as one does, stop at one step, and never hang."""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import PIL.Image
import pytest
from conftest import changed, tiny

from vgg_flax import checkpoint, distributed, progress
from vgg_flax import config as config_lib

ROOT = pathlib.Path(__file__).parent.parent

PROGRAM = """
import json, sys, jax
from vgg_flax import config, distributed, trainer
jax.config.update("jax_enable_x64", True)
recipes, workdir, where, devices = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", int(devices))
distributed.initialize(where)
try:
    for name, recipe in json.loads(recipes).items():
        trainer.train_and_evaluate(config.from_dict(recipe), workdir + "/" + name)
except distributed.Interrupted as stop:
    print(stop)
    sys.exit(stop.exit_code)
except config.VGGFlaxError as error:
    print("error:", error)
    sys.exit(1)
"""

Recipes = dict[str, config_lib.Config]  # by the run's folder within the workdir


def start_processes(
    recipes: list[Recipes],
    workdir: pathlib.Path,
    devices: list[int] | None = None,
    folders: list[pathlib.Path] | None = None,
    program: str = PROGRAM,
) -> list[subprocess.Popen[str]]:
    """Starts a process for each of `recipes`, which it runs one after the other.

    Args:
      recipes: of each process.
      workdir: of all of them.
      devices: CPU devices of each process; None: 4 together.
      folders: each process's working directory.
      program: what they run.
    """
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    del environment["JAX_NUM_CPU_DEVICES"]
    count = len(recipes)
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-c", program),
                json.dumps({k: dataclasses.asdict(v) for k, v in chosen.items()}),
                str(workdir),
                f"{address},{count},{index}" if count > 1 else "auto",
                str(devices[index] if devices else 4 // count),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=folders[index] if folders else None,
        )
        for index, chosen in enumerate(recipes)
    ]


def run_processes(
    recipes: Recipes,
    workdir: pathlib.Path,
    count: int,
    devices: int,
    program: str = PROGRAM,
) -> list[str]:
    """Runs `count` processes to their end; returns what each printed."""
    outputs = []
    for process in start_processes(
        [recipes] * count, workdir, [devices] * count, program=program
    ):
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err[-3000:]
        outputs.append(out)
    return outputs


# Trains, and writes down which examples this process was given in eight epochs of 101
# and at which places of the global batch of 8; pixels say which example an image is.
LAYOUT_PROGRAM = (
    PROGRAM
    + """
import io, pathlib
import numpy as np, PIL.Image
from vgg_flax import dataset

class Numbered:
    def __len__(self):
        return 101

    def __getitem__(self, index):
        stream = io.BytesIO()
        PIL.Image.fromarray(np.full((32, 32), index, np.uint8)).save(stream, "png")
        return {"image": stream.getvalue(), "label": 0, "key": str(index)}

settings = config.DataConfig(
    batch_size=8, train_view="pad_crop", train_scale=(32, 32), crop_size=32,
    padding=0, test_scale=32, mean=(0.5,), std=(0.5,),
)
batches = dataset.train_batches(
    settings,
    dataset.Split("numbered", Numbered(), ("a",)),
    seed=0,
    start_step=0,
    shard=dataset.Shard(jax.process_index(), jax.process_count()),
)
seen = []
for step, batch in zip(range(101), batches):
    numbers = batch["image"][:, 0, 0, 0].tolist()
    seen += [[step, *of] for of in zip(batch["index"].tolist(), numbers, strict=True)]
path = pathlib.Path(workdir) / f"seen-{jax.process_index()}.json"
path.write_text(json.dumps(seen))
"""
)
LAYOUTS = {"1x4": (1, 4), "2x2": (2, 2), "4x1": (4, 1), "1x1": (1, 1)}


@pytest.fixture(scope="module")
def layouts(
    digits_dir: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Recipes, dict[str, pathlib.Path]]:
    """The recipes, and where each layout (processes x devices) ran them.

    With dropout, augmentation, BatchNorm across replicas and the plateau rule: 12
    steps in float64, and one in float32.
    """
    whole = changed(
        tiny(digits_dir),
        model__dtype="float64",
        model__dropout_rate=0.5,
        model__batch_norm_across_replicas=True,
        data__flip=True,
        data__eval_batch_size=16,
        data__validation_split="train[90%:93%]",
        data__test_split="test[:10%]",
        optimizer__schedule="plateau",
        log_every_steps=1,
        eval_every_epochs=0.2,
        num_steps=12,
    )
    # Where a gradient is a small difference of large numbers, float32 shows its own
    # rounding: between 1x4 and 1x1 norms differ by 1.2e-5 with seed 0 (jax 0.12), by
    # 3e-6 with seed 1 and by 2e-7 with seed 2, and by 1e-15 in float64 with each.
    first = changed(
        whole,
        model__dtype="float32",
        data__eval_batch_size=64,
        num_steps=1,
        seed=2,
    )
    recipes = {"float64": whole, "float32": first}
    workdirs = {}
    for name, (count, devices) in LAYOUTS.items():
        workdirs[name] = tmp_path_factory.mktemp(name)
        outputs = run_processes(recipes, workdirs[name], count, devices, LAYOUT_PROGRAM)
        assert f"{count * devices} x cpu in {count} process(es)" in outputs[0]
        # The others say nothing of the run; Gloo's greetings may be interleaved.
        for ours in ("devices:", "parameters:", "step ", "test top1"):
            assert ours in outputs[0]
            assert not any(ours in out for out in outputs[1:])
    return recipes, workdirs


@pytest.mark.parametrize("name", ["2x2", "4x1", "1x1"])
def test_a_run_does_not_depend_on_processes_and_devices(
    name: str, layouts: tuple[Recipes, dict[str, pathlib.Path]]
) -> None:
    _, workdirs = layouts
    theirs, ours = (
        progress.read_records(workdirs[layout] / "float64") for layout in ("1x4", name)
    )
    assert [(r["step"], r["split"]) for r in ours] == [
        (r["step"], r["split"]) for r in theirs
    ]
    assert [r["step"] for r in ours if r["split"] == "train"] == list(range(1, 13))
    for here, there in zip(ours, theirs, strict=True):
        for counted in ("count", "top1", "top5"):
            assert here[counted] == there[counted], (here, there)
        np.testing.assert_allclose(here["loss"], there["loss"], rtol=0, atol=1e-9)
    assert {r["count"] for r in ours if r["split"] == "validation"} == {43}
    there, here = (
        progress.read_records(workdirs[layout] / "float32")[0]
        for layout in ("1x4", name)
    )
    assert (here["step"], here["split"]) == (1, "train")
    np.testing.assert_allclose(here["loss"], there["loss"], rtol=1e-5)
    for norm in ("gradient_norm", "parameter_norm"):
        np.testing.assert_allclose(here[norm], there[norm], rtol=1e-5)


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_example_of_an_epoch_is_lost_or_repeated(
    name: str, layouts: tuple[Recipes, dict[str, pathlib.Path]]
) -> None:
    _, workdirs = layouts
    files = list(workdirs[name].glob("seen-*.json"))
    assert len(files) == LAYOUTS[name][0]
    seen = sorted(tuple(one) for path in files for one in json.loads(path.read_text()))
    places = [(step, place) for step in range(101) for place in range(8)]
    assert [(step, place) for step, place, _ in seen] == places
    numbers = [number for _, _, number in seen]
    for epoch in range(8):
        assert sorted(numbers[101 * epoch :][:101]) == list(range(101))


def test_a_checkpoint_of_one_layout_continues_in_another(
    layouts: tuple[Recipes, dict[str, pathlib.Path]],
) -> None:
    recipes, workdirs = layouts
    longer = changed(recipes["float64"], num_steps=14, resume_with_changes=True)
    leaves = []
    for saved_by, layout in (("4x1", "1x1"), ("1x1", "2x2"), ("2x2", "1x4")):
        outputs = run_processes(
            {"float64": longer}, workdirs[saved_by], *LAYOUTS[layout]
        )
        assert "resumed at step 12" in outputs[0]
        folder = checkpoint.folder_of(workdirs[saved_by] / "float64")
        with checkpoint.Checkpoints(folder, 3) as checkpoints:
            leaves.append(checkpoints.read(14).leaves)
    for others in leaves[1:]:
        for path, leaf in leaves[0].items():
            np.testing.assert_allclose(leaf, others[path], rtol=0, atol=1e-9)


@pytest.fixture
def long_config(tiny_config: config_lib.Config) -> config_lib.Config:
    """More steps than any test waits for, evaluated often."""
    return changed(
        tiny_config,
        data__eval_batch_size=16,
        data__validation_split="train[90%:93%]",
        log_every_steps=1,
        eval_every_epochs=0.5,
        num_steps=100_000,
    )


@contextlib.contextmanager
def running(
    recipes: list[config_lib.Config], workdir: pathlib.Path
) -> Iterator[list[subprocess.Popen[str]]]:
    """The processes once they have made some steps; none is left behind."""
    processes = start_processes([{"run": recipe} for recipe in recipes], workdir)
    try:
        end = time.monotonic() + 300
        while not [r for r in progress.read_records(workdir / "run") if r["step"] > 2]:
            assert all(process.poll() is None for process in processes)
            assert time.monotonic() < end
            time.sleep(0.05)
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_process_stops_both_at_one_step(
    number: signal.Signals, long_config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    with running([long_config] * 2, tmp_path) as processes:
        processes[1].send_signal(number)
        outputs = [process.communicate(timeout=120) for process in processes]
        assert [process.returncode for process in processes] == [143, 143], outputs
    said = [out.splitlines()[-1] for out, _ in outputs]
    assert said[0] == said[1]
    assert said[0].startswith("stopped by SIGTERM at step ")
    step = int(said[0].split()[5])
    with checkpoint.Checkpoints(tmp_path / "run/checkpoints", 3) as checkpoints:
        assert checkpoints.steps()[-1] == step
    if number == signal.SIGINT:
        return
    longer = changed(long_config, num_steps=step + 1, resume_with_changes=True)
    (output,) = run_processes({"run": longer}, tmp_path, 1, 4)
    assert f"resumed at step {step}" in output


def test_a_process_with_other_settings_is_found_before_the_first_step(
    long_config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    other = changed(long_config, data__flip=True, data__batch_size=32, seed=7)
    processes = start_processes([{"run": long_config}, {"run": other}], tmp_path)
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    differing = "config.data.batch_size, config.data.flip, config.seed;"
    for out, here in zip(outputs, ("seed=0", "seed=7"), strict=True):
        assert f"[1] differ from process 0 in {differing}" in out
        assert here in out
    assert not progress.read_records(tmp_path / "run")


def test_a_process_with_other_devices_is_found_before_the_first_step(
    long_config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    recipes: list[Recipes] = [{"run": long_config}] * 2
    processes = start_processes(recipes, tmp_path, devices=[3, 1])
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    for out in outputs:
        assert "numbers of devices: 3 in process 0, 1 in process 1; give each" in out
    assert not (tmp_path / "run").exists()


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
        checkpoint_every_steps=1,
    )


def test_a_process_with_other_images_is_found_before_the_first_step(
    image_config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    folders = [tmp_path / "here", tmp_path / "there"]
    for folder in folders:
        write_images(folder / "images")
    moved = folders[1] / "images" / "train" / "dark" / "7.png"
    moved.rename(moved.with_name("97.png"))  # as many images, of the same classes
    processes = start_processes(
        [{"run": image_config}] * 2, tmp_path / "runs", folders=folders
    )
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    for out in outputs:
        assert "[1] differ from process 0 in data;" in out
    assert not (tmp_path / "runs" / "run").exists()


def test_a_process_that_raises_ends_the_other(
    image_config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    write_images(tmp_path / "images")
    bad = tmp_path / "images" / "train" / "light" / "7.png"
    bad.write_bytes(b"no image")  # by this seed's order process 1 alone reads it
    processes = start_processes(
        [{"run": image_config}] * 2, tmp_path / "runs", folders=[tmp_path] * 2
    )
    try:
        assert processes[1].stdout is not None
        assert any("7.png: cannot decode" in line for line in processes[1].stdout)
        for process in processes:
            process.communicate(timeout=90)
            assert process.returncode != 0
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("fault", [signal.SIGSTOP, signal.SIGKILL])
def test_a_process_that_stops_or_dies_does_not_hang_the_other(
    fault: signal.Signals, long_config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
    recipe = changed(long_config, step_timeout_seconds=20.0)
    with running([recipe] * 2, tmp_path) as processes:
        processes[1].send_signal(fault)
        processes[0].communicate(timeout=90)
        assert processes[0].returncode != 0


@pytest.mark.parametrize(
    "where", ["on", "host,2,0", "host:1,2", "host:1,2,2", "host:1,two,0", "h:1,2,0,0"]
)
def test_where_the_processes_are_is_checked(where: str) -> None:
    with pytest.raises(config_lib.ConfigError, match="expected auto, off, or ADDRESS"):
        distributed.initialize(where)


def test_off_and_auto_do_nothing_on_a_plain_machine() -> None:
    program = (
        "import jax; from vgg_flax import distributed\n"
        "for where in ('off', 'auto'):\n"
        "    distributed.initialize(where)\n"
        "    assert not jax.distributed.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(("then", "code"), [("", 1), ("dog.rest()", 0)])
def test_the_watchdog_bites_unless_told_to_rest(then: str, code: int) -> None:
    program = f"""
import time
from vgg_flax import distributed
dog = distributed.Watchdog(1.0)
dog.step_ended()
{then}
time.sleep(3)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert ("most recent call first" in done.stderr) == (code == 1)
