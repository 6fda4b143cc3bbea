"""Replicas, FC kernels cut over them, and several processes as one run."""

from vgg_flax.parallel.fc_shards import UNCUT, FCShards, replace_kernels
from vgg_flax.parallel.replicas import (
    AXIS_NAME,
    Devices,
    compile_step,
    pmap_step,
    prefetch,
    replicate,
    shard,
)

__all__ = [
    "AXIS_NAME",
    "UNCUT",
    "Devices",
    "FCShards",
    "compile_step",
    "pmap_step",
    "prefetch",
    "replace_kernels",
    "replicate",
    "shard",
]
