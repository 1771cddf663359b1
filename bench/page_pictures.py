"""Take the pictures of docs/serve.md: the page of ``sitenet serve`` in Chromium.

    python bench/page_pictures.py docs/images

Needs Chromium and playwright. Besides the two pictures of the docs, ``--all FOLDER`` takes the page
at desktop and phone width, in both colour schemes, before and after a prediction and with a report.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import threading
import time
from pathlib import Path

import uvicorn
from playwright.sync_api import Browser, sync_playwright

from sitenet.serve.app import create_app
from sitenet.serve.run import load_models

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "semiconductors"
NAMES = ("GaAs_zincblende", "ZnSe_zincblende", "NaCl_rocksalt", "SiO2_quartz", "GeS_tin-sulfide")
OPTIONS = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
SIZES = {"desktop": (1100, 860), "phone": (390, 844)}


def take(
    browser: Browser, url: str, size: str, scheme: str, folder: Path, stages: tuple[str, ...]
) -> None:
    """Take the page in a size and colour scheme: empty, with a table, with a report."""
    width, height = SIZES[size]
    page = browser.new_page(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
    )
    page.goto(url)
    page.locator("#model option").first.wait_for(state="attached")

    def shot(stage: str) -> None:
        if stage in stages:
            page.screenshot(path=folder / f"serve-{size}-{scheme}-{stage}.png", full_page=True)

    shot("empty")
    files = [EXAMPLES / f"{name}.cif" for name in NAMES]
    page.set_input_files("#files", files)
    page.locator("#results[aria-busy=false]:not([hidden])").wait_for(timeout=120_000)
    shot("table")
    if "report" in stages:
        page.get_by_role("button", name="Explain NaCl_rocksalt").click()
        report = page.frame_locator("iframe")
        report.locator(".js-plotly-plot").nth(2).wait_for(timeout=120_000)
        page.wait_for_timeout(4000)  # until the cell is drawn
        shot("report")
    page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--all", action="store_true", help="also those that the docs do not show")
    options = parser.parse_args()
    app = create_app(load_models(["mp-gap", "mp-eform"]))
    with socket.socket() as listener, sync_playwright() as playwright:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        path = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = playwright.chromium.launch(executable_path=path, args=OPTIONS)
        if options.all:
            for size in SIZES:
                for scheme in ("light", "dark"):
                    stages = ("empty", "table", "report")
                    take(browser, url, size, scheme, options.folder, stages)
        else:
            take(browser, url, "desktop", "light", options.folder, ("report",))
            take(browser, url, "phone", "dark", options.folder, ("table",))
        browser.close()
        server.should_exit = True
        thread.join()


if __name__ == "__main__":
    main()
