"""Whether our tokenizer gives the ids that transformers' AutoTokenizer gives: asked once, of a child process.

In: a checkpoint's directory, its tokenizer and texts. Out: nothing, or the error that names the token or the text. The
answer is kept in the cache, beside those that transformers generates.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from precision_search.errors import InputError
from precision_search.model.export_cache import kept_answer
from precision_search.model.export_worker import EncodeJob, run_jobs
from precision_search.model.tokenizer import Tokenizer
from precision_search.reporting import Reporter

_SHOWN = 8
_MOST_TEXT = 60


class IdOracle:
    """Transformers' ids of some texts, and of every added token."""

    def __init__(self, checkpoint: Path, texts: Sequence[str], cache: Path, key: str) -> None:
        """`key` stands for the checkpoint's files and the versions of what reads them."""
        self.job = EncodeJob(str(checkpoint), tuple(texts))
        digest = hashlib.sha256(json.dumps([key, list(texts)]).encode()).hexdigest()
        self._stored = cache / "oracle" / f"ids-{digest[:32]}.json"
        self._answer: Mapping[str, Any] | None = None

    def take(self, answer: Mapping[str, Any]) -> None:
        """Takes the answer to `job`, where it was asked together with others."""
        self._answer = answer

    def check(self, tokenizer: Tokenizer, reporter: Reporter) -> None:
        """Compares the tokenizer's ids with transformers'.

        Where transformers cannot load the tokenizer, the reporter is warned.

        Raises:
            InputError: an id differs.
            EnvironmentProblemError: the answer cannot be kept, or the child does not start.
        """
        answer = kept_answer(self._stored, lambda: self._answer or run_jobs([self.job])[0], reporter)
        if problem := answer.get("problem"):
            reporter.warn(
                f"the tokenizer cannot be compared with transformers', which does not load it: {problem}; its "
                "tokenizer.json is taken as it is"
            )
            return
        for text, theirs in answer["added"].items():
            if tokenizer.special.get(text) != theirs:
                _refuse(tokenizer, f"the token {text!r:.{_MOST_TEXT}}", tokenizer.special.get(text, "none"), theirs)
        for text, ids in zip(self.job.texts, answer["ids"], strict=True):
            if (ours := list(tokenizer.encode(text))) != ids:
                part = next(
                    (at for at, pair in enumerate(zip(ours, ids, strict=False)) if pair[0] != pair[1]),
                    min(len(ours), len(ids)),
                )
                shown = slice(part, part + _SHOWN)
                _refuse(tokenizer, f"{text!r:.{_MOST_TEXT}}, from token {part + 1} on", ours[shown], ids[shown])


def _refuse(tokenizer: Tokenizer, what: str, ours: object, theirs: object) -> None:
    raise InputError(
        f"{tokenizer.path} does not give the ids that transformers gives",
        why=f"for {what} it gives {ours}, and AutoTokenizer {theirs}",
        fix="save it as transformers reads it: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
    )
