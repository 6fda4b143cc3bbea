"""Table 1 of the paper: the nets, what they are made of, and their description."""

from vgg_flax.model.column import BATCH_NORM_EPSILON
from vgg_flax.model.table import (
    PAPER_LETTERS,
    PARTS,
    STAGE_WIDTHS,
    STAGES,
    VARIANTS,
    Variant,
    part_of,
    variant_name,
)
from vgg_flax.model.vgg import VGG

__all__ = [
    "BATCH_NORM_EPSILON",
    "PAPER_LETTERS",
    "PARTS",
    "STAGES",
    "STAGE_WIDTHS",
    "VARIANTS",
    "VGG",
    "Variant",
    "part_of",
    "variant_name",
]
