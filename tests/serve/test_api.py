"""The JSON API: the answers of the commands, within bounds, whatever is sent."""

import concurrent.futures
import csv
import gzip
import io
import json
import re
import socket
import threading
import time
import zipfile
from urllib.parse import urlsplit

import numpy as np
import pytest
from servers import serving
from toy_crystals import SIZE, cif_of, toy_crystals, toy_model
from typer.testing import CliRunner

import sitenet
from sitenet.cli.app import app as commands
from sitenet.inference.predict_files import predict_files
from sitenet.model.sitenet import Target
from sitenet.serve import answers
from sitenet.serve.run import load_models, make_server
from sitenet.serve.uploads import Bounds, harmless

httpx = pytest.importorskip("httpx")
application = pytest.importorskip("sitenet.serve.app")
MODEL = toy_model()
CLASSES = toy_model([SIZE, Target("metal", kind="class")], seed=1)
HOSTILE = "</script><img src=x onerror=alert(1)>"
SMALL = Bounds(megabytes=1, files=10, structures=15, sites=40, seconds=20)


@pytest.fixture(scope="module")
def url():
    with serving({"size": MODEL, "classes": CLASSES}, bounds=SMALL) as url:
        yield url


@pytest.fixture
def client(url):
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        yield client


def cifs(number, seed=0):
    return [(f"{c.name}.cif", cif_of(c)) for c in toy_crystals(number, seed)]


def form(files):
    return [("files", (name, content)) for name, content in files]


def test_predictions_are_those_of_the_command(client, tmp_path):
    files = cifs(5)
    for name, text in files:
        (tmp_path / name).write_text(text)
    paths = [tmp_path / name for name, _ in files]
    outcome = predict_files(MODEL, paths, coverage=0.8)
    data = {"model": "size", "coverage": "0.8"}
    answer = client.post("/api/predict", files=form(files), data=data).json()
    assert answer["columns"] == outcome.header
    assert [row["file"] for row in answer["rows"]] == list(range(5))
    for row, expected in zip(answer["rows"], outcome.rows, strict=True):
        for name, cell in zip(outcome.header, expected, strict=True):
            # Batches of other crystals: other orders of float32 sums.
            if isinstance(cell, float):
                assert row[name] == pytest.approx(cell, rel=1e-4, abs=1e-5)
            else:
                assert row[name] == cell
    assert answer["left_out"] == []


def test_a_table_is_csv_that_no_program_takes_for_formulas(client):
    (_, text), *_ = cifs(1)
    files = [("=1+1.cif", text), ("ordinary.cif", text)]
    answer = client.post("/api/predict", files=form(files), data={"format": "csv"})
    assert answer.headers["content-type"].startswith("text/csv")
    assert "attachment" in answer.headers["content-disposition"]
    header, *rows = csv.reader(io.StringIO(answer.text))
    assert header[0] == "id"
    assert [row[0] for row in rows] == ["'=1+1", "ordinary"]


def test_every_form_of_upload(client):
    (_, first), (_, second) = cifs(2)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("in/a.cif", first)
        file.writestr("b.cif", second)
    xyz = '1\nLattice="3 0 0 0 3 0 0 0 3" id=cube\nFe 0 0 0\n'
    poscar = "Fe\n1\n3 0 0\n0 3 0\n0 0 3\nFe\n1\nDirect\n0 0 0\n"
    files = [
        ("c.cif.gz", gzip.compress(first.encode())),
        ("d.zip", archive.getvalue()),
        ("e.xyz", xyz),
        ("POSCAR", poscar),
        ("f.db", b"SQLite format 3\0"),
        ("g.json", "{"),
        ("h.txt", "text"),
        ("empty.cif", b""),
    ]
    answer = client.post("/api/predict", files=form(files)).json()
    assert [row["id"] for row in answer["rows"]] == ["c", "d/in/a", "d/b", "cube", "POSCAR"]
    assert [row["file"] for row in answer["rows"]] == [0, 1, 1, 2, 3]
    reasons = [(one["file"], one["reason"]) for one in answer["left_out"]]
    assert [file for file, _ in reasons] == [4, 5, 6, 7]
    assert "from a disk only" in reasons[0][1] and "JSON" in reasons[1][1]
    assert "expected a CIF" in reasons[2][1]


