"""The manual's page on functional use, run as it stands."""

import pathlib
import re

import jax
import numpy as np
import pytest

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "functional.md"


def test_the_page_runs_and_does_what_it_says(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 7
    assert blocks[0].rstrip().count("\n") < 29  # imports and data are four of them
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)  # one namespace, as a reader has
    output = capsys.readouterr().out
    top1 = re.search(r"top-1 (\d+)% of the last batch", output)
    assert top1 and int(top1[1]) > 50
    assert "made update 4" in output

    params, x, labels = names["params"], names["x"], names["labels"]
    whole = jax.grad(names["loss"])(params, x, labels)
    each = names["each"]
    jax.tree.map(
        lambda one, all_: np.testing.assert_allclose(all_.mean(axis=0), one, atol=1e-5),
        whole,
        each,
    )
    ahead, behind = (
        jax.grad(names["loss"])(
            jax.tree.map(lambda w, e=e: w * (1 + e), params), x, labels
        )
        for e in (1e-3, -1e-3)
    )
    flat = [
        jax.flatten_util.ravel_pytree(tree)[0]
        for tree in (ahead, behind, names["product"])
    ]
    difference = (flat[0] - flat[1]) / 2e-3
    assert np.linalg.norm(difference - flat[2]) < 0.1 * np.linalg.norm(flat[2])
    np.testing.assert_allclose(np.asarray(names["mean"]).sum(axis=1), 1, rtol=1e-5)
