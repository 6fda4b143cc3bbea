"""The manual's page on functional use, run as it stands."""

import operator
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "functional.md"


@pytest.mark.slow
def test_the_page_runs_and_does_what_it_says(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 7
    assert blocks[0].rstrip().count("\n") < 29  # imports and data are four of them
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)  # one namespace, as a reader has
    output = capsys.readouterr().out
    top1 = re.search(r"top-1 (\d+)% of the last batch", output)
    assert top1 and int(top1[1]) > 50
    assert "made update 4" in output

    params, x, labels = names["params"], names["x"], names["labels"]
    whole = jax.jit(jax.grad(names["loss"]))(params, x, labels)
    each = names["each"]
    jax.tree.map(
        lambda one, all_: np.testing.assert_allclose(all_.mean(axis=0), one, atol=1e-5),
        whole,
        each,
    )

    def slope(params: Any) -> jax.Array:  # the Hessian's product the other way round
        g = jax.grad(names["loss"])(params, x, labels)
        return jax.tree.reduce(operator.add, jax.tree.map(jnp.vdot, g, names["params"]))

    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(
            one, other, rtol=1e-3, atol=1e-3 * np.abs(one).max()
        ),
        jax.jit(jax.grad(slope))(params),
        names["product"],
    )
    np.testing.assert_allclose(np.asarray(names["mean"]).sum(axis=1), 1, rtol=1e-5)
