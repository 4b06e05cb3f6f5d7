"""The frame of reports, as a real browser shows it."""

import re
from pathlib import Path

from dfs_rl.reporting.html_page import html_table, page
from tests.helpers.html import browse, needs_chromium


def pages_printed(html: str, folder: Path) -> int:
    """Print a page to PDF and count its sheets."""
    file, printed = folder / "page.html", folder / "page.pdf"
    file.write_text(html)
    browse(file, f"--print-to-pdf={printed}")
    return len(re.findall(rb"/Type\s*/Page\b", printed.read_bytes()))


@needs_chromium
def test_what_is_folded_away_is_printed(tmp_path: Path) -> None:
    rows = [[[str(number)] for number in range(200)]]
    folded = f"<details><summary>Trials</summary>{html_table(['trial'], rows)}</details>"
    assert pages_printed(page("Report", [folded]), tmp_path) > 2
