"""What is let in: Python's own web server, on 127.0.0.1, for one page and three kinds of questions.

    GET  /           the page
    POST /caption    {"image": "data:image/png;base64,..."}                  -> JSON
    POST /answer     the same with "text", the question
    POST /point      the same with "text", an expression, and "boxes"; or {"error": "one line"}

Another page in the same browser can send requests here, too. pitfall: with a name of its own that
it lets point to 127.0.0.1 (DNS rebinding) it could even read the replies. So the Host must be this
address, the Origin this page, and the type JSON, for which a browser would have to ask first.

Nothing of a request is a path. Its size, its time and the number of those at once are bounded.
"""

import base64
import binascii
import json
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from lib.attention import in_script, look_parts
from lib.cli import UserError, note
from lib.images import image_of
from play.models import COMMANDS

BYTES = 4_000_000  # of a request
PIXELS = 4_000_000  # of its picture; the page sends far fewer
SECONDS = 15  # to send a request, and to read the reply
AT_ONCE = 32  # requests
POLICY = ("default-src 'none'; connect-src 'self'; img-src data: blob:; style-src 'unsafe-inline'; "
          "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")


class Server(ThreadingHTTPServer):
    """Serves the page on a port. UserError if it is taken."""

    request_queue_size = 64
    daemon_threads = True
    allow_reuse_address = sys.platform != "win32"  # there it would share the port of another one

    def __init__(self, port, models):
        self.models, self.lock = models, threading.Lock()  # one picture at a time
        self.slots = threading.BoundedSemaphore(AT_ONCE)
        try:
            super().__init__(("127.0.0.1", port), Handler)
        except OSError as e:
            raise UserError(f"--port {port}: cannot be used ({e.strerror}); --port 0 takes one "
                            "that is free") from None
        self.hosts = hosts_of(self.server_port)
        self.address = f"http://{self.hosts[0]}/"

    def server_bind(self):
        """differs: HTTPServer asks the network for this machine's name, which can take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, self.allow_reuse_address)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.server_address

    def page(self):
        """The page as it is sent, with what there is no model for yet."""
        text = (Path(__file__).parent / "page.html").read_text("utf-8")
        missing = {a: c for a, c in COMMANDS.items() if a not in self.models.runs}
        return (text.replace("<!--LOOK-->", look_parts())
                .replace("/*MISSING*/{}", in_script(missing))).encode()

    def process_request(self, request, client_address):
        if self.slots.acquire(blocking=False):
            return super().process_request(request, client_address)
        self.shutdown_request(request)

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.slots.release()

    def handle_error(self, request, client_address):
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):  # those mean that the other side has left
            note(f"a request failed: {type(error).__name__}: {error}")


def hosts_of(port):
    """What a browser may call this server; it leaves out the port that pages have by themselves."""
    names = ["127.0.0.1", "localhost"]
    return [f"{name}:{port}" for name in names] + (names if port == 80 else [])


def hang_up(connection):
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it is closed already


class Refused(Exception):
    """(HTTP status, what is wrong)"""


class Handler(BaseHTTPRequestHandler):
    """One connection with one request."""

    timeout = SECONDS  # of a single read or write
    server_version, sys_version = "seeGPT", ""

    def setup(self):
        super().setup()
        self.hurry()

    def finish(self):
        try:
            super().finish()
        finally:
            self.timer.cancel()

    def hurry(self):
        """From now on: one that sends byte after byte, or reads none, is not waited for."""
        self.timer = threading.Timer(SECONDS, hang_up, [self.connection])
        self.timer.daemon = True
        self.timer.start()

    def do_GET(self):
        self.answer(self.get)

    def do_POST(self):
        self.answer(self.post)

    def answer(self, how):
        try:
            self.check_sender()
            self.send(200, *how())
        except Refused as e:
            self.send_error(*e.args)
        except UserError as e:
            self.send_error(400, str(e))
        except OSError:
            raise
        except Exception as e:  # the page should hear of it, and the terminal, too
            self.send_error(500, f"{type(e).__name__}: {e}"[:300])
            raise

    def check_sender(self):
        """Refuses what no page of this server sends."""
        hosts, origin = self.headers.get_all("Host", []), self.headers.get("Origin")
        if len(hosts) != 1 or hosts[0] not in self.server.hosts:
            raise Refused(403, f"this page is {self.server.address} and has no other name")
        if origin is not None and origin != f"http://{hosts[0]}":
            raise Refused(403, "requests of other pages are not answered")

    def get(self):
        if self.path != "/":
            raise Refused(404, "there is nothing here but /")
        return "text/html; charset=utf-8", self.server.page()

    def post(self):
        if self.path[1:] not in COMMANDS or self.path[0] != "/":
            raise Refused(404, f"there is nothing here but {', '.join(COMMANDS)}")
        if self.headers.get_content_type() != "application/json":
            raise Refused(415, "JSON, please")
        data = self.rfile.read(self.length())
        self.timer.cancel()  # to load a large model takes its time
        try:
            asked, image = read_request(data)
            with self.server.lock:
                found = self.server.models.reply(self.path[1:], image, asked)
        finally:
            self.hurry()
        return "application/json", json.dumps(found).encode()

    def length(self):
        """The bytes of the request that follow."""
        lengths = self.headers.get_all("Content-Length", [])
        if len(lengths) != 1 or not (lengths[0].isascii() and lengths[0].isdigit()):
            raise Refused(411, "a request must say how long it is")
        if len(lengths[0]) > 9 or int(lengths[0]) > BYTES:
            raise Refused(413, f"a request has at most {BYTES:,} bytes")
        return int(lengths[0])

    def send(self, status, kind, data):
        self.send_response(status)
        for name, value in (("Content-Type", kind), ("Content-Length", len(data)),
                            ("Cache-Control", "no-store"), ("Content-Security-Policy", POLICY),
                            ("X-Content-Type-Options", "nosniff"),
                            ("Referrer-Policy", "no-referrer"),
                            ("Cross-Origin-Resource-Policy", "same-origin")):
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data)

    def send_error(self, code, message=None, explain=None):
        """Also for what the base class finds wrong before any of the above."""
        self.close_connection = True
        self.send(code, "application/json", json.dumps({"error": message or explain}).encode())

    def log_message(self, *args):
        """Nothing: the terminal is for what somebody should read."""


def read_request(data):
    """(all of a request {..}, its RGB image) of its bytes. UserError for anything else."""
    try:
        asked = json.loads(data)
        kind, _, picture = asked["image"].partition(";base64,")
        if not kind.startswith("data:image/"):
            raise ValueError
        picture = base64.b64decode(picture, validate=True)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error):
        raise UserError('expected {"image": "data:image/png;base64,...", ...}') from None
    return asked, image_of(picture, PIXELS)
