"""What earlier code left: its run loads and resumes, its journal is not trusted."""

import json
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest

import vgg_flax
from tests import processes
from vgg_flax import cli

FILES = pathlib.Path(__file__).parent / "files" / "earlier"  # its README tells of it
ROOT = next(p for p in FILES.parents if (p / "train.py").is_file())

# Not as tests/conftest.py has it: the dropout masks hang on it.
ENVIRONMENT = {"JAX_THREEFRY_PARTITIONABLE": "1"}


def read(name: str) -> dict[str, Any]:
    return json.loads((FILES / name).read_text())


def lines(path: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def python(folder: pathlib.Path, *arguments: str) -> processes.Ended:
    """Runs it in `folder` on one CPU device."""
    with processes.killed_at_the_end(
        processes.start_python(
            [arguments], devices=1, environment=ENVIRONMENT, folders=[folder]
        )
    ) as (process,):
        ended = processes.finish(process)
    assert ended.code == 0, ended.err
    return ended


def flags(settings: dict[str, Any], prefix: str = "--config.") -> list[str]:
    """All settings as flags, so that it does not matter what a recipe says today."""
    arguments = []
    for name, value in settings.items():
        if isinstance(value, dict):
            arguments += flags(value, f"{prefix}{name}.")
        else:
            arguments.append(f"{prefix}{name}={value}")
    return arguments


@pytest.mark.parametrize("step", ["best", "last"])
def test_an_earlier_run_is_loaded_with_its_logits(step: str) -> None:
    net = vgg_flax.load(FILES / "run", step)
    pixels = np.arange(2 * 32 * 32) ** 2 // 7 % 256
    logits = net(pixels.astype(np.uint8).reshape(2, 32, 32, 1))
    expected = np.array(read("expected.json")["logits"][step])
    atol = 1e-5 * np.ptp(expected)
    np.testing.assert_allclose(np.asarray(logits), expected, rtol=0, atol=atol)
    assert (net.variant, net.model.fc_widths) == ("vgg11_bn", (16, 16))
    assert net.class_names == tuple("0123456789")


@pytest.mark.slow  # its programs are no other test's
def test_an_earlier_run_resumes_and_ends_as_it_would_have(
    digits_dir: str, tmp_path: pathlib.Path
) -> None:
    run, expected = tmp_path / "run", read("expected.json")
    shutil.copytree(FILES / "run", run)
    settings = read("run/config.json")
    settings["data"]["data_dir"] = digits_dir
    command = [str(ROOT / "train.py"), f"--workdir={run}", *flags(settings)]
    assert f"resumed at step {expected['step']}\n" in python(tmp_path, *command).out
    before, after = (lines(path / "metrics.jsonl") for path in (FILES / "run", run))
    assert after[: len(before)] == before
    ours, theirs = after[len(before) :], expected["records"]
    assert [(r["step"], r["split"], r["count"]) for r in ours] == [
        (r["step"], r["split"], r["count"]) for r in theirs
    ]
    for name in ("loss", "learning_rate", "gradient_norm"):
        np.testing.assert_allclose(
            [r[name] for r in ours if name in r],
            [r[name] for r in theirs if name in r],
            **({"rtol": 0, "atol": 1e-4} if name == "loss" else {"rtol": 1e-3}),
            err_msg=name,
        )
    before, after = (lines(path / "events.jsonl") for path in (FILES / "run", run))
    assert after[: len(before)] == before
    told = [event["event"] for event in after[len(before) :]]
    assert [*told[:2], told[-1]] == ["start", "resumed", "complete"]


def test_an_earlier_journals_lines_are_computed_again(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They have no checksum; one of them is given another nll, which must not count."""
    shutil.copytree(FILES / "run", tmp_path / "run")
    shutil.copytree(FILES / "journal" / "images", tmp_path / "images")
    output = tmp_path / "result.json"
    monkeypatch.chdir(tmp_path)
    command = ["evaluate", "run", "--data=images", f"--output={output.name}"]
    assert cli.main(command) == 0
    whole = json.loads(output.read_text())
    output.unlink()

    earlier = read("journal/result.json")
    (left,) = (FILES / "journal").glob("*.journal")
    kept = lines(left)
    assert 0 < len(kept) < earlier["count"]
    # The versions of today's packages are in the key, and so in the name.
    journal = tmp_path / left.name.replace(earlier["key"], whole["key"])
    kept[0]["experiments"][0]["nll"] = 7.0
    journal.write_text("".join(json.dumps(line) + "\n" for line in kept))
    told = f"{len(kept)} lines are damaged, or of an earlier version; their images are"
    assert cli.main(command) == 0
    assert told in capsys.readouterr().err
    continued = json.loads(output.read_text())
    assert not journal.exists()

    for result in (whole, continued):
        assert set(earlier) <= set(result)
        for name in ("count", "unreadable", "without_label"):
            assert result[name] == earlier[name]
        assert result["nets"][0]["sha256"] == earlier["nets"][0]["sha256"]
        (ours,), (theirs,) = (r["experiments"] for r in (result, earlier))
        assert ours["nll"] == pytest.approx(theirs["nll"], abs=1e-5)
        for name in ("name", "entries", "top1_count", "top5_count", "top1", "top5"):
            assert ours[name] == theirs[name]
