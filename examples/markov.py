"""A language model in a page of code: a Markov chain over words, trained on one text.

It stands in for a large model in the `chat` example: it answers at once, needs no key, and with the same seed it says the same.
"""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

TOKEN = re.compile(r"\w+(?:['-]\w+)*|[^\w\s]")
SENTENCE_ENDS = frozenset(".!?")
# Words that ask rather than name what is asked about.
ASKING = frozenset(
    "about and are can could does for from has have how like not tell that the this what when where which who why with you".split()
)

# A context is the last few words; what has followed it in the text, and how often, is all that the model knows.
Context = tuple[str, ...]


class MarkovModel:
    """Predicts each word from the words before it, backing off to fewer of them where the text gives too little choice.

    Args:
        text: What to learn from.
        name: What the model is called.
        order: How many words of context it looks at, at most.
    """

    def __init__(self, text: str, *, name: str = "markov", order: int = 3) -> None:
        self.name = name
        self._order = order
        self._followers: defaultdict[Context, Counter[str]] = defaultdict(Counter)
        self._sentences = _sentences(TOKEN.findall(text))
        words: list[str] = [word for sentence in self._sentences for word in sentence]
        self._word_counts = Counter(word.lower() for word in words)
        for end, word in enumerate(words):
            for length in range(1, min(order, end) + 1):
                self._followers[tuple(words[end - length : end])][word] += 1

    @classmethod
    def from_file(cls, path: Path, *, name: str = "markov", order: int = 3) -> MarkovModel:
        """A model trained on the text of a UTF-8 file."""
        return cls(path.read_text(encoding="utf-8"), name=name, order=order)

    def generate(self, prompt: str, *, seed: int | None = None, sentences: int = 5, max_tokens: int = 160) -> Iterator[str]:
        """The words of an answer, one by one, each with the space that belongs before it.

        Args:
            prompt: What to talk about: the answer starts near the prompt's rarest word that the text knows, and leans towards all.
            seed: Makes the answer repeatable; None: another answer each time.
            sentences: How many sentences to say.
            max_tokens: Where to stop at the latest, even in the middle of a sentence.
        """
        words = self._words(self._topics(prompt), random.Random(seed), sentences)
        return itertools.islice(words, max_tokens)

    def _words(self, topics: frozenset[str], chance: random.Random, sentences: int) -> Iterator[str]:
        spoken: list[str] = []
        for _ in range(sentences):
            # Some sentences follow from the one before, the others come back to what was asked.
            opening = self._opening(topics, chance) if not spoken or chance.random() < 0.4 else []
            word = ""
            while word not in SENTENCE_ENDS:
                word = opening.pop(0) if opening else self._next(spoken, topics, chance)
                yield f" {word}" if spoken and word[0].isalnum() else word
                spoken.append(word)

    def _topics(self, prompt: str) -> frozenset[str]:
        """The prompt's words that the text knows and that aren't everywhere in it, like "the"."""
        common = len(self._sentences) / 12
        words = {word.lower() for word in TOKEN.findall(prompt)} - ASKING
        return frozenset(word for word in words if 0 < self._word_counts[word] < common)

    def _opening(self, topics: frozenset[str], chance: random.Random) -> list[str]:
        """The first words of a sentence that has the prompt's rarest known word in it; of any sentence when there is none."""
        rarest = min(topics, key=lambda word: (self._word_counts[word], word), default=None)
        about = [sentence for sentence in self._sentences if rarest is None or rarest in map(str.lower, sentence)]
        return chance.choice(about)[:2]

    def _next(self, spoken: Sequence[str], topics: frozenset[str], chance: random.Random) -> str:
        for length in range(min(self._order, len(spoken)), 0, -1):
            followers = self._followers.get(tuple(spoken[-length:]))
            if not followers:
                continue
            # A context that was seen once can only quote: with a chance that falls with its number of sightings, look at a
            # shorter one, which has been seen in more places (after Witten and Bell). Two words are enough to make sense.
            seen = followers.total()
            if length > 2 and len(followers) == 1 and chance.random() < 1 / (1 + seen):
                continue
            weights = [count * (6 if word.lower() in topics else 1) for word, count in followers.items()]
            return chance.choices(list(followers), weights)[0]
        return "."  # Only the text's very last word may have no follower.


def _sentences(tokens: Sequence[str]) -> list[list[str]]:
    sentences: list[list[str]] = [[]]
    for token in tokens:
        sentences[-1].append(token)
        if token in SENTENCE_ENDS:
            sentences.append([])
    return [sentence for sentence in sentences if len(sentence) > 1]
