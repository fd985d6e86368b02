"""Reading the text of compiled programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from contrastive_jax.train import AXIS
from experiments.benchmarks.accelerators.compile_for import REPLICATED, SHARDED, compile_for, placed
from experiments.benchmarks.accelerators.hlo import (
    Collective,
    collectives,
    dtypes,
    host_calls,
    size,
)

# As for a TPU: starts with their done, the turns of a loop in its condition.
RING = """\
HloModule jit_f, is_scheduled=true

%condition.1 (state: (s32[], f32[8,128])) -> pred[] {
  %four = s32[]{:T(128)} constant(4), metadata={op_name="jit(f)"}
  %state = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %turn = s32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %lt = pred[]{:T(512)} compare(%turn, %four), direction=LT
}

%body.2 (state.1: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %state.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %start = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}, u32[]{:S(2)}) \
collective-permute-start(%gte), channel_id=1, source_target_pairs={{0,1},{1,0}}
  %done = f32[8,128]{1,0:T(8,128)} collective-permute-done(%start), metadata={op_name="ppermute"}
  ROOT %next = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%more, %done)
}

%add.3 (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

ENTRY %main.4 (x: f32[8,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  %begin = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%zero, %x)
  %while.5 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) while(%begin), condition=%condition.1, \
body=%body.2
  ROOT %total = (f32[2]{0:T(128)}, f32[]{:T(128)}) all-reduce(%p, %q), channel_id=2, \
to_apply=%add.3
}
"""

# As for a GPU: an asynchronous collective is a computation, the turns of a loop are configured.
GATHER = """\
HloModule jit_g

%gather (x: bf16[4]) -> bf16[32] {
  %x = bf16[4]{0} parameter(0)
  ROOT %all = bf16[32]{0} all-gather(%x), channel_id=1, dimensions={0}
}

%body (state: (s32[], bf16[32])) -> (s32[], bf16[32]) {
  %state = (s32[], bf16[32]{0}) parameter(0)
  %start = ((bf16[4]{0}), bf16[32]{0}) async-start(%y), calls=%gather
  %done = bf16[32]{0} async-done(%start)
  ROOT %next = (s32[], bf16[32]{0}) tuple(%turn, %done)
}

%some (y: f32[]) -> f32[] {
  ROOT %y = f32[] parameter(0)
}

%other (z: f32[]) -> f32[] {
  %z = f32[] parameter(0)
  ROOT %t = f32[]{} all-reduce(%z), to_apply=%some
}

ENTRY %main (p: pred[], z: f32[]) -> f32[] {
  %w = (s32[], bf16[32]{0}) while(%t), condition=%c, body=%body, \
backend_config={"known_trip_count":{"n":"3"},"known_init_step":{"init":"0","step":"1"}}
  ROOT %r = f32[] conditional(%p, %z, %z), branch_computations={%some, %other}
}
"""


def test_collectives_count_by_their_result_and_the_turns_of_their_loop():
    assert collectives(RING) == [
        Collective("collective-permute", 8 * 128 * 4, 4),
        Collective("all-reduce", 2 * 4 + 4, 1),
    ]


def test_collectives_in_computations_of_their_own_count_too():
    assert collectives(GATHER) == [
        Collective("all-gather", 64, 3),
        Collective("all-reduce", 4, 1),
    ]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("direction=LT", "direction=NE"),
        ("compare(%turn, %four)", "and(%a, %b)"),
        ("%four = s32[]{:T(128)} constant(4)", "%four = s32[]{:T(128)} add(%p, %q)"),
    ],
    ids=["compared otherwise", "not a comparison", "not a constant"],
)
def test_a_loop_that_depends_on_data_counts_as_one_turn(before, after):
    assert before in RING
    assert collectives(RING.replace(before, after))[0].times == 1


def test_loops_in_loops_multiply():
    outer = """\
