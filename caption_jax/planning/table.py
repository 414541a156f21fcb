"""Prints a plan to the terminal."""

from __future__ import annotations

from typing import Any

from caption_jax.planning.epoch_table import print_epoch

_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def print_plan(result: dict[str, Any]) -> None:
    """Prints the result of `plan`."""
    chip, phase, parameters = result["chip"], result["phase"], result["parameters"]
    mesh = " x ".join(f"{size} {axis}" for axis, size in result["mesh"].items())
    print(f"\n{result['topology']}: {result['chips']} devices ({mesh}), {result['dtype']}")
    if chip:
        rates = f"{_short(chip['bandwidth'])}B/s, {_short(chip['peak'])}FLOP/s, links {_short(chip['interconnect'])}B/s"
        print(f"  per chip: {_short(chip['memory'])}B of memory, {rates} ({chip['source']})")
    for name, value in result["assumed"].items():
        print(f"  assumed {name.replace('_', ' ')}: {value}")
    starts = ", ".join(map(str, phase["starts"]))
    current = "with nothing frozen" if phase["from_step"] is None else f"from step {phase['from_step']}"
    print(f"  phase {current} (the phases of the run start at {starts})")
    print(f"  parameters: {_short(parameters['all'])}, {_short(parameters['trained'])} of them trained")
    for name, program in result["programs"].items():
        _print_program(name, program)
    if "epoch" in result:
        print_epoch(result["epoch"])
    if "largest_batch" in result:
        trials = "; ".join(
            f"{trial['images']}: {'does not fit' if trial['memory'] is None else _short(trial['memory']) + 'B'}"
            for trial in result["largest_batch"]["tried"]
        )
        print(f"\nlargest batch that fits: {result['largest_batch']['images_per_chip']} images per chip ({trials})")


def _print_program(name: str, program: dict[str, Any]) -> None:
    print(f"\n{name}: {program['images_per_chip']} images per chip")
    if "error" in program:
        print(f"  does not fit: {program['error']}")
        return
    for label, value in _format_program(program):
        print(f"  {label:<28} {value}")
    for group in program["collectives"]:
        print(f"  {_describe_collectives(group)}")
    if program["gathered_may_include_weights"] and any(group["gathered"] for group in program["collectives"]):
        print("  (includes weights with as many rows as the global batch; try another --images_per_chip)")
    if not program["collectives"]:
        print("  no collectives")


def _describe_collectives(group: dict[str, Any]) -> str:
    label = f"{group['count']} x {group['kind']} ({group['axis']})"
    by_dtype = ", ".join(f"{dtype} {_short(count)}B" for dtype, count in group["bytes_by_dtype"].items())
    gathered = f", {_short(group['gathered'])}B with one row per image" if group["gathered"] else ""
    return f"{label:<28} {_short(group['bytes'])}B ({by_dtype}{gathered}), {_short(group['sent'])}B sent per chip"


def _format_program(program: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the rows of a program in the table, as (label, value)."""
    memory, image = program["memory"], program["per_image"]
    parts = ("arguments", "outputs", "temporaries", "code")
    rows = [
        ("memory", f"{_short(memory['total'])}B: " + ", ".join(f"{part} {_short(memory[part])}B" for part in parts))
    ]
    if "headroom" in memory:
        rows.append(("headroom", f"{_short(memory['headroom'])}B" + ("" if program["fits"] else ": does not fit")))
    rows.append(("FLOPs per image", f"{_short(image['flops'])}, {_short(image['matrix_flops'])} in matrix products"))
    if image["analytic_matrix_flops"]:
        ratio = image["matrix_flops"] / image["analytic_matrix_flops"]
        rows.append(("  before compilation", f"{_short(image['analytic_matrix_flops'])}: ratio {ratio:.3f}"))
    by_dtype = ", ".join(f"{dtype} {_short(flops)}" for dtype, flops in image["matrix_flops_by_dtype"].items())
    if by_dtype:
        rows.append(("  by operand type", by_dtype))
    if image["widened_matrix_flops"]:
        rows.append(("  with widened operands", _short(image["widened_matrix_flops"])))
    rows.append(("bytes per image", f"{_short(image['bytes'])}B, {_short(image['memory_bytes'])}B in main memory"))
    rows += [
        (f"    {part}", f"{_short(count)}B ({count / image['memory_bytes']:.1%})")
        for part, count in image["bytes_by_part"].items()
    ]
    rows.append(("changes of layout", f"{_short(image['layout_bytes'])}B per image"))
    rows.append(("arithmetic intensity", f"{program['intensity']:.1f} FLOPs per byte"))
    if "roofline" in program:
        roofline = program["roofline"]
        times = ", ".join(f"{resource} {seconds * 1e3:.2f} ms" for resource, seconds in roofline["seconds"].items())
        rows.append(("minimum time per batch", f"{times}: bound by {roofline['bound']}"))
        per_chip, total = roofline["images_per_second_per_chip"], roofline["images_per_second"]
        rows.append(("maximum images/s", f"{per_chip:,.0f} per chip, {total:,.0f} in total"))
    rows.append(("host transfers", _describe_transfers(program["host_transfers"])))
    rows.append(("compiled in", f"{program['compile_seconds']:.0f} s"))
    return rows


def _describe_transfers(transfers: dict[str, int]) -> str:
    return "; ".join(f"{count} x {source}" for source, count in transfers.items()) or "none"


def _short(number: float) -> str:
    """Formats a number with three digits and a unit prefix, such as "1.23 M" for 1234567."""
    for scale, prefix in _UNITS:
        if abs(number) >= scale:
            return f"{number / scale:.3g} {prefix}"
    return f"{number:.3g} "