def test_pasted_text_and_several_targets(client):
    (_, text), *_ = cifs(1)
    answer = client.post("/api/predict", data={"text": text, "model": "classes"}).json()
    (row,) = answer["rows"]
    assert row["id"] == "pasted" and 0 <= row["metal_predicted"] <= 1
    assert answer["model"] == "classes"


def test_explanations_are_those_of_python(client):
    name, text = cifs(1)[0]
    answer = client.post("/api/explain", files=form([(name, text)])).json()
    expected = sitenet.explain(MODEL, sitenet.read_cif(text))
    for rows in ("elements", "sites", "pairs"):
        columns = expected.columns(rows)
        assert list(answer[rows]) == list(columns)
    np.testing.assert_allclose(
        answer["elements"]["attention"], expected.columns("elements")["attention"], rtol=1e-4
    )
    files = form(cifs(3))
    names = [client.post("/api/explain", files=files, data={"id": f"c{k}"}).json() for k in (0, 2)]
    assert [one["id"] for one in names] == ["c0", "c2"]
    assert client.post("/api/explain", files=files, data={"id": "c9"}).status_code == 404
    broken = client.post("/api/explain", data={"text": "data_x\n"})
    assert broken.status_code == 422 and "no cell" in broken.json()["error"]


def test_a_report_has_no_rights(client):
    pytest.importorskip("plotly")
    name = f"{HOSTILE.replace('/', ':')}.cif"
    data = {"format": "html"}
    answer = client.post("/api/explain", files=form([(name, cifs(1)[0][1])]), data=data)
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "sandbox allow-scripts" in policy and "default-src 'none'" in policy
    assert "allow-same-origin" not in policy
    assert "<img src=x" not in answer.text and "&lt;img src=x" in answer.text


def test_encodings_are_those_of_python(client):
    files = cifs(3)
    broken = ("broken.cif", "data_x\n")
    answer = client.post("/api/encode", files=form([*files, broken])).json()
    assert answer["ids"] == ["c0", "c1", "c2"]
    expected = MODEL.encode([text for _, text in files])
    np.testing.assert_allclose(answer["encodings"], expected, rtol=1e-4, atol=1e-5)
    assert [one["file"] for one in answer["left_out"]] == [3]


# ---------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize(
    ("data", "status", "message"),
    [
        ({}, 422, "no file"),
        ({"text": "  "}, 422, "no file"),
        ({"text": "data_", "model": "../etc"}, 404, "no model '../etc'; there is size, classes"),
        ({"text": "data_", "coverage": "x"}, 422, "expected a number"),
        ({"text": "data_", "coverage": "nan"}, 422, "coverage must be"),
        ({"text": "data_", "max_sites": "1000000"}, 422, "max_sites must be from 0 to 500"),
        ({"text": "data_", "primitive": "maybe"}, 422, "primitive must be true or false"),
        ({"text": "data_", "disorder": "x"}, 422, "disorder must be error or average"),
        ({str(k): "x" for k in range(30)}, 413, "Too many fields"),
    ],
)
def test_wrong_requests_are_refused_with_the_reason(client, data, status, message):
    for path in ("predict", "explain", "encode"):
        files = {"none": ("", b"")} if not data else None
        answer = client.post(f"/api/{path}", data=data, files=files)
        assert (answer.status_code, message in answer.json()["error"]) == (status, True)


def test_bounds_hold(client):
    text = cifs(1)[0][1]
    many = [(f"{k}.cif", text) for k in range(11)]
    assert client.post("/api/predict", files=form(many)).status_code == 413
    several = text * 16
    answer = client.post("/api/predict", files=form([("a.cif", several)]))
    assert answer.status_code == 413 and "more than 15 structures" in answer.json()["error"]
    large = [("a.cif", text + "#" * 2**20)]
    assert client.post("/api/predict", files=form(large)).status_code == 413

    def endless():  # without a content-length
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
        for _ in range(3000):
            yield b"x" * 1000

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = client.post("/api/predict", content=endless(), headers=headers)
    assert answer.status_code == 413 and "larger than 1 MB" in answer.json()["error"]
    grid = np.stack(np.meshgrid(*[np.arange(4)] * 3), -1).reshape(-1, 3) / 4
    supercell = sitenet.Crystal(12 * np.eye(3), grid, [26] * 64, name="big")
    answer = client.post("/api/predict", files=form([("big.cif", cif_of(supercell))])).json()
    assert answer["left_out"][0]["kind"] == "too many sites"


