"""What tests ask of a report that is one HTML file: whether it is whole, and whether a real browser shows it without complaint."""

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

needs_chromium = pytest.mark.skipif(
    shutil.which("chromium") is None, reason="chromium is not installed"
)


class Outline(HTMLParser):
    """Collects tags, texts and addresses, and checks that every tag is closed."""

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
    """Read a page; every tag must be closed and everything that it shows be part of it."""
    outline = Outline()
    outline.feed(page)
    outline.close()
    assert outline.open == []
    assert all(address.startswith("data:image/png;base64,") for address in outline.addresses)
    assert "<script" not in page
    assert "default-src 'none'" in page
    return outline


def browse(page: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Let a browser without a window open a page, with a profile of its own beside it."""
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
    """Let a browser open the page, decode its pictures and complain of nothing."""
    path = folder / "report.html"
    # The browser says itself, in the title, which figures it decoded; the page's own policy forbids scripts.
    probe = "<script>addEventListener('load', () => document.title = [...document.images].map(i => i.naturalWidth > 0).join())</script>"
    path.write_text(
        page.replace(
            "default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';"
        ).replace("</body>", f"{probe}</body>")
    )
    done = browse(path, "--enable-logging=stderr", "--dump-dom")
    assert f"<title>{','.join(['true'] * images)}</title>" in done.stdout
    assert "CONSOLE" not in done.stderr
