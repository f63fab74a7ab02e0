"""`captioner calibrate`: a run learns how sure its captions may be, and which pictures it knows.

In: the parsed arguments. Out: familiarity.json in the run folder; how well it tells things apart on stdout.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from captioner.cli.arguments import apply_limits, limit_arguments

MORE = (
    "Captions the dev pictures and looks at training pictures, then writes a few kilobytes into the run:\n"
    "`caption --json`, the API and the page then say `confidence` (how often captions of such a score were\n"
    "right) and `unfamiliar` (further from the training pictures than 95 of 100 dev pictures)."
)
EXAMPLES = (
    "  captioner calibrate --run runs/flickr8k --data flickr8k\n"
    "  captioner calibrate --run runs/flickr8k --data flickr8k --against holiday-photos"
)


def add_arguments(add: Any) -> None:
    """Adds the arguments of `captioner calibrate`."""
    add("--run", required=True, metavar="DIR", help="run folder of a training")
    add("--data", required=True, action="append", metavar="[LANGUAGE=]ROOT", help="what it was trained on")
    add("--language", metavar="L", help="of captions that carry none, such as de")
    add("--against", metavar="ROOT", help="data set of other pictures: how well are they told apart?")
    limit_arguments(add)


def run(arguments: Namespace) -> int:
    """`captioner calibrate`: familiarity.json of a run."""
    from captioner.inference.loading import load_tensorflow

    apply_limits(arguments)
    load_tensorflow()
    from captioner.evaluation.calibration import calibrate
    from captioner.inference.familiarity import FILE

    found = calibrate(
        arguments.run,
        arguments.data,
        language=arguments.language,
        against=arguments.against,
        quiet=arguments.quiet,
    )
    for language, share in found.right.items():
        spoken = f"{language}: " if language else ""
        print(
            f"{spoken}{100 * share:.0f} % of the dev captions are right; right ones are surer than wrong "
            f"in {100 * found.right_auc[language]:.0f} % of pairs (AUC)"
        )
    if found.unknown_auc is not None and found.unknown_flagged is not None:
        print(
            f"{arguments.against}: further off than dev pictures in {100 * found.unknown_auc:.0f} % of pairs "
            f"(AUC); {100 * found.unknown_flagged:.0f} % are called unfamiliar, of the dev pictures 5 %"
        )
    print(f"written: {arguments.run}/{FILE}")
    return 0
