"""The figures of benchmarks/scale.py as the table of docs/scale.md: ``python benchmarks/scale_table.py``."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/scale.md"
MARKS = ("<!-- scale.json -->", "<!-- /scale.json -->")
"""In the page, around the table."""


def table(found: dict[str, Any]) -> str:
    """Of the parts that there are figures of, in Markdown."""
    rows: list[tuple[str, str, str]] = []
    for count in (1, 2, 4):
        if one := found.get(f"nodes-{count}"):
            share = "" if count == 1 else f"{one['of_one_node']:.2f} of one node's"
            rows.append(
                (f"nodes: {count}", f"{one['images_per_second_and_node']:,.0f} images a second and node", share)
            )
    for count in (1_000, 10_000):
        if one := found.get(f"blocks-{count}"):
            cpu = one.get("driver_cpu_milliseconds_a_block")
            note = f"{cpu:.1f} of them the driver's CPU, " if cpu else ""
            wall = f"{one['milliseconds_a_block']:.1f} ms a block"
            rows.append((f"blocks: {count:,}", wall, f"{note}two actors on the same two cores"))
    if one := found.get("driver-10000000"):
        listing, again = one["cpu_seconds_listing_and_entering"], one.get("cpu_seconds_finding_nothing_to_do")
        sent = f"{one['units']:,} units, {one['kib_sent_a_unit']:.0f} KiB sent for each"
        rows.append(("rows: 10,000,000 listed and entered", f"{listing:,.0f} s of one core", sent))
        nothing = f"{again:,.0f} s of one core" if again else "no more than that"
        rows.append(("read back, nothing to do", nothing, f"ledger {one['ledger_mib']} MiB"))
        kib = f"{one['kib_of_labels_a_unit']:.0f} and {one['kib_of_notes_a_unit']:.0f} KiB"
        rows.append(("labels and notes of a unit of 1,024", kib, ""))
        rows.append(("merged into large files", f"{one['rows_merged_a_second']:,} rows a second", "from a local disk"))
        rows.append(
            ("peak memory", f"{one['peak_mib']:,.0f} MiB", f"{one['peak_mib_before']:,.0f} before the first row")
        )
    if one := found.get("keys-200000000"):
        figure = f"{one['peak_mib_of_the_run']:,.0f} MiB, {one['peak_mib_of_the_restart']:,.0f} MiB after a restart"
        rows.append(("keys: 200,000,000, the driver's peak memory", figure, f"{one['units']:,} units"))
    where = f"{found['hardware']}, {found['date']}"
    lines = [("simulated", "figure", where), ("---", "---", "---"), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(found: dict[str, Any]) -> None:
    """Put the table into the page."""
    before, _, rest = PAGE.read_text().partition(MARKS[0])
    PAGE.write_text(f"{before}{MARKS[0]}\n{table(found)}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}")


if __name__ == "__main__":
    write(json.loads((ROOT / "benchmarks/results/scale.json").read_text()))
