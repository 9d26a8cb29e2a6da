"""``motarfuse doctor``: what works here, what does not, why, and what to do."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from motarfuse import doctor

EPILOG = """\
example:
  motarfuse doctor            tables for people
  motarfuse doctor --json     the same for programs
  motarfuse doctor --brief    torch and the native parts, a line each

It exits with 0 whenever it could answer, whatever it found.
"""
MARKS = {True: "ok", False: "FAULT", None: "-"}
STYLES = {True: "green", False: "bold red", None: "dim"}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument("--brief", action="store_true", help="print torch and the native parts only")


def run(args: argparse.Namespace) -> int:
    if args.brief:
        torch, problem = doctor.import_torch()
        print(f"torch: {problem or torch.__version__}")
        for finding in doctor.native_findings():
            name = f"motarfuse.{finding.name}"
            said = finding.detail if finding.detail.startswith(name) else f"{name}: {finding.detail}"
            print(said if finding.ok else f"{said}; {finding.remedy}")
        return 0
    report = doctor.examine()
    if args.json:
        print(json.dumps(report.to_dict(), indent=2))
        return 0
    try:
        from rich.table import Table  # noqa: F401
    except ImportError:
        print_plain(report)
    else:
        print_tables(report)
    return 0


def sections(report: doctor.Report) -> list[tuple[str, Sequence[doctor.Finding]]]:
    return [
        ("system", report.system),
        ("packages", report.packages),
        ("optional extras", report.extras),
        ("devices", report.devices),
        ("native parts", report.native),
        ("tools", report.tools),
    ]


def operator_rows(report: doctor.Report) -> list[tuple[str, str, str, str]]:
    """(operator, device, backend, why not the others)."""
    rows = []
    for one in report.operators:
        reasons = [f"{name}: {'; '.join(why)}" for name, why in one.why_not.items()]
        rows.append((one.operator, one.device, one.backend, "\n".join([*reasons, *([one.note] if one.note else [])])))
    return rows


def print_plain(report: doctor.Report) -> None:
    """The report without rich, which may be what is missing."""
    for title, findings in sections(report):
        print(f"\n{title}")
        for one in findings:
            print(f"  {one.name:<12} {MARKS[one.ok]:<6} {one.detail}")
    print("\noperators")
    for operator, device, backend, why in operator_rows(report):
        print(f"  {operator} on {device}: {backend}\n    " + why.replace("\n", "\n    "))
    print("\n".join([*([f"  {report.operators_error}"] if report.operators_error else []), "", *closing(report)]))


def closing(report: doctor.Report) -> list[str]:
    remedies = report.remedies()
    return ["what to do", *(f"  {remedy}" for remedy in remedies)] if remedies else ["Nothing needs mending."]


def print_tables(report: doctor.Report) -> None:
    """The report as tables that fit 80 columns."""
    from rich.table import Table
    from rich.text import Text

    from motarfuse.console import console, info

    def table(title: str) -> Table:
        return Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False, padding=(0, 1))

    for title, findings in sections(report):
        if not findings:
            continue
        grid = table(title)
        grid.add_column(min_width=12, no_wrap=True)
        grid.add_column(min_width=5, no_wrap=True)
        grid.add_column(overflow="fold")
        for one in findings:
            grid.add_row(Text(one.name), Text(MARKS[one.ok], STYLES[one.ok]), Text(one.detail))
        console.print(grid, soft_wrap=False)
        info("")
    grid = table('operators: what impl="auto" takes, and why not the others')
    for name in ("operator", "device", "backend"):
        grid.add_column(name, no_wrap=True)
    grid.add_column("why not the others", overflow="fold")
    for operator, device, backend, why in operator_rows(report):
        grid.add_row(Text(operator), Text(device), Text(backend, "green"), Text(why, "dim"))
    if report.operators_error:
        grid.add_row(Text(report.operators_error, "bold red"))
    console.print(grid, soft_wrap=False)
    info("")
    for line in closing(report):
        info(line)
