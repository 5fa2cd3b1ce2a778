"""Whether a prompt is about anything the model was taught: a small model makes some sound of any words, and should say so.

Two signs, tried on 2026-11-28 with wordings of 110 classes, on the default model's 140 frozen prompts and on 50 others, of
which some 16 are about sounds it knows after all (applause, a helicopter): most of a prompt's words are in none of the wordings
it was taught, or its embedding lies far from every class's name. Warned of: 1 % of the frozen ones, 64 % of the others. The
embedding alone does not do: a small text tower puts what it cannot read somewhere among the classes (median cosine 0.95 to the
nearest).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

FEW_WORDS = 0.34
"""Share of known words up to which a prompt is foreign, whatever its embedding."""
HALF_WORDS, SURE_COSINE = 0.5, 0.97
"""With no more than half its words known, a prompt must lie this near to a class."""
FAR_COSINE = 0.85
NEAREST = 3
PROMPTS_KEPT = 1024
"""Whoever asks for many sounds asks for many of the same one."""
_STOP = """
a an the of in on at by to and or with from for as is are being be its it this that some someone something one two three few
over under near into onto off out up down sound sounds sounding noise noises recording
"""
STOP_WORDS = frozenset(_STOP.split())


class Familiar:
    """The sounds a model was taught, by class, in the words it was taught; `embed` is CLAP's text tower, texts -> (N, D)."""

    def __init__(self, sounds: Mapping[str, Sequence[str]], embed: Callable[[list[str]], Tensor]):
        self.names = [name.replace("_", " ") for name in sounds]
        self.words = set().union(*(_words(text) for name, texts in sounds.items() for text in (name, *texts)))
        self._embed = embed
        self._names_ND: Tensor | None = None
        self._doubts = lru_cache(PROMPTS_KEPT)(self._doubt)

    def doubt(self, prompt: str) -> str | None:
        """A sentence for who asked, if the prompt is far from everything known; None if not, or if nothing is known of it."""
        return self._doubts(prompt)

    @torch.inference_mode()
    def _doubt(self, prompt: str) -> str | None:
        if not self.names:
            return None
        if self._names_ND is None:  # a tenth of a second, and not everybody asks
            self._names_ND = self._embed(self.names)
        cosine_N = (self._embed([prompt]) @ self._names_ND.T)[0]
        asked = _words(prompt) - STOP_WORDS
        share = len(asked & self.words) / len(asked) if asked else 0.0
        nearest = float(cosine_N.max())
        if not (share < FEW_WORDS or nearest < FAR_COSINE or (share <= HALF_WORDS and nearest < SURE_COSINE)):
            return None
        near = [self.names[int(row)] for row in cosine_N.argsort(descending=True)[:NEAREST]]
        unknown = sorted(asked - self.words)
        words = f" (it was never taught: {', '.join(unknown)})" if unknown else ""
        return f"the model may not know {prompt[:60]!r}{words}; the nearest sounds it was taught are: {', '.join(near)}"


def _words(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]+", text.lower()))
