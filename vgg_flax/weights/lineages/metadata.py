"""The entry with a model card in the metadata of the weight files that we write."""

import json
from collections.abc import Mapping
from typing import NamedTuple

from vgg_flax.weights import WeightsError
from vgg_flax.weights.card import ModelCard

KEY = "vgg_flax"


class Entry(NamedTuple):
    """What a file that we wrote says of itself.

    Attributes:
      card: of the net in it, as it was when it was written.
      bgr: whether conv1_1's input axis is written blue first.
    """

    card: ModelCard
    bgr: bool


def write(card: ModelCard, *, bgr: bool) -> dict[str, str]:
    """The metadata of a file with this entry: JSON in one string."""
    return {KEY: json.dumps({**card.to_json(), "bgr": bgr})}


def read(metadata: Mapping[str, str]) -> Entry | None:
    """What `write` wrote; None for files of others.

    Raises:
      WeightsError: there is an entry of ours, and it is damaged.
    """
    if KEY not in metadata:
        return None
    try:
        values = json.loads(metadata[KEY])
        return Entry(ModelCard.from_json(values), bool(values["bgr"]))
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise WeightsError(
            f"the metadata {KEY!r} of the file is damaged: {error!r:.200}"
        ) from error
