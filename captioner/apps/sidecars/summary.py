"""The outcome of a long job: each picture is counted, the totals are reported at the end.

In: outcomes, one by one. Out: lines for people; each failure on stderr at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from captioner.system import console

_SHOWN_EXAMPLES, _SHOWN_REASONS = 3, 10
_TOO_FEW = 0.05  # different captions a picture


@dataclass
class Outcomes:
    """The counts; every picture is in one of them.

    Example:
        >>> outcomes = Outcomes(done=3, kept=1)
        >>> list(outcomes.lines())[0]
        '3 were done already'
    """

    captioned: int = 0
    restored: int = 0  # captioned in an earlier run; only written now
    done: int = 0  # nothing was missing
    kept: int = 0  # have captions of other origin, which stay
    seconds: float = 0.0  # of captioning
    failures: Counter[str] = field(default_factory=Counter)  # why → how many
    examples: dict[str, list[str]] = field(default_factory=dict)  # why → the first of them
    different: set[int] = field(default_factory=set)  # hashes of the captions

    @property
    def failed(self) -> int:
        """How many pictures failed."""
        return self.failures.total()

    def fail(self, path: Path | str, reason: str) -> None:
        """Counts a failure and prints it at once, even in quiet mode."""
        console.info(f"error: {path}: {reason}")
        kind = reason.partition(" (")[0].partition(";")[0]  # details differ from picture to picture
        self.failures[kind] += 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) < _SHOWN_EXAMPLES:
            examples.append(str(path))

    def note_captions(self, found: Iterable[Any]) -> None:
        """Counts different captions; failures among the results are passed over."""
        self.different |= {hash(each["caption"]) for each in found if not isinstance(each, str)}

    def lines(self) -> Iterator[str]:
        """The report, line by line."""
        if self.captioned:
            rate = self.captioned / max(self.seconds, 1e-9)
            yield f"{self.captioned:,} captioned in {console.duration(self.seconds)}, {rate:.3g} pictures/s"
        if self.restored:
            yield f"{self.restored:,} captioned earlier, written now"
        if self.done:
            yield f"{self.done:,} were done already"
        if self.kept:
            yield (
                f"{self.kept:,} left as they are: they have captions by hand or of another model or setting "
                "(--if-exists renew replaces captioner's own, overwrite all of them, append adds to them)"
            )
        if self.captioned >= 50 and len(self.different) <= _TOO_FEW * self.captioned:
            count = len(self.different)
            yield f"warning: {count} different captions for all of these; is this the right model?"
        yield from self._failure_lines()

    def _failure_lines(self) -> Iterator[str]:
        if self.failures:
            yield f"{self.failed:,} failed:"
        for reason, count in self.failures.most_common(_SHOWN_REASONS):
            more = ", …" if count > _SHOWN_EXAMPLES else ""
            yield f"  {count:,} × {reason}: {', '.join(self.examples[reason])}{more}"
        if len(self.failures) > _SHOWN_REASONS:
            yield f"  and {len(self.failures) - _SHOWN_REASONS} other reasons, each said above"
