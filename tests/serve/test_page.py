"""The page in a browser: files dropped, chosen and pasted, wrong ones too, at any width."""

import csv
import shutil

import pytest
from servers import serving
from toy_crystals import cif_of, toy_crystals, toy_model

from sitenet.serve.uploads import Bounds

playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("starlette")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
OPTIONS = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="needs Chromium (Debian: apt install chromium)"),
]
FINISHED = "#results[aria-busy=false]"
HOSTILE = "<img src=x onerror=\"document.title='taken'\">"


@pytest.fixture(scope="module")
def url():
    models = {"first": toy_model(), "second": toy_model(seed=1)}
    with serving(models, bounds=Bounds(sites=100)) as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, url):
    """The page, which may ask nobody but its server and must not break."""
    context = browser.new_context(viewport={"width": 1180, "height": 900})
    page = context.new_page()
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    page.on("request", lambda r: None if r.url.startswith(url) else problems.append(r.url))
    page.goto(url)
    page.locator("#model option").nth(1).wait_for(state="attached")
    yield page
    context.close()
    own = [p for p in problems if not p.startswith(("data:", f"blob:{url}"))]
    assert own == []


def cifs(number):
    return [(f"{c.name}.cif", cif_of(c)) for c in toy_crystals(number)]


def choose(page, files):
    payload = [
        {"name": name, "mimeType": "text/plain", "buffer": text.encode()} for name, text in files
    ]
    page.set_input_files("#files", payload)
    page.locator(FINISHED).wait_for(state="attached", timeout=60_000)


def drop(page, files):
    transfer = page.evaluate_handle(
        """(files) => {
            const transfer = new DataTransfer();
            for (const [name, text] of files) transfer.items.add(new File([text], name));
            return transfer;
        }""",
        [list(file) for file in files],
    )
    page.dispatch_event("#drop", "dragenter", {"dataTransfer": transfer})
    assert "over" in page.get_attribute("#drop", "class")
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
    page.locator(FINISHED).wait_for(state="attached", timeout=60_000)


def ids(page):
    return page.locator("#rows td.id").all_inner_texts()


def test_dropped_files_become_rows_and_a_csv(page, tmp_path):
    files = cifs(3)
    drop(page, files)
    assert ids(page) == ["c0", "c1", "c2"]
    expected = toy_model().predict([text for _, text in files])
    shown = page.locator("#rows td.value").all_inner_texts()
    # Four digits are shown.
    assert [float(text) for text in shown] == pytest.approx(list(expected), rel=1e-3)
    assert page.locator("#head th").first.inner_text() == "structure"
    assert "3 structures predicted" in page.inner_text("#status")
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "first.csv")
    assert download.value.suggested_filename == "first.csv"
    header, *rows = csv.reader((tmp_path / "first.csv").read_text().splitlines())
    assert [row[0] for row in rows] == ["c0", "c1", "c2"]
    column = header.index("size_A_predicted")
    assert [float(row[column]) for row in rows] == pytest.approx(list(expected), rel=1e-4)
    page.click("#clear")
    assert ids(page) == [] and page.locator("#results").is_hidden()


def test_a_pasted_cif_is_predicted_by_the_chosen_model(page):
    text = cifs(1)[0][1]
    page.select_option("#model", "second")
    page.click("summary")
    page.click("button.primary")
    assert "Paste the text of a CIF first" in page.inner_text("#status")
    page.fill("#text", text)
    page.click("button.primary")
    page.locator(FINISHED).wait_for(state="attached")
    assert ids(page) == ["pasted"]
    (expected,) = toy_model(seed=1).predict([text])
    shown = float(page.locator("#rows td.value").inner_text())
    assert shown == pytest.approx(expected, rel=1e-3)


def test_wrong_files_are_named_with_their_reasons(page):
    good = cifs(1)[0]
    choose(page, [("notes.txt", "hello"), ("broken.cif", "data_x\n"), good, ("empty.cif", "")])
    assert ids(page) == ["c0"]
    reasons = page.locator("#reasons li").all_inner_texts()
    assert len(reasons) == 3
    assert "expected a CIF" in reasons[0] and "no cell" in reasons[1]
    assert "1 structure predicted, 3 not" in page.inner_text("#status")


