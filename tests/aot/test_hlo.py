"""What is read from a scheduled program, on one small enough to count by hand."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from vgg_flax.aot import hlo

PROGRAM = """\
HloModule jit_step, is_scheduled=true, entry_computation_layout={...}

%gather_begin (p: bf16[4,8]) -> (bf16[4,8], bf16[16,8], u32[]) {
  %p = bf16[4,8]{1,0} parameter(0)
  %all-gather.1 = bf16[16,8]{1,0} all-gather(%p), dimensions={0}, \
frontend_attributes={chain_id="7"}, metadata={op_name="jit(step)/all_gather"}
  ROOT %c = (bf16[4,8], bf16[16,8], u32[]) custom-call(%all-gather.1)
}

%gather_end (q: bf16[16,8]) -> bf16[16,8] {
  %q = bf16[16,8]{1,0} parameter(0)
  %all-gather.2 = bf16[16,8]{1,0} all-gather(%q), \
frontend_attributes={chain_id="7"}
  ROOT %d = bf16[16,8]{1,0} custom-call(%all-gather.2)
}

%multiply (a: f32[8,8]) -> f32[8,8] {
  %a = f32[8,8]{1,0} parameter(0)
  ROOT %e = f32[8,8]{1,0} convolution(%a, %a), dim_labels=bf_io->bf
}

%cond (r: (f32[8,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(3)
  ROOT %lt = pred[]{:T(512)} compare(%count, %limit), direction=LT
}

%body (s: (f32[8,8])) -> (f32[8,8]) {
  %s = (f32[8,8]{1,0}) parameter(0)
  %g = f32[8,8]{1,0} get-tuple-element(%s), index=0
  %more = f32[8,8]{1,0} fusion(%g), kind=kOutput, calls=%multiply
  %all-reduce.5 = f32[8,8]{1,0} all-reduce(%more), to_apply=%add
  ROOT %t = (f32[8,8]{1,0}) tuple(%all-reduce.5)
}

ENTRY %main (x: f32[8,8], y: bf16[4,8]) -> f32[8,8] {
  %x = f32[8,8]{1,0} parameter(0)
  %y = bf16[4,8]{1,0} parameter(1)
  %async-collective-start = (bf16[4,8], bf16[16,8], u32[]) fusion(%y), \
kind=kCustom, calls=%gather_begin
  %collective-permute-start = (f32[8,8]{1,0}, f32[8,8]{1,0}, u32[]) \
collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}
  %mult = f32[8,8]{1,0:T(8,128)} fusion(%x), kind=kOutput, calls=%multiply, \
backend_config={"window_config":{"estimated_cycles":"900"}}
  %collective-permute-done = f32[8,8]{1,0} \
collective-permute-done(%collective-permute-start)
  %plus = f32[8,8]{1,0} add(%mult, %x), backend_config={"estimated_cycles":"30"}
  %step = bf16[16,8]{1,0} get-tuple-element(%async-collective-start), index=1
  %async-collective-done = bf16[16,8]{1,0} fusion(%step), calls=%gather_end
  %tuple = (f32[8,8]{1,0}) tuple(%plus)
  %loop = (f32[8,8]{1,0}) while(%tuple), condition=%cond, body=%body
  ROOT %all-reduce = (f32[8,8]{1,0}, f32[]) all-reduce(%plus, %zero), to_apply=%add
}
"""


def test_exchanges_and_what_runs_meanwhile() -> None:
    gather, permute, looped, reduced = hlo.collectives(PROGRAM)
    assert (gather.kind, gather.bytes) == ("all-gather", 16 * 8 * 2)
    assert gather.meanwhile is not None
    names = [operation.name for operation in gather.meanwhile]
    assert names[0] == "collective-permute-start" and names[-1] == "step"
    assert sum(operation.cycles for operation in gather.meanwhile) == 930
    assert gather.source == "jit(step)/all_gather"
    assert (permute.kind, permute.bytes) == ("collective-permute", 8 * 8 * 4)
    assert permute.pairs == ((0, 1), (1, 0))
    assert [o.name for o in permute.meanwhile or ()] == ["mult"]
    assert (looped.kind, looped.times, looped.meanwhile) == ("all-reduce", 3, None)
    assert reduced.bytes == 8 * 8 * 4 + 4  # all that a combined reduction returns
    assert reduced.meanwhile is None and reduced.times == 1


def test_operations_say_what_they_cost() -> None:
    found = {operation.name: operation for operation in hlo.operations(PROGRAM)}
    assert (found["mult"].flops, found["plus"].flops) == (2 * 8 * 8 * 8, 0)
    assert found["plus"].touched_bytes == 3 * 8 * 8 * 4
    assert found["tuple"].touched_bytes == 0
    assert found["mult"].cycles == 900


@pytest.mark.parametrize(
    "program",
    [
        PROGRAM,
        PROGRAM.replace("body=%body", 'body=%body, {"known_trip_count":{"n":"3"}}'),
    ],
)
def test_what_is_in_a_loop_counts_as_often_as_it_turns(program: str) -> None:
    times = {operation.name: times for operation, times in hlo.schedule(program)}
    assert (times["mult"], times["more"], times["all-reduce.5"]) == (1, 3, 3)
    assert "loop" not in times


@pytest.mark.parametrize(
    ("kernel", "strides", "padding", "image_step", "kernel_step"),
    [
        ((3, 3), (1, 1), "SAME", (1, 1), (1, 1)),
        ((7, 7), (1, 1), [(6, 6), (6, 6)], (1, 1), (1, 1)),
        ((3, 4), (2, 1), [(1, 2), (0, 3)], (1, 2), (2, 1)),
    ],
)
def test_flops_of_a_convolution_are_those_that_xla_counts(
    kernel: tuple[int, int],
    strides: tuple[int, int],
    padding: Any,
    image_step: tuple[int, int],
    kernel_step: tuple[int, int],
) -> None:
    lowered = jax.jit(
        lambda x, k: jax.lax.conv_general_dilated(
            *(x, k, strides, padding, image_step, kernel_step),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    ).lower(jnp.zeros((2, 9, 8, 3)), jnp.zeros((*kernel, 3, 5)))
    text = re.sub(r"\b\w+\.1\b", r"%\g<0>", lowered.as_text("hlo"))
    assert hlo.count_flops(text) == lowered.cost_analysis()["flops"]


def test_an_unscheduled_program_is_refused() -> None:
    with pytest.raises(ValueError, match="not scheduled"):
        hlo.collectives(PROGRAM.replace("is_scheduled=true", ""))