%outer (s: (s32[])) -> (s32[]) {
  %w = (s32[]) while(%s), condition=%condition.1, body=%body.2
}

ENTRY %main.9 (x: f32[8]) -> f32[8] {
  %w.1 = (s32[]) while(%s), condition=%unread, body=%outer, \
backend_config={"known_trip_count":{"n":"5"}}
}
"""
    assert collectives(RING.replace("ENTRY ", "") + outer) == [
        Collective("collective-permute", 8 * 128 * 4, 20)
    ]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("f32[8,128]{1,0:T(8,128)S(1)}", 4096),
        ("(f32[2]{0}, /*index=1*/bf16[3,5], (pred[7], s8[2]))", 8 + 30 + 9),
        ("f32[]", 4),
        ("s32[0,4]", 0),
        ("u64[2]", 16),
        ("f8e4m3fn[16]", 16),
        ("c64[3]", 24),
        ("token[]", 0),
    ],
)
def test_size_of_a_shape(shape, expected):
    assert size(shape) == expected


def test_types_of_arrays():
    assert dtypes(RING) == {"f32", "s32", "u32", "pred"}
    assert "f64" in dtypes(GATHER.replace("f32[]", "f64[]"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('c = f32[] custom-call(%x), custom_call_target="xla_ffi_python_cpu_callback"', None),
        ('c = f32[] custom-call(%x), custom_call_target="MoveToHost"', "MoveToHost"),
        ("c = ((f32[]), token[]) infeed(%t)", "infeed"),
        ("c = token[] outfeed(%x, %t)", "outfeed"),
        ("c = (f32[], u32[], token[]) send(%x, %t), is_host_transfer=true", "send"),
        ("c = (f32[], token[]) recv-done(%r), is_host_transfer=true", "recv-done"),
    ],
)
def test_calls_of_the_host_are_named(line, expected):
    program = f"ENTRY %main (x: f32[]) -> f32[] {{\n  %{line}\n}}\n"
    assert host_calls(program) == [expected or "xla_ffi_python_cpu_callback"]


def test_other_custom_calls_are_none_of_the_host():
    line = '%c = f32[] custom-call(%x), custom_call_target="__cudnn$convForward"'
    assert host_calls(f"ENTRY %main (x: f32[]) -> f32[] {{\n  {line}\n}}\n") == []
    sent = (
        "ENTRY %main (x: f32[]) -> f32[] {\n  %c = (f32[], token[]) send(%x, %t), channel_id=1\n}\n"
    )
    assert host_calls(sent) == []
    assert host_calls(RING) == []


def test_a_text_that_is_not_a_program_is_refused():
    with pytest.raises(ValueError, match=r"^text must be that of a compiled program.*'nothing'"):
        collectives("nothing")


def test_reads_what_this_jax_compiles():
    mesh = Mesh(np.array(jax.devices()), (AXIS,))
    x = placed(mesh, SHARDED, jax.ShapeDtypeStruct((8 * 4, 16), jnp.float32))

    def ring(x):
        route = [(k, (k + 1) % 8) for k in range(8)]
        turned = jax.lax.fori_loop(0, 3, lambda _, x: jax.lax.ppermute(x * 2, AXIS, route), x)
        return jax.lax.psum(jnp.sum(turned), AXIS), turned

    text = compile_for(mesh, ring, x, results=(REPLICATED, SHARDED)).as_text()
    assert collectives(text) == [
        Collective("collective-permute", 4 * 16 * 4, 3),
        Collective("all-reduce", 4, 1),
    ]
    assert host_calls(text) == []


def test_a_callback_of_this_jax_is_a_call_of_the_host():
    mesh = Mesh(np.array(jax.devices()[:1]), (AXIS,))
    x = placed(mesh, SHARDED, jax.ShapeDtypeStruct((4,), jnp.float32))

    def call(x):
        return jax.pure_callback(np.asarray, x, x)

    assert len(host_calls(compile_for(mesh, call, x).as_text())) == 1
