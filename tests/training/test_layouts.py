"""Processes x devices change nothing: real processes, from 1x4 to 4x1."""

import json
import os
import pathlib

import numpy as np
import pytest
from conftest import changed, tiny

from tests import processes
from vgg_flax import config as config_lib
from vgg_flax.runs import checkpoint, log

pytestmark = pytest.mark.slow

# Each layout is processes x devices of each. 2x2 cuts its FC layers over the devices.
LAYOUTS = {"1x4": (1, 4), "2x2": (2, 2), "4x1": (4, 1), "1x1": (1, 1)}
CUT = {"2x2"}
# float64 shows that a layout changes nothing; of float32, as users train, one pair.
IN_FLOAT32 = ("1x4", "2x2")

Recipes = dict[str, config_lib.Config]  # by the run's folder within the workdir

# Makes the runs that it is given, one after the other: a start takes longer than a run.
# `shallow`'s net: each process compiles all of it.
PROGRAM = """
import json, pathlib, sys, jax
from tests import shallow
from vgg_flax import config, model
from vgg_flax.parallel import distributed
from vgg_flax.training import trainer
model.VARIANTS.update(shallow.NETS)
recipes, workdir, *where = sys.argv[1:]
distributed.initialize(where[0].partition("=")[2] if where else "off")
for name, recipe in json.loads(pathlib.Path(recipes).read_text()).items():
    trainer.train_and_evaluate(config.from_dict(recipe), pathlib.Path(workdir) / name)
"""

# Writes down which examples this process is given in eight epochs of 101, and at which
# places of the global batch of 8; pixels say which example an image is.
NOTE_EXAMPLES = """
import io
import numpy as np, PIL.Image
from vgg_flax.data import batches, splits

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
made = batches.train_batches(
    settings,
    splits.Split("numbered", Numbered(), ("a",)),
    seed=0,
    start_example=0,
    shard=batches.Shard(jax.process_index(), jax.process_count()),
)
seen = []
for step, batch in zip(range(101), made):
    numbers = batch["image"][:, 0, 0, 0].tolist()
    seen += [[step, *of] for of in zip(batch["index"].tolist(), numbers, strict=True)]
path = pathlib.Path(workdir) / f"seen-{jax.process_index()}.json"
path.write_text(json.dumps(seen))
"""


def run(
    recipes: Recipes, workdir: pathlib.Path, layout: str, program: str = PROGRAM
) -> list[str]:
    """Runs a layout's processes to their end; returns what each printed."""
    count, devices = LAYOUTS[layout]
    cut = {k: changed(v, shard_fc=layout in CUT) for k, v in recipes.items()}
    path = workdir / "recipes.json"
    path.write_text(
        json.dumps({k: json.loads(config_lib.to_json(v)) for k, v in cut.items()})
    )
    outputs = []
    for process in processes.start_python(
        [["-c", program, str(path), str(workdir)]] * count,
        devices=[devices] * count,
        environment={
            "JAX_ENABLE_X64": "1",
            # A dozen steps are sooner made than a quick program for them.
            "JAX_DISABLE_MOST_OPTIMIZATIONS": str(bool(os.environ["XLA_FLAGS"])),
        },
    ):
        code, out, err = processes.finish(process, 300)
        assert code == 0, err[-3000:]
        outputs.append(out)
    return outputs


@pytest.fixture(scope="module")
def layouts(
    shallow: None, digits_dir: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Recipes, dict[str, pathlib.Path]]:
    """The recipes, and where each layout (processes x devices) ran them.

    With dropout, augmentation on the host and on the device, BatchNorm across replicas,
    an average and the plateau rule: 12 steps in float64, and one in float32.
    """
    whole = changed(
        tiny(digits_dir),
        model__variant="vgg8_bn",
        model__dtype="float64",
        model__dropout_rate=0.5,
        model__batch_norm_across_replicas=True,
        regularization__label_smoothing=0.1,
        regularization__mixup_alpha=0.2,
        regularization__cutmix_alpha=1.0,
        regularization__random_erasing=0.5,
        averaging__decay=0.9,
        averaging__every_steps=2,
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
    # rounding: between 1x4 and 1x1 vgg11_bn's norms differ by 1.2e-5 with seed 0, by
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
        chosen = {
            k: v for k, v in recipes.items() if k == "float64" or name in IN_FLOAT32
        }
        outputs = run(chosen, workdirs[name], name, PROGRAM + NOTE_EXAMPLES)
        assert f"{count * devices} x cpu in {count} process(es)" in outputs[0]
        # The others say nothing of the run; Gloo's greetings may be interleaved.
        for ours in ("devices:", "parameters:", "step ", "test_ema top1"):
            assert ours in outputs[0]
            assert not any(ours in out for out in outputs[1:])
    return recipes, workdirs


@pytest.mark.parametrize("name", ["2x2", "4x1", "1x1"])
def test_a_run_does_not_depend_on_processes_and_devices(
    name: str, layouts: tuple[Recipes, dict[str, pathlib.Path]]
) -> None:
    _, workdirs = layouts
    theirs, ours = (
        log.read_records(workdirs[layout] / "float64") for layout in ("1x4", name)
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


def test_the_first_float32_step_is_the_same_in_one_process_and_in_two(
    layouts: tuple[Recipes, dict[str, pathlib.Path]],
) -> None:
    _, workdirs = layouts
    there, here = (
        log.read_records(workdirs[name] / "float32")[0] for name in IN_FLOAT32
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
        outputs = run({"float64": longer}, workdirs[saved_by], layout)
        assert "resumed at step 12" in outputs[0]
        folder = checkpoint.folder_of(workdirs[saved_by] / "float64")
        with checkpoint.Checkpoints(folder, 3) as checkpoints:
            leaves.append(checkpoints.read(14).leaves)
    for others in leaves[1:]:
        for path, leaf in leaves[0].items():
            np.testing.assert_allclose(leaf, others[path], rtol=0, atol=1e-9)
