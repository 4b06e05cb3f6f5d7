"""Checks of reports in a single HTML file, by a parser and by a browser."""

import html
import re
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
        self.texts: list[str | None] = []  # alternative text of each image
        self.cells: list[str] = []
        self.headings: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.texts.append(dict(attrs).get("alt"))
        self.addresses += [v or "" for name, v in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    @property
    def images(self) -> int:
        return len(self.texts)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "td":
            self.cells.append(data)
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def outline_of(page: str) -> Outline:
    """Parse a page; check that it is complete, self-contained, described and free of scripts."""
    outline = Outline()
    outline.feed(page)
    outline.close()
    assert outline.open == []
    assert all(address.startswith("data:image/png;base64,") for address in outline.addresses)
    assert all(outline.texts)
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


def run_in_browser(page: str, folder: Path, script: str, *flags: str) -> tuple[str, str]:
    """Run a script in the loaded page, and return its value as text and the browser's log."""
    path = folder / "report.html"
    # The script writes to the title; the page's policy forbids scripts.
    probe = f"<script>addEventListener('load', () => document.title = {script})</script>"
    path.write_text(
        page.replace(
            "default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';"
        ).replace("</body>", f"{probe}</body>")
    )
    done = browse(path, "--enable-logging=stderr", "--dump-dom", *flags)
    (value,) = re.findall("<title>(.*?)</title>", done.stdout)
    return value, done.stderr


def check_in_browser(page: str, folder: Path, images: int) -> None:
    """Check that a browser opens the page, decodes its images and logs nothing."""
    script = "[...document.images].map(i => i.naturalWidth > 0).join()"
    value, log = run_in_browser(page, folder, script)
    assert value == ",".join(["true"] * images)
    assert "CONSOLE" not in log


def widths(page: str, folder: Path, width: int) -> tuple[int, int, int]:
    """Return widths in pixels: of the window, the page, and the widest element without a scrollbar.

    The first is ``width``, unless the browser has a larger minimum.
    """
    # A frame is as narrow as asked for; a window has a minimum.
    inner = html.escape(page)
    framed = (
        f'<!doctype html><title></title><body style="margin:0"><iframe srcdoc="{inner}" '
        f'style="border:0;width:{width}px;height:900px"></iframe></body>'
    )
    script = """(() => {
        const inner = frames[0].document, page = inner.documentElement;
        inner.querySelectorAll('details').forEach(e => e.open = true);
        const free = [...inner.querySelectorAll('body *')].filter(
            e => !e.parentElement.closest('.scroll, pre'));
        const right = Math.max(...free.map(e => e.getBoundingClientRect().right));
        return [page.clientWidth, page.scrollWidth, Math.ceil(right)].join();
    })()"""
    value, _ = run_in_browser(framed, folder, script)
    window, whole, widest = map(int, value.split(","))
    return window, whole, widest
