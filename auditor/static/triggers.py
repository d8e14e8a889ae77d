"""Which of the rules' triggers a file contains: decided on its bytes, before anything is parsed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from auditor.rule import Rule

# What a word is made of: names, dots and, at its end, a parenthesis; `def` and what it defines make one word. All other
# characters part words.
_WORD = rb"(def )?[\w.\x80-\xff]+\(?"
_PARTING = bytes(byte if re.fullmatch(rb"[\w.(\x80-\xff]", bytes([byte])) else ord(" ") for byte in range(256))


class Triggers:
    """Looks for the triggers of many rules in many files.

    Code is written in the same words again and again: each distinct word is searched for triggers once, so that the
    cost of a file hardly depends on the number of rules. Triggers that may span words are searched for in each file.
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        reading = [rule for rule in rules if rule.reads_source]
        every = {trigger for rule in reading for needed in rule.triggers for trigger in needed}
        alone = [{needed[0] for needed in rule.triggers if len(needed) == 1} for rule in reading]
        self._rules = [
            (rule, one, [set(needed) for needed in rule.triggers if len(needed) > 1])
            for rule, one in zip(reading, alone, strict=True)
        ]
        self._in_words = sorted(trigger for trigger in every if re.fullmatch(_WORD, trigger))
        self._across = sorted(every.difference(self._in_words))
        self._known: set[bytes] = set()
        self._telling: set[bytes] = set()
        self._meaning: dict[bytes, set[bytes]] = {}

    def wanted(self, content: bytes) -> Sequence[Rule]:
        """The rules that can have a finding in a file with this content at all."""
        if b"torch" not in content:
            return ()
        found = self._found(content)
        return [
            rule
            for rule, one, several in self._rules
            if not one.isdisjoint(found) or not rule.triggers or any(needed <= found for needed in several)
        ]

    def _found(self, content: bytes) -> set[bytes]:
        words = set(_joined(content.replace(b"(", b"( ").translate(_PARTING)).split())
        new = words - self._known
        if new:
            self._known |= new
            together = b" ".join(new)
            for trigger in self._in_words:
                if _joined(trigger) in together:
                    for word in new:
                        if _joined(trigger) in word:
                            self._meaning.setdefault(word, set()).add(trigger)
                            self._telling.add(word)
        found = {trigger for trigger in self._across if trigger in content}
        return found.union(*[self._meaning[word] for word in words & self._telling])


def _joined(text: bytes) -> bytes:
    return text.replace(b"def ", b"def:")
