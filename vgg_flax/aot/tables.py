"""What was read from a compiled program, as tables."""

from typing import Any


def compile_tables(told: dict[str, Any]) -> str:
    """What `roofline.report` found, for people."""
    import tabulate

    memory, roofline, donation = told["memory"], told["roofline"], told["donation"]
    mib, mb = 2**20, 1e6
    sizes = [
        (kind, f"{size / mib:,.0f}", f"{size / memory['chip']:.1%}")
        for kind, size in memory.items()
    ]
    exchanges = [
        (
            e["kind"],
            f"{e['bytes'] / mb:,.2f}",
            "yes" if e["asynchronous"] else "no",
            f"{e['seconds'] * 1e3:.3f}",
            f"{e['covered_seconds'] * 1e3:.3f}",
            f"{e['hidden']:.0%}",
        )
        for e in told["collectives"]
    ]
    height, width = told["image_size"]
    versions = ", ".join(f"{k} {v}" for k, v in told["versions"].items())
    whole = "all" if donation["complete"] else "NOT all"
    lines = [
        f"{told['variant']} {told['program']}, {told['dtype']}, {told['chips']} x "
        f"{told['chip']}, {told['per_chip_batch']} images of {height}x{width} a chip",
        versions,
        "",
        tabulate.tabulate(
            sizes,
            ("memory of a chip", "MiB", "of all"),
            colalign=("left", *["right"] * 2),
        ),
        "",
        f"{told['flops']['image'] / 1e9:,.1f} GFLOP an image, "
        f"{told['flops']['step'] / 1e12:,.3f} TFLOP a step and chip",
    ]
    if told["program"] == "train":
        lines.append(
            f"donated: {whole} of the state's {donation['state'] / mib:,.0f} MiB"
        )
    lines += [
        "",
        tabulate.tabulate(
            exchanges,
            ("exchange", "MB", "async", "needs ms", "covered ms", "hidden"),
            colalign=("left", *["right"] * 5),
            disable_numparse=True,
        ),
        f"exposed: {told['exposed_bytes'] / mb:,.1f} of "
        f"{told['exchanged_bytes'] / mb:,.1f} MB exchanged; the params have "
        f"{told['parameter_bytes'] / mb:,.1f} MB",
        "",
        f"estimate from published peaks, not measured: a step "
        f"{roofline['step_seconds']:.4f} s (compute "
        f"{roofline['compute_seconds']:.4f}, memory "
        f"{roofline['memory_seconds']:.4f}, exposed exchanges "
        f"{roofline['exposed_exchange_seconds']:.4f}), "
        f"{roofline['images_per_second']:,.0f} images/s",
    ]
    return "\n".join(lines)
