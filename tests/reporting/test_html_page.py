"""The frame of reports, as a real browser shows it."""

import re
import subprocess
from pathlib import Path

from dfs_rl.reporting.html_page import page, table
from tests.reporting.pages import needs_chromium


def pages_printed(html: str, folder: Path) -> int:
    """Print a page to PDF and count its sheets."""
    (folder / "page.html").write_text(html)
    printed = folder / "page.pdf"
    subprocess.run(
        [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={folder / 'profile'}",
            f"--print-to-pdf={printed}",
            (folder / "page.html").as_uri(),
        ],
        capture_output=True,
        timeout=60,
        check=True,
    )
    return len(re.findall(rb"/Type\s*/Page\b", printed.read_bytes()))


@needs_chromium
def test_what_is_folded_away_is_printed(tmp_path: Path) -> None:
    rows = [[[str(number)] for number in range(200)]]
    folded = f"<details><summary>Trials</summary>{table(['trial'], rows)}</details>"
    assert pages_printed(page("Report", [folded]), tmp_path) > 2