def test_the_time_limit_keeps_what_is_done(monkeypatch):
    monkeypatch.setattr(answers, "SLICE", 2)
    step = answers.Prediction.step

    def slow(job):
        time.sleep(0.6)
        return step(job)

    monkeypatch.setattr(answers.Prediction, "step", slow)
    with serving({"size": MODEL}, bounds=Bounds(seconds=1)) as url:
        answer = httpx.post(f"{url}/api/predict", files=form(cifs(20)), trust_env=False).json()
    assert 0 < len(answer["rows"]) < 20
    (last,) = answer["left_out"]
    assert (last["where"], last["reason"]) == ("the rest", "time limit of 1 s")


def test_a_slow_upload_does_not_wait_for_ever():
    with serving({"size": MODEL}, bounds=Bounds(seconds=1)) as url:
        where = urlsplit(url)
        with socket.create_connection((where.hostname, where.port), timeout=20) as connection:
            connection.sendall(
                b"POST /api/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n"
                b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
            )
            assert b" 408 " in connection.recv(100)


def test_a_bomb_is_refused(client):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for k in range(6):
            file.writestr(f"{k}.cif", b"\n" * 60_000_000)
    files = form([("bomb.zip", archive.getvalue()), ("bomb.cif.gz", gzip.compress(bytes(2**27)))])
    answer = client.post("/api/predict", files=files)
    assert answer.status_code == 200 and answer.json()["rows"] == []
    kinds = [one["kind"] for one in answer.json()["left_out"]]
    assert kinds.count("file too large") == 2 and len(kinds) < 7


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/passwd.cif", "passwd.cif"),
        ("..\\..\\boot.cif", "boot.cif"),
        ("a\0b\n.cif", "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}.cif"),
        (None, "unnamed"),
        ("folder/", "unnamed"),
    ],
)
def test_names_of_files_are_made_harmless(name, shown):
    assert harmless(name) == shown
    assert len(harmless("x" * 10_000 + ".cif")) <= 121
    assert harmless("x" * 10_000 + ".cif").endswith(".cif")


def test_other_hosts_and_pages_are_refused():
    with serving({"size": MODEL}, hosts=["127.0.0.1", "localhost", "::1"]) as url:
        get = lambda **headers: httpx.get(url, headers=headers, trust_env=False)  # noqa: E731
        assert get().status_code == 200
        assert get(Host="evil.example").status_code == 421
        assert get(Host="localhost:80").status_code == get(Host="[::1]:80").status_code == 200
        foreign = {"Sec-Fetch-Site": "cross-site"}
        answer = httpx.post(f"{url}/api/predict", headers=foreign, trust_env=False)
        assert answer.status_code == 403


