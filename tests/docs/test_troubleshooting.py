"""The errors on the page of troubleshooting are sentences of the source."""

import ast
import re
from functools import cache

import pytest

from tests.helpers.pages import DOCS, blocks, names, read, table

PAGE = read("how-to/troubleshooting.md")
SENTENCES = [block.strip() for block in blocks(PAGE, "text")]
LEAST = 20
"""Letters that a sentence of the source has at least, apart from its values."""


@cache
def patterns() -> list[re.Pattern[str]]:
    """Return one pattern for each long text of the source, which takes any values."""
    found = []
    for folder in ("dfs_rl", "agents", "envs"):
        for path in (DOCS.parent / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                parts = node.values if isinstance(node, ast.JoinedStr) else [node]
                literal = [part.value if isinstance(part, ast.Constant) else None for part in parts]
                if sum(len(text) for text in literal if isinstance(text, str)) < LEAST:
                    continue
                pattern = "".join(
                    re.escape(text) if isinstance(text, str) else ".*" for text in literal
                )
                # str.format fills in some of them.
                found.append(re.compile(re.sub(r"\\{\\}|\\{\w+\\}", ".*", pattern)))
    return found


@pytest.mark.parametrize("sentence", SENTENCES, ids=lambda sentence: sentence[:40])
def test_the_source_has_the_sentence(sentence):
    assert any(pattern.fullmatch(sentence) for pattern in patterns())


def test_a_changed_sentence_is_found():
    changed = SENTENCES[0].replace("allowed are", "possible are")
    assert not any(pattern.fullmatch(changed) for pattern in patterns())
    assert len(SENTENCES) >= 30


def test_the_surprises_are_in_the_source():
    (said,) = [name for row in table(PAGE, "why") for name in names(row["what you see"])]
    assert any(said in pattern.pattern.replace("\\", "") for pattern in patterns())