def test_hostile_names_stay_text(page):
    name = HOSTILE.replace("/", "")
    text = cifs(1)[0][1].replace("data_c0", "data_<script>document.title='taken'</script>")
    drop(page, [(f"{name}.cif", text), (f"{name}.txt", "")])
    assert ids(page) == [name]
    assert page.locator("#rows img, #reasons img").count() == 0
    pytest.importorskip("plotly")
    page.locator("#rows button").click()
    report = page.frame_locator("iframe")
    report.locator("h1").wait_for(timeout=60_000)
    assert report.locator("h1").inner_text() == name
    assert report.locator("h1 img").count() == 0
    assert page.title() == "sitenet"


def test_many_files_keep_their_order(page):
    crystals = toy_crystals(8)
    files = [(f"file {k:03d}.cif", cif_of(crystals[k % 8])) for k in range(90)]
    choose(page, files)
    assert ids(page) == [name.removesuffix(".cif") for name, _ in files]
    assert "90 structures predicted" in page.inner_text("#status")


def test_a_report_opens_in_place_without_rights(page, url):
    pytest.importorskip("plotly")
    choose(page, cifs(2))
    button = page.get_by_role("button", name="Explain c1")
    button.click()
    assert button.get_attribute("aria-expanded") == "true"
    report = page.frame_locator("iframe[title='Report on c1']")
    report.locator(".js-plotly-plot").nth(2).wait_for(timeout=60_000)
    assert report.locator("h1").inner_text() == "c1"
    inside = next(frame for frame in page.frames if frame.url.endswith("/api/explain"))
    assert inside.evaluate("() => self.origin") == "null"  # it is nobody's page
    button.click()
    assert page.locator("iframe").count() == 0


def test_another_model_starts_another_table(page):
    choose(page, cifs(2))
    page.select_option("#model", "second")
    choose(page, cifs(1))
    assert ids(page) == ["c0"]
    (expected,) = toy_model(seed=1).predict([cifs(1)[0][1]])
    assert float(page.locator("#rows td.value").inner_text()) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1180])
def test_the_page_fits_and_can_be_read(page, width, scheme):
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    long = "a-rather-long-name-of-a-structure-" * 3
    choose(page, [(f"{long}.cif", cifs(1)[0][1]), ("notes.txt", "hello")])
    overflow = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(overflow) <= 0
    texts = "h1, header p, label, summary, td, .fine, .flag, #status, #reasons b, button, a"
    for ratio, text in page.evaluate(CONTRASTS, texts):
        assert ratio >= 4.5, text  # WCAG 2.2, level AA


# The contrast of each visible text with the first opaque background behind it.
CONTRASTS = """(selector) => {
    const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (colour) => {
        const [r, g, b] = channels(colour).map((x) => x / 255)
            .map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (node) => {
        for (; node; node = node.parentElement) {
            const colour = getComputedStyle(node).backgroundColor;
            if (channels(colour)[3] !== 0) return colour;
        }
        return "rgb(255, 255, 255)";
    };
    return [...document.querySelectorAll(selector)]
        .filter((node) => node.offsetParent && node.innerText.trim())
        .map((node) => {
            const a = light(getComputedStyle(node).color), b = light(behind(node));
            return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), node.innerText];
        });
}"""


def test_it_can_be_used_with_a_keyboard_and_read_aloud(page):
    page.keyboard.press("Tab")
    seen = []
    for _ in range(5):
        seen.append(
            page.evaluate("() => document.activeElement.id || document.activeElement.tagName")
        )
        page.keyboard.press("Tab")
    assert seen == ["model", "coverage", "disorder", "files", "SUMMARY"]
    assert page.get_attribute("#status", "aria-live") == "polite"
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("input, select, textarea")]
            .filter((one) => !one.labels.length).map((one) => one.id)"""
    )
    assert unnamed == []