def test_the_page_loads_nothing_from_elsewhere(client):
    for path in ("/", "/style.css", "/page.js"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert not re.findall(r"(?:https?:)?//[\w.]+\.\w+", answer.text)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
    page = client.get("/").text
    assert not re.findall(r"<script>|<style>| on\w+=|style=", page)
    for path in ("/../pyproject.toml", "/page/../app.py", "/app.py"):
        assert client.get(path).status_code == 404


def test_an_unforeseen_error_tells_nothing_of_the_machine(monkeypatch):
    def fail(job):
        raise RuntimeError("/home/someone/secret")

    monkeypatch.setattr(answers.Prediction, "step", fail)
    app = application.create_app({"size": MODEL})
    testclient = pytest.importorskip("starlette.testclient")
    with testclient.TestClient(app, raise_server_exceptions=False) as client:
        answer = client.post("/api/predict", data={"text": "data_x"})
    assert answer.status_code == 500
    assert answer.json() == {"error": "unforeseen RuntimeError"}


# ---------------------------------------------------------------------------------------------
# Many at once


def test_fifty_requests_at_once_are_answered_while_one_is_large():
    small = cifs(2, seed=7)
    large = [("large.cif", "\n".join(text for _, text in cifs(1600)))]
    order, lock = [], threading.Lock()
    with serving({"size": MODEL}) as url:

        def ask(name, files):
            answer = httpx.post(
                f"{url}/api/predict", files=form(files), timeout=300, trust_env=False
            )
            with lock:
                order.append(name)
            assert answer.status_code == 200, answer.text
            return answer.json()

        with concurrent.futures.ThreadPoolExecutor(51) as pool:
            big = pool.submit(ask, "large", large)
            time.sleep(0.2)  # the large one comes first
            futures = [pool.submit(ask, str(k), small) for k in range(50)]
            rows = [future.result()["rows"] for future in futures]
            assert len(big.result()["rows"]) == 1600
    assert len(order) == 51
    assert order.index("large") >= 25  # it had begun before all others
    expected = [row["size_A_predicted"] for row in rows[0]]
    assert all([row["id"] for row in one] == ["c0", "c1"] for one in rows)
    for one in rows:
        np.testing.assert_allclose([row["size_A_predicted"] for row in one], expected)


def test_too_many_at_once_are_told_to_come_back(monkeypatch):
    step = answers.Prediction.step
    begun, go = threading.Event(), threading.Event()

    def held(job):
        begun.set()
        assert go.wait(60)
        return step(job)

    monkeypatch.setattr(answers.Prediction, "step", held)
    with serving({"size": MODEL}, bounds=Bounds(waiting=1)) as url:
        ask = lambda: httpx.post(  # noqa: E731
            f"{url}/api/predict", files=form(cifs(1)), timeout=60, trust_env=False
        )
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            first = pool.submit(ask)
            assert begun.wait(60)
            second = ask()
            go.set()
            assert first.result().status_code == 200
    assert second.status_code == 503 and second.headers["retry-after"]


# ---------------------------------------------------------------------------------------------
# Description and command


def test_the_description_is_that_of_the_routes_and_answers(client):
    description = client.get("/openapi.json").json()
    routes = {
        (route.path, method.lower())
        for route in application.Server({"size": MODEL}, SMALL).routes()
        for method in route.methods - {"HEAD"}
        if route.path.startswith("/api/")
    }
    paths = {(path, method) for path, each in description["paths"].items() for method in each}
    assert paths == routes
    schemas = description["components"]["schemas"]
    references = re.findall(r"#/components/schemas/(\w+)", json.dumps(description))
    assert set(references) == set(schemas)
    files = form(cifs(1))
    for path, name in (
        ("predict", "Predictions"),
        ("explain", "Explanation"),
        ("encode", "Encodings"),
    ):
        answer = client.post(f"/api/{path}", files=files).json()
        assert set(answer) == set(schemas[name]["required"])
    models = client.get("/api/models").json()
    assert set(models[0]) == set(schemas["Model"]["required"])
    assert [target["kind"] for target in models[1]["targets"]] == ["value", "class"]
    assert client.get("/api/info").json() == json.loads(json.dumps(sitenet.info()))
    options = description["paths"]["/api/predict"]["post"]["requestBody"]["content"]
    assert options["multipart/form-data"]["schema"]["properties"]["model"]["enum"] == [
        "size",
        "classes",
    ]


def test_models_are_named_after_runs_and_files(tmp_path, monkeypatch):
    threads = []
    monkeypatch.setattr("torch.set_num_threads", threads.append)
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    (tmp_path / "run").mkdir()
    MODEL.save(tmp_path / "run" / "model.safetensors")
    MODEL.save(tmp_path / "other.safetensors")
    names = [tmp_path / "run", tmp_path / "other.safetensors"]
    assert list(load_models(list(map(str, names)))) == ["run", "other"]
    with pytest.raises(ValueError, match="two models are called 'run'"):
        load_models([str(tmp_path / "run"), str(tmp_path / "run" / "model.safetensors")])
    server = make_server([str(tmp_path / "run")])
    assert server.config.host == "127.0.0.1"
    assert threads == [8 // application.THREADS]


def test_without_the_packages_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    result = CliRunner().invoke(commands, ["serve"])
    assert result.exit_code == 1
    assert "pip install 'sitenet[serve]'" in result.output
