"""`captioner adapt`: from a folder of corrected captions and a trained run to a run of one's own.

In: the parsed arguments. Out: a run folder with its compiled form; on stdout the scores before and after, and
captions of pictures that were kept aside, before, after, and as people wrote them.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from captioner.cli.arguments import apply_limits, format_argument, limit_arguments, set_argument
from captioner.cli.outputs import check_run_folder
from captioner.errors import CaptionerError, ConfigError
from captioner.system import console

MORE = (
    "Begins with a trained run, the one that comes with captioner unless told otherwise, and learns from\n"
    "what people wrote in FOLDER: text files or XMP beside the pictures, a table, or any data set. Captions\n"
    "that captioner wrote itself and nobody has changed are not learned from. New words are taken in, what\n"
    "the run knew is held; the run itself stays as it is. Ctrl-C finishes the step and saves."
)
EXAMPLES = (
    "  captioner caption photos --recursive --write txt   # and correct what is wrong, wherever you like\n"
    "  captioner review photos                            # which to correct first\n"
    "  captioner adapt photos --run runs/mine\n"
    "  captioner caption photos --recursive --write txt --if-exists renew --run runs/mine\n"
    "  captioner adapt photos --run runs/mine --resume"
)
MOST_UNCORRECTED = 300  # pictures whose captions hold the model to what it knew: more take long to look at
SHOWN = 10  # pictures side by side
LABELS = {"cider": "CIDEr", "bleu4": "BLEU-4", "rouge_l": "ROUGE-L", "dev_loss": "loss, nats per word"}
EPOCHS, PICTURES = 8, 160  # so many epochs for so many pictures; fewer are seen more often, more less often
EPOCHS_LEAST, EPOCHS_MOST = 4, 12  # of a wording that the run knows; more only learns these pictures by heart
SMALL = 64  # pictures: fewer are learned from in batches of half the size, which are more steps
OTHER_RATE, OTHER_EPOCHS = (
    1e-3,
    12,
)  # learning rate and epochs of another language: there is little to be kept
CIDER_FROM = 100  # pictures kept aside: with fewer CIDEr is mostly chance, and the loss chooses the epoch


def add_arguments(add: Any) -> None:
    """Adds the arguments of `captioner adapt`."""
    add("folder", metavar="FOLDER", help="pictures with corrected captions")
    add("--from", dest="start", metavar="RUN", help="run to begin with (else as for `captioner caption`)")
    add("--run", metavar="DIR", help="folder for the run that comes of it (a new runs/FOLDER-adapt)")
    add("--resume", action="store_true", help="go on where it was stopped in DIR")
    add("--captions", metavar="DIR", help="where the captions are, if `--out` put them elsewhere")
    add("--accept", action="store_true", help="learn from captions that nobody has changed, too")
    add(
        "--language", metavar="L", help="of the corrections, such as de, if the run knows several (its first)"
    )
    add("--words", metavar="FILE", help="words to take in even if they occur once, one a line")
    format_argument(add)
    set_argument(add)
    limit_arguments(add)


def run(arguments: Namespace) -> int:
    """`captioner adapt`: from corrections to a run."""
    from captioner.apps.sidecars.human_captions import Corrections, read_corrections
    from captioner.data.corrections import split_corrections
    from captioner.inference.loading import load_tensorflow
    from captioner.runs.locate import find_run, new_run
    from captioner.runs.run_folder import RUN_FILES, Run

    apply_limits(arguments)
    if arguments.resume and not arguments.run:
        raise ConfigError("--resume: which run? name it with --run")
    known = Run.open(arguments.run) if arguments.resume else None
    start = Path(known.config.start) if known else find_run(arguments.start)
    vocabulary = known.vocabulary if known else Run.open(start, weights=False).vocabulary
    found: Corrections = read_corrections(
        arguments.folder, arguments.captions, format=arguments.format, accept=arguments.accept
    )
    config = _config(arguments, start) if known is None else known.config
    if arguments.language:
        vocabulary.start(arguments.language)  # the run must know it
    splits = split_corrections(
        found.in_language(arguments.language),
        vocabulary,
        found.problems,
        max_words=config.data.max_words,
        seed=config.seed,
        pinned=known.seeded_splits if known else {"dev": found.kept} if found.kept else None,
        files=str(arguments.captions or arguments.folder),
    )
    if known is None:
        config = _config(arguments, start, _suited(splits, vocabulary))
    arguments.run = arguments.run or str(new_run("adapt", arguments.folder))
    if known is None:
        check_run_folder(arguments.run, RUN_FILES)
    for line in _expectations(found, splits):
        console.info(line, quiet=arguments.quiet)
    load_tensorflow()
    from captioner.training.train import train

    made = train(
        config,
        arguments.folder,
        arguments.run,
        resume=arguments.resume,
        quiet=arguments.quiet,
        splits={**splits, "uncorrected": found.uncorrected_split(config.seed, MOST_UNCORRECTED)},
    )
    _compile(arguments)
    for line in _before_and_after(made, splits["dev"].records, arguments.language):
        print(line)
    print(f"{arguments.run}: as any other run")
    renew = "--recursive --write txt --if-exists renew"
    print(f"  captioner caption {arguments.folder} {renew} --run {arguments.run}")
    left_out = made.history()[-1].get("unreadable", 0)
    if left_out:
        print(f"pictures left out: {left_out}, see {arguments.run}/log.txt", file=sys.stderr)
    return 1 if left_out else 0


def _config(arguments: Namespace, start: Path, suited: Iterable[str] = ()) -> Any:
    """The recipe, with what suits the corrections, and what was typed above all."""
    from captioner.config import load_config

    words = []
    if arguments.words:
        try:
            lines = Path(arguments.words).read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--words {arguments.words}: cannot be read ({error})") from error
        words = [f"data.words={json.dumps(lines, ensure_ascii=False)}"]
    return load_config("adapt", [f"start={json.dumps(str(start))}", *words, *suited, *arguments.set])


def _suited(splits: Mapping[str, Any], vocabulary: Any) -> Iterator[str]:
    """Settings for so many corrections, in such words; measured, see docs/tasks.md."""
    from captioner.data.corrections import OTHER_WORDING, known_share

    pictures = len(splits["train"].records)
    if len(splits["dev"].records) < CIDER_FROM:
        yield "train.select=loss"
    epochs = round(EPOCHS * (PICTURES / pictures) ** 0.5)
    yield f"phases.adapt.epochs={min(EPOCHS_MOST, max(EPOCHS_LEAST, epochs))}"
    if pictures < SMALL:
        yield "phases.adapt.pictures_per_batch=8"
    captions = [caption for record in splits["train"].records for caption in record.captions]
    if known_share(captions, vocabulary) < OTHER_WORDING:
        yield "phases.adapt.closeness=0"
        yield f"phases.adapt.learning_rate={OTHER_RATE}"
        yield f"phases.adapt.epochs={OTHER_EPOCHS}"


def _expectations(found: Any, splits: Mapping[str, Any]) -> Iterator[str]:
    """How much there is to learn from, and what that is worth."""
    from captioner.data.corrections import FEW

    train, dev = (splits[name].records for name in ("train", "dev"))
    captions = sum(len(record.captions) for record in (*train, *dev))
    yield (
        f"corrections: {captions} captions of {len(train) + len(dev)} pictures, {len(dev)} of which are kept "
        f"aside to judge by; {len(found.uncorrected)} pictures without"
    )
    if found.untouched:
        yield f"not learned from: {found.untouched} captions that captioner wrote and nobody has changed"
    if len(train) + len(dev) < FEW:
        yield f"fewer than {FEW} corrections: new words will hardly be used yet; 50 make a difference to see"


def _compile(arguments: Namespace) -> None:
    """The compiled form, with which captioning starts in a fraction of the time; the run is whole without."""
    from captioner.apps.export.export import ExportPlan, export

    try:
        export(arguments.run, ExportPlan(quiet=arguments.quiet))
    except CaptionerError as error:
        console.info(f"no compiled form, captioning will load TensorFlow ({error})", quiet=arguments.quiet)


def _before_and_after(run: Any, kept: Sequence[Any], language: str | None) -> Iterator[str]:
    """Scores on the pictures kept aside, and ten of them side by side."""
    from captioner.runs.run_folder import START

    before = next(entry for entry in run.history() if entry["phase"] == START)
    after, start = run.best_info(), run.start
    new = start["new_words"]
    yield f"{len(new)} new words{': ' + ', '.join(new[:12]) if new else ''}{', …' if len(new) > 12 else ''}"
    chance = " (so few that CIDEr is mostly chance)" if len(kept) < CIDER_FROM else ""
    yield f"on {len(kept)} pictures kept aside{chance}:"
    yield f"  {'':24}{'before':>8}{'after':>8}"
    for name, label in LABELS.items():
        yield f"  {label:24}{before[name]:8.1f}{after[name]:8.1f}"
    captions = _captions_of(run, [record.path for record in kept[:SHOWN]], language)
    for record, then, now in zip(kept, *captions, strict=False):
        yield f"{record.path}\n  before  {then}\n  after   {now}\n  people  {record.captions[0]}"


def _captions_of(run: Any, pictures: Sequence[Path], language: str | None) -> tuple[list[str], list[str]]:
    """What the start says of pictures, and what the run says."""
    from captioner.inference.captioner import Captioner

    decoder, encoder = run.load_start_networks()
    then = Captioner(encoder, decoder, run.vocabulary, run.config.decode)
    said = [
        [caption.text for caption in one.caption(pictures, language=language)]
        for one in (then, Captioner.of(run))
    ]
    return said[0], said[1]
