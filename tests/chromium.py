"""A real browser to test with: Chromium without a window, driven through its DevTools protocol.

The protocol goes through two pipes, one JSON a message, ended by a zero byte: no port, no library.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
                None)


class Chromium:
    """with Chromium(1100, 800) as browser: a page of that size; browser.errors: what it complained
    of on its console."""

    def __init__(self, width, height, dark=False):
        self.size, self.number, self.read, self.errors = (width, height), 0, b"", []
        self.dark = dark

    def __enter__(self):
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        self.files, self.profile = (ours_in, ours_out), tempfile.TemporaryDirectory()
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                   "--disable-dev-shm-usage", "--remote-debugging-pipe", "--no-first-run",
                   f"--user-data-dir={self.profile.name}", "about:blank"]
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "-", *command],
            pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for file in (theirs_in, theirs_out):
            os.close(file)
        self.session = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")
        width, height = self.size
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=False)
        if self.dark:
            self.send("Emulation.setEmulatedMedia",
                      features=[{"name": "prefers-color-scheme", "value": "dark"}])
        return self

    def __exit__(self, *error):
        self.process.terminate()
        self.process.wait(10)
        for file in self.files:
            os.close(file)
        self.profile.cleanup()

    def send(self, method, **params):
        """The result of a command."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.files[1], json.dumps(message).encode() + b"\0")
        while True:
            reply = self.receive()
            if reply.get("id") == self.number:
                assert "error" not in reply, reply["error"]
                return reply["result"]

    def receive(self, timeout=60):
        while b"\0" not in self.read:
            assert select.select([self.files[0]], [], [], timeout)[0], "the browser says nothing"
            part = os.read(self.files[0], 2 ** 20)
            assert part, "the browser has ended"
            self.read += part
        message, self.read = self.read.split(b"\0", 1)
        message = json.loads(message)
        event, params = message.get("method"), message.get("params", {})
        if event == "Runtime.exceptionThrown" or event == "Log.entryAdded" \
                and params["entry"]["level"] == "error" or event == "Runtime.consoleAPICalled":
            self.errors.append(json.dumps(params)[:400])
        return message

    def open(self, url):
        self.send("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def js(self, expression):
        """The value of an expression, of a promise what it becomes."""
        reply = self.send("Runtime.evaluate", expression=expression, returnByValue=True,
                          awaitPromise=True)
        assert "exceptionDetails" not in reply, reply["exceptionDetails"]
        return reply["result"].get("value")

    def wait(self, expression, seconds=100):
        """The value of an expression as soon as it is true."""
        end = time.monotonic() + seconds
        while not (value := self.js(expression)):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.02)
        return value

    def mouse(self, *path, button="left"):
        """The pointer goes to the first place (x, y), is pressed, goes on, and is released."""
        for kind, (x, y) in [("mouseMoved", path[0]), ("mousePressed", path[0]),
                             *(("mouseMoved", place) for place in path[1:]),
                             ("mouseReleased", path[-1])]:
            held = "none" if kind == "mouseMoved" and path[0] == (x, y) else button
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=held, clickCount=1)

    def hover(self, x, y):
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def centre(self, selector):
        """The middle (x, y) of an element."""
        return tuple(self.js(f"(r => [r.x + r.width / 2, r.y + r.height / 2])"
                             f"(document.querySelector({selector!r}).getBoundingClientRect())"))

    def click(self, selector):
        self.mouse(self.centre(selector))

    def type(self, text):
        self.send("Input.insertText", text=text)

    def screenshot(self, path, whole=False):
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=whole)
        with open(path, "wb") as f:
            f.write(base64.b64decode(shot["data"]))
