"""`vgg-flax export`: a net as an artifact that JAX alone runs."""

import argparse
from typing import Any

from vgg_flax.commands import weights_options


def add(commands: Any) -> None:
    """Adds `export` to the subcommands."""
    command = commands.add_parser(
        "export",
        help="write a net as a jax.export artifact that needs no vgg-flax",
        description="Weights and normalisation are inside; the input is uint8 "
        "[batch, crop, crop, channels], the output logits. DST.json says the rest.",
    )
    add = command.add_argument
    add("weights", metavar="WEIGHTS", help=weights_options.WHAT)
    add("dst", metavar="DST", help="the file to write, as in vgg16.jax")
    add(
        "--platforms",
        default="cpu,cuda,tpu",
        help="of cpu, cuda, rocm, tpu (%(default)s)",
    )
    weights_options.add_fold(command)
    weights_options.add(command)
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from vgg_flax import spelling
    from vgg_flax.inference import export

    net = weights_options.folded(
        options, weights_options.load(options, options.weights)
    )
    size = export.save(net, options.dst, options.platforms.split(","))
    print(f"wrote {net.variant} to {spelling.line(options.dst)} ({size / 1e6:,.1f} MB)")
