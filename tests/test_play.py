"""The page to play with: which runs it takes, what its server lets in, and the page in Chromium.

The browser asks a stub that says what colour the middle of the picture has, so that a test sees
whether what is on the screen is what was sent; the real models are asked without a browser.
"""

import base64
import http.client
import io
import json
import os
import socket
import threading
import time

import numpy as np
import pytest
import torch
from chromium import CHROMIUM, Chromium
from PIL import Image
from test_evaluate import checkpoint, photo

from lib.cli import UserError
from lib.pictures import open_image
from model import SeeGPT
from play import models, server
from play.models import Models, find_runs
from play.server import Server, hosts_of

RED = Image.new("RGB", (96, 96), "red")


def as_url(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


class Stub:
    """Stands for Models, with two layers of two heads: layer 0, head 0 looks at patch w of 2 x 2 for
    word w, layer 1, head 1 at patch 2, the other two nowhere."""

    runs = {"caption": "a", "answer": "b", "point": "c"}

    def reply(self, ability, image, asked):
        words = ["middle", "-".join(map(str, image.getpixel((image.width // 2,) * 2)))]
        maps = bytearray(32)  # (layer, head, word, patch)
        for seen in ((0, 0, 0, 0), (0, 0, 1, 1), (1, 1, 0, 2), (1, 1, 1, 2)):
            maps[int(np.ravel_multi_index(seen, (2, 2, 2, 4)))] = 255
        look = {"words": words, "layers": [0, 1], "heads": 2, "grid": 2,
                "maps": base64.b64encode(maps).decode()}
        boxes = asked.get("boxes") or [[0, 0, 9, 9]]
        return {"title": " ".join(words), "look": look, "run": "stub", "ms": 7,
                "answers": [[asked.get("text"), 0.75], ["<b>no</b>", 0.25]], "boxes": boxes,
                "scores": [*range(len(boxes))], "shares": [1 / len(boxes)] * len(boxes)}


@pytest.fixture
def serving(monkeypatch):
    monkeypatch.setattr(server, "SECONDS", 1)
    monkeypatch.setattr(server.Handler, "timeout", 1)
    with Server(0, Stub()) as found:
        thread = threading.Thread(target=found.serve_forever, args=(0.05,))
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def send(serving, method="POST", path="/caption", body=None, **headers):
    """(status, what the JSON says) of one request."""
    body = json.dumps({"image": as_url(RED)}) if body is None else body
    connection = http.client.HTTPConnection(*serving.server_address, timeout=20)
    connection.request(method, path, body if method == "POST" else None, {
        "Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}})
    reply = connection.getresponse()
    data = reply.read()
    connection.close()
    return reply.status, json.loads(data) if reply.headers["Content-Type"][-4:] == "json" else data


# ---------------------------------------------------------------------------- the models

@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Paths of a captioner of the shapes world, one of regions, and one of photos."""
    folder = tmp_path_factory.mktemp("play") / "out"
    return [checkpoint(folder / name.replace("/", "-"), data=name)
            for name in ("shapes", "shapes/regions", "mine")]


def test_each_ability_gets_the_newest_run_that_has_it(runs, monkeypatch, capsys):
    shapes, regions, mine = runs
    (broken := runs[0].parent / "broken").mkdir(exist_ok=True)
    (broken / "last.safetensors").write_bytes(b"nothing")
    for age, run in enumerate((broken / "last", shapes / "best", mine / "best", regions / "best")):
        os.utime(f"{run}.safetensors", (10 ** 9 - age,) * 2)
    monkeypatch.setattr(models, "repo_path", lambda name: shapes.parent)
    assert find_runs([]) == {"caption": shapes, "point": mine}
    assert "left out" in capsys.readouterr().err
    assert find_runs([regions]) == {"point": regions}
    with pytest.raises(UserError, match="not a"):
        find_runs([broken])
    *_, answer, _ = Models(find_runs([]), "cpu").lines()
    assert "no model yet; python train.py --dataset shapes/vqa --search" in answer


def test_a_caption_is_that_of_generate_with_a_map_for_every_word(runs, tmp_path):
    image = open_image(photo(tmp_path / "a.png"))
    found = Models({"caption": runs[0]}, torch.device("cpu")).reply("caption", image, {})
    model = SeeGPT.load(runs[0])
    _, feats = models.encode(model, image)
    look = found["look"]
    assert [found["title"]] == model.generate(feats, beam=1) and look["words"]
    n = len(look["layers"]) * look["heads"] * len(look["words"]) * look["grid"] ** 2
    assert len(base64.b64decode(look["maps"])) == n and look["grid"] == 8


@pytest.mark.parametrize("boxes, n", [([[0, 0, 9, 9], [60, 60, 20, 20]], 2), (None, 58), ([], 58)])
def test_pointing_chooses_among_the_things_or_among_windows(runs, boxes, n):
    playing = Models({"point": runs[1]}, torch.device("cpu"))
    found = playing.reply("point", RED, {"text": "the dog", "boxes": boxes})
    assert len(found["boxes"]) == len(found["scores"]) == n
    assert sum(found["shares"]) == pytest.approx(1)


@pytest.mark.parametrize("ability, asked, says", [
    ("answer", {"text": "is it?"}, "python train.py --dataset shapes/vqa --search makes one"),
    ("point", {"text": " "}, "type something"), ("point", {"text": "w" * 201}, "at most 200"),
    ("point", {"text": ["a"]}, "at most 200"), ("point", {"text": "a\0"}, "at most 200"),
    ("point", {"text": "a", "boxes": [[0, 0, 1, -1]]}, "boxes: at most 64"),
    ("point", {"text": "a", "boxes": [[0, 0, 9, 9]] * 65}, "boxes: at most 64"),
    ("point", {"text": "a", "boxes": {"a": 1}}, "boxes: at most 64")])
def test_what_cannot_be_answered_is_one_line(runs, ability, asked, says):
    with pytest.raises(UserError, match=says):
        Models({"point": runs[1]}, torch.device("cpu")).reply(ability, RED, asked)


# ---------------------------------------------------------------------------- the server

def test_the_page_and_its_questions_are_answered(serving):
    status, page = send(serving, "GET", "/")
    assert status == 200 and b"<canvas" in page and b"<!--LOOK-->" not in page
    assert b"http://" not in page and b"https://" not in page  # works without a network
    status, found = send(serving, Origin=serving.address[:-1])
    assert status == 200 and found["run"] == "stub"


LARGE = json.dumps({"image": as_url(Image.new("1", (4000, 1001)))})


@pytest.mark.parametrize("status, how", [
    (404, dict(method="GET", path="/../../etc/passwd")), (404, dict(method="GET", path="/play.py")),
    (404, dict(method="GET", path="/?a=b")), (404, dict(path="/")),
    (404, dict(path="/caption/../answer")), (501, dict(method="DELETE")),
    (501, dict(method="OPTIONS")), (403, dict(Host="evil.example:8000")), (403, dict(Host="")),
    (403, dict(method="GET", path="/", Host="127.0.0.1")), (403, dict(Origin="null")),
    (403, dict(Origin="http://evil.example")), (415, dict(Content_Type="text/plain")),
    (411, dict(Content_Length="-1")), (411, dict(Content_Length="a")),
    (413, dict(Content_Length="4000001")), (413, dict(Content_Length="9" * 5000)),
    (400, dict(body="{")), (400, dict(body="[" * 100_000)), (400, dict(body="[]")),
    (400, dict(body="1")), (400, dict(body='{"image": 1}')),
    (400, dict(body='{"image": "/etc/passwd"}')), (400, dict(body='{"image": "file:///etc/passwd"}')),
    (400, dict(body='{"image": "data:image/png;base64,AAAA"}')),
    (400, dict(body='{"image": "data:image/png;base64,A"}')), (400, dict(body=LARGE)),
    (400, dict(body=b"\xff\xfe"))])
def test_what_the_page_never_sends_is_refused_in_one_line(serving, status, how):
    found, said = send(serving, **how)
    assert found == status and "\n" not in said["error"] and len(said["error"]) <= 1000
    assert "Traceback" not in str(said)


@pytest.mark.parametrize("port, bare", [(80, True), (8080, False)])
def test_only_the_port_of_pages_may_be_left_out(port, bare):
    assert f"localhost:{port}" in hosts_of(port) and ("localhost" in hosts_of(port)) == bare


def test_a_thousand_half_strange_and_slow_requests_leave_it_running(serving, capfd):
    """Also more at once than there are places; who says nothing is hung up on."""
    def start(data):
        connection = socket.create_connection(serving.server_address, timeout=20)
        connection.sendall(data)
        return connection

    half = b"POST /caption HTTP/1.1\r\nHost: %s\r\n" % serving.hosts[0].encode()
    kinds = [b"", b"\0" * 70_000, b"GET", half, half + b"Content-Type: application/json\r\n"
             b"Content-Length: 4000\r\n\r\n{", b"GET / HTTP/9.9\r\n\r\n", b"a b c d e\r\n\r\n",
             b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n"]
    for i in range(1000):
        try:
            start(kinds[i % 8]).close()
        except OSError:  # it has refused before all was sent
            pass
    waiting = [start(half) for _ in range(60)]
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            assert send(serving)[0] == 200
            break
        except (OSError, http.client.HTTPException):  # all places are taken, for a second
            time.sleep(0.2)
    else:
        pytest.fail("it answers no more")
    for connection in waiting:
        connection.settimeout(5)
        try:
            while connection.recv(4096):
                pass
        except ConnectionError:
            pass
        connection.close()
    assert "Traceback" not in "".join(capfd.readouterr())


def test_an_error_of_the_program_is_told_and_does_not_end_it(serving, monkeypatch, capfd):
    monkeypatch.setattr(Stub, "reply", lambda *args: 1 / 0)
    assert send(serving) == (500, {"error": "ZeroDivisionError: division by zero"})
    monkeypatch.undo()
    assert send(serving)[0] == 200
    assert capfd.readouterr().err.startswith("a request failed: ZeroDivisionError")


def test_a_taken_port_is_one_line(serving):
    with pytest.raises(UserError, match="--port .* cannot be used"):
        Server(serving.server_port, Stub())


# ---------------------------------------------------------------------------- the page

needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here")
SAID = "document.querySelector('#caption .words').textContent"
COVERED = ("document.querySelector('.heat').getContext('2d').getImageData({}, {}, 1, 1).data[3]")


@needs_chromium
def test_drawing_hovering_asking_and_pointing_in_a_browser(serving):
    with Chromium(1100, 800) as browser:
        browser.open(serving.address)
        x, y = browser.centre("#board")
        browser.click("#clear")
        browser.wait(f"{SAID} === 'middle 255-255-255'")
        browser.click("[data-value=green]")
        browser.mouse((x, y))
        browser.wait(f"{SAID} === 'middle 42-154-60'")
        browser.mouse((x, y), (x + 100, y + 50))  # dragged away
        browser.wait(f"{SAID} === 'middle 255-255-255' && state.things.length === 1")
        browser.wait("document.querySelectorAll('.word.later').length === 0")
        browser.hover(*browser.centre(".word:nth-child(2)"))  # the second looks to the top right
        browser.wait(COVERED.format(100, 20) + " > 150")
        covered = lambda *places: [browser.js(COVERED.format(*at)) > 150 for at in places]
        corners = (20, 20), (100, 20), (20, 100), (100, 100)
        assert covered(*corners) == [False, True, True, False]  # the mean of all layers and heads
        for menu, choice, seen in (("layer", 0, [False, True, False, False]),
                                   ("layer", 1, [False, False, True, False]), ("head", 0, 4 * [0])):
            browser.js(f"(menu => {{ menu.value = {choice}; menu.dispatchEvent(new Event('change')) }})"
                       f"(document.querySelector('select[aria-label={menu}]'))")
            assert covered(*corners) == seen
        for what, text in (("answer", "is it <i>red</i>?"), ("point", "the green one")):
            browser.click(f"#{what} input")
            browser.type(text)
            browser.click(f"#{what} button")
            browser.wait(f"!!document.querySelector('#{what} .bar')")
        assert browser.js("document.querySelector('#answer .bar').textContent") == \
            "is it <i>red</i>?75.0 %"
        assert browser.js("document.querySelector('#point .bar').textContent") == \
            "large green circle100.0 %"
        browser.mouse((x + 100, y + 50), button="right")  # erased
        browser.wait("state.things.length === 0")
        assert browser.errors == []


@needs_chromium
def test_what_goes_wrong_is_told_on_the_page(serving, monkeypatch):
    monkeypatch.setattr(Stub, "runs", {"caption": "a"})
    trouble = "document.querySelector('#trouble').textContent"
    with Chromium(500, 800) as browser:
        browser.open(serving.address)
        missing = browser.js("document.querySelector('#answer').textContent")
        assert "python train.py --dataset shapes/vqa --search" in missing
        browser.js("openPhoto(new File(['<html>'], 'a.png'))")
        assert "a.png: this browser cannot read it" in browser.js(trouble)
        browser.js("openPhoto(new File([Uint8Array.from(atob('%s'), c => c.charCodeAt(0))], 'b.png'))"
                   % as_url(RED).partition(",")[2])
        browser.wait(f"{SAID} === 'middle 255-0-0'")
        assert browser.js(trouble) == "" and browser.errors == []
        serving.shutdown()
        serving.socket.close()
        browser.click("#clear")
        browser.wait(f"{trouble}.includes('python -m play starts it again')")
