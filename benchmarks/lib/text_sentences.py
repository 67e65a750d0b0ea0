"""Real sentences with a label, from what is installed anyway: which library's documentation is a sentence from?

Docstrings of six libraries are cut into sentences; whole files are held out for the test, so that no function's text is
in both. The libraries' own names are blanked. Nothing is imported or downloaded; other versions of the libraries give
slightly other sentences.
"""

from __future__ import annotations

import ast
import hashlib
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

LIBRARIES = {
    "matplotlib": "matplotlib", "numpy": "numpy", "scipy": "scipy",
    "sklearn": "scikit-learn", "sympy": "sympy", "torch": "torch",
}  # fmt: skip
"""Packages and the distributions they come from."""
NAMES = re.compile(
    r"\b(matplotlib|pyplot|plt|numpy|np|scipy|sklearn|scikit|sympy|pytorch|torch)\b", re.IGNORECASE
)
PROSE = re.compile(r"[A-Z](?:[A-Za-z ,;'()]|-(?!-))+[a-z)]\.")
SHORTEST, LONGEST = 6, 40  # words
TESTED = 5  # one file in so many is the test's
VOCABULARY, TOKENS = 4000, 48


def order(text: str) -> int:
    """A number that shuffles texts alike on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def sentences(file: Path) -> Iterator[str]:
    """The sentences of prose in a file's docstrings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        try:
            tree = ast.parse(file.read_text(encoding="utf-8", errors="replace"))
        except (SyntaxError, ValueError):
            return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
            for paragraph in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
                for found in re.split(r"(?<=\.)\s+", " ".join(paragraph.split())):
                    if SHORTEST <= len(found.split()) <= LONGEST and PROSE.fullmatch(found):
                        yield NAMES.sub("it", found)


def collect(library: str, train_each: int, test_each: int) -> tuple[list[str], list[str]]:
    """So many distinct sentences of a library for training and for the test, from its files in a shuffled order."""
    spec = find_spec(library)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{library} is not installed: pip install 'unixkd[demo]'")
    root = Path(spec.origin).parent
    names = (str(path.relative_to(root)) for path in root.rglob("*.py") if "tests" not in path.parts)
    train: dict[str, None] = {}  # in order, each once
    test: dict[str, None] = {}
    for name in sorted(names, key=order):
        if len(train) >= train_each and len(test) >= test_each:
            break
        part, other = (test, train) if order(name) % TESTED == 0 else (train, test)
        part.update((text, None) for text in sentences(root / name) if text not in other)
    if len(train) < train_each or len(test) < test_each:
        raise SystemExit(f"{library} has {len(train)} and {len(test)} sentences, fewer than asked for")
    return list(train)[:train_each], list(test)[:test_each]


@dataclass(frozen=True)
class Texts:
    """Tokenised sentences.

    Args:
        tokens: of each, without padding
        labels: which library each is from `[n]`
    """

    tokens: list[list[int]]
    labels: Tensor

    def batch(self, rows: list[int]) -> dict[str, Tensor]:
        """These sentences, padded to the longest of them."""
        longest = max(len(self.tokens[row]) for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        for place, row in enumerate(rows):
            ids[place, : len(self.tokens[row])] = torch.tensor(self.tokens[row])
        return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": self.labels[rows]}


def load(train_each: int, test_each: int) -> tuple[Texts, Texts, dict[str, str]]:
    """Sentences for training and for the test, so many of each library, and the libraries' versions."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    collected = [collect(library, train_each, test_each) for library in LIBRARIES]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY, special_tokens=["[PAD]", "[UNK]", "[CLS]"], show_progress=False
    )
    tokenizer.train_from_iterator([text for train, _ in collected for text in train], trainer)
    start = tokenizer.token_to_id("[CLS]")

    def texts(part: int, each: int) -> Texts:
        chosen = [text for pair in collected for text in pair[part]]
        ids = [[start, *encoded.ids[: TOKENS - 1]] for encoded in tokenizer.encode_batch(chosen)]
        return Texts(ids, torch.arange(len(LIBRARIES)).repeat_interleave(each))

    versions = {name: version(distribution) for name, distribution in LIBRARIES.items()}
    return texts(0, train_each), texts(1, test_each), versions
