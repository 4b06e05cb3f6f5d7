"""Checks of reports in a single HTML file, by a parser and by a browser."""

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

needs_chromium = pytest.mark.skipif(
    shutil.which("chromium") is None, reason="chromium is not installed"
)


class Outline(HTMLParser):
    """Parser that collects addresses, cells and headings, and checks that every tag is closed."""

    VOID = ("meta", "img")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.images = 0
        self.cells: list[str] = []
        self.headings: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.images += tag == "img"
        self.addresses += [v or "" for name, v in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "td":
            self.cells.append(data)
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def outline_of(page: str) -> Outline:
    """Parse a page and check that it is complete, self-contained and free of scripts."""
    outline = Outline()
    outline.feed(page)
    outline.close()
    assert outline.open == []
    assert all(address.startswith("data:image/png;base64,") for address in outline.addresses)
    assert "<script" not in page
    assert "default-src 'none'" in page
    return outline


def browse(page: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Open a page in a headless browser, with a new profile next to the page."""
    return subprocess.run(
        [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={page.parent / 'profile'}",
            *flags,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


def check_in_browser(page: str, folder: Path, images: int) -> None:
    """Check that a browser opens the page, decodes its images and logs nothing."""
    path = folder / "report.html"
    # A script writes to the title which images were decoded; the page's policy forbids scripts.
    probe = (
        "<script>addEventListener('load', () => document.title = "
        "[...document.images].map(i => i.naturalWidth > 0).join())</script>"
    )
    path.write_text(
        page.replace(
            "default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';"
        ).replace("</body>", f"{probe}</body>")
    )
    done = browse(path, "--enable-logging=stderr", "--dump-dom")
    assert f"<title>{','.join(['true'] * images)}</title>" in done.stdout
    assert "CONSOLE" not in done.stderr
