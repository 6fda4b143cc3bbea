"""One error for all that is wrong with a file's tensors, and what may be the cause."""

from collections.abc import Sequence

from vgg_flax.weights import WeightsError
from vgg_flax.weights.lineages import recognition
from vgg_flax.weights.lineages.recognition import Match, Tensors

_WITHOUT_TOP = (
    "include_top=False (--features-only of convert and describe), or train a head on "
    "them: config.init_from"
)


def error(match: Match, tensors: Tensors, problems: Sequence[str]) -> WeightsError:
    """The first dozen of them, and the likely cause."""
    shown = "; ".join(problems[:12])
    if len(problems) > 12:
        shown += f"; and {len(problems) - 12} more"
    if any(problem.endswith(": missing") for problem in problems):
        shown += f"; it holds {recognition.shortened(tensors)}"
    cause = _likely_cause(match, tensors, problems)
    return WeightsError(
        f"these are not the weights of a {match.variant} as {match.layout.name} "
        f"saves it: {shown}" + (f". {cause}" if cause else "")
    )


def _likely_cause(match: Match, tensors: Tensors, problems: Sequence[str]) -> str:
    tops = {slot.foreign for slot in recognition.top_slots(match)}
    missing = {p.removesuffix(": missing") for p in problems if p.endswith(": missing")}
    if recognition.top_is_nan(match, tensors):
        return f"Its FC layers are NaN, a features-only file: use {_WITHOUT_TOP}"
    found = {f"{found}: unexpected": name for name, found in match.names.items()}
    others = [found[problem] for problem in problems if problem in found]
    is_head = all(recognition.is_of_head(match.layout, name) for name in others)
    if missing and missing <= tops and match.head == "none" and not others:
        return f"The file holds the convolutions only: use {_WITHOUT_TOP}"
    if is_head and missing <= tops and (missing or others):
        return f"Its head is not that of a VGG, or not whole: use {_WITHOUT_TOP}"
    by_names = recognition.recognise(tensors)
    if by_names.variant != match.variant:
        return f"By its names the file is a {by_names.variant}"
    th_ordered = match.layout.kernel == "HWIO" and any(
        array.ndim == 4 and array.shape[2:] == (3, 3) and array.shape[:2] != (3, 3)
        for array in tensors.values()
    )
    if th_ordered:
        return (
            "Its kernels are ordered [out, in, height, width], as Keras with Theano "
            "wrote them ('th'): convert the file with Keras 2 first"
        )
    if any(": not finite" in p or "below zero" in p for p in problems):
        return "Training diverged, or the file is damaged"
    return ""
