"""`captioner doctor`: what can be typed after it, and what it prints. Loads nothing slow until it does.

In: the parsed arguments. Out: the findings of a `checkup`, a line each, and what to do about them.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import Any

from captioner.system import console

SUMMARY = "say what this machine has, what is missing, and what to install"
MORE = "Exit code 1 if something is missing that every use needs."
EXAMPLES = "  captioner doctor\n  captioner doctor --json"
_MARKS = {"good": ("✓", "green"), "could": ("·", "faint"), "bad": ("✗", "red")}


def add_arguments(add: Any) -> None:
    """Adds the arguments of `captioner doctor`."""
    add("--json", action="store_true", help="everything, as one JSON object")


def doctor(arguments: Namespace) -> int:
    """`captioner doctor`: the findings, the worst of them as exit code."""
    from captioner.cli.checkup import examine
    from captioner.system.files import json_text

    findings = []
    for finding in examine():
        findings.append(finding)
        if not arguments.json:
            mark, colour = _MARKS[finding.state]
            print(f"{console.styled(mark, colour, sys.stdout)} {finding.what:12} {finding.found}", flush=True)
            if finding.remedy:
                print(f"  {'':12} {console.styled(finding.remedy, 'bold', sys.stdout)}", flush=True)
    if arguments.json:
        print(json_text([finding._asdict() for finding in findings], indent=2))
    return 1 if any(finding.state == "bad" for finding in findings) else 0
