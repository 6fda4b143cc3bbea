"""What was read from a compiled program, as tables."""

from typing import Any


def compile_tables(report: dict[str, Any]) -> str:
    """What `roofline.report` found, for people."""
    import tabulate

    memory, roofline = report["memory"], report["roofline"]
    donation, chip = report["donation"], report["chip"]
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
        for e in report["collectives"]
    ]
    height, width = report["image_size"]
    versions = ", ".join(f"{k} {v}" for k, v in report["versions"].items())
    whole = "all" if donation["complete"] else "NOT all"
    lines = [
        f"{report['variant']} {report['program']}, {report['dtype']}, "
        f"{report['chips']} x {chip}, "
        f"{report['per_chip_batch']} images of {height}x{width} a chip",
        versions,
        "",
        tabulate.tabulate(
            sizes,
            ("memory of a chip", "MiB", "of all"),
            colalign=("left", *["right"] * 2),
        ),
        "",
        f"{report['flops']['image'] / 1e9:,.1f} GFLOP an image, "
        f"{report['flops']['step'] / 1e12:,.3f} TFLOP a step and chip",
    ]
    if report["program"] == "train":
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
        f"exposed: {report['exposed_bytes'] / mb:,.1f} of "
        f"{report['exchanged_bytes'] / mb:,.1f} MB exchanged; the params have "
        f"{report['parameter_bytes'] / mb:,.1f} MB",
        "",
        f"estimate from published peaks, not measured: a step "
        f"{roofline['step_seconds']:.4f} s (compute "
        f"{roofline['compute_seconds']:.4f}, memory "
        f"{roofline['memory_seconds']:.4f}, exposed exchanges "
        f"{roofline['exposed_exchange_seconds']:.4f}), "
        f"{roofline['images_per_second']:,.0f} images/s",
    ]
    return "\n".join(lines)
