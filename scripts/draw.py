"""Draw a digit in a browser, and see the predictions of a trained network live.

The page shows the probabilities, what the network sees, the gradient of the predicted class's score
at each pixel, and the outputs of each layer. The server answers only this computer, and the page
loads nothing from elsewhere. Ctrl-C ends the server.
"""

from __future__ import annotations

from cli import Parser, file_path, run

import argparse
import base64
import copy
import hashlib
import json
import math
import re
import socketserver
import sys
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
from trained import MODEL, Classifier

import nnxp
from nnxp.data_format import prepared_examples
from nnxp.errors import printable
from nnxp.layers.noise import Noise

HOST = "127.0.0.1"
PAGE = Path(__file__).with_name("draw.html")
LARGEST = 512  # pixels on a side of a drawing
MAPS, UNITS = 64, 1024  # the largest numbers that are shown of a layer


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("model", type=file_path, metavar="MODEL", help=MODEL)
    parser.add_argument("--port", type=port_number, default=8000,
                        help="port of the page's address; 0 for any free port "
                        "(default: 8000)")  # fmt: skip
    args = parser.parse_args()
    explainer = Explainer(Classifier(args.model))
    with Server(explainer, args.port) as server:
        print(f"draw at http://{HOST}:{server.port}/ (Ctrl-C ends it)")
        server.serve_forever()


def port_number(text: str) -> int:
    """Return `text` as the number of a port; an argparse type."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 65535, got {text!r}")
    return int(text)


class Scaled(nnxp.Layer):
    """BatchNorm in inference, with a backward: ``y = x * scale + shift`` for each feature."""

    def __init__(self, norm: nnxp.BatchNorm) -> None:
        self.scale = norm.params["gamma"] / np.sqrt(norm.state["running_var"] + norm.epsilon)
        self.shift = norm.params["beta"] - norm.state["running_mean"] * self.scale

    def forward(self, x: np.ndarray, training: bool = False) -> np.ndarray:
        shape = (-1, *[1] * (x.ndim - 2))
        scale = self.scale.reshape(shape)
        y = x * scale + self.shift.reshape(shape)
        if training:
            self.save_for_backward(y, scale)
        return y

    def backward(self, dy: np.ndarray) -> np.ndarray:
        return dy * self.saved(dy)

    def output_shape(self, shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return shape


def for_gradients(network: nnxp.Sequential) -> nnxp.Sequential:
    """Return a copy whose training forward equals the network's inference.

    In training, BatchNorm would use the statistics of the single drawing, and layers such as
    Dropout and RandomShift would change it at random.
    """
    copied = copy.deepcopy(network)
    for each in [copied, *copied.all_layers()]:
        if isinstance(each, nnxp.Sequential):
            each.layers = [
                Scaled(layer) if isinstance(layer, nnxp.BatchNorm)
                else nnxp.Identity() if isinstance(layer, Noise) else layer
                for layer in each.layers
            ]  # fmt: skip
    copied.trainable = False  # no gradients of parameters
    return copied


class Explainer:
    """The prediction of a network for a drawing, with its explanation, as JSON values.

    Arrays are objects with `shape`, the `largest` magnitude, and `data`: int8 numbers in base64,
    which map -largest to -127 and largest to 127.
    """

    def __init__(self, classifier: Classifier) -> None:
        self.side = classifier.require_images()
        self.classifier = classifier
        self.twin = for_gradients(classifier.network)
        self.layers = classifier.network.named_layers()
        self.lock = threading.Lock()  # no other forward may run between a forward and its backward

    def model(self) -> dict[str, Any]:
        """Return the name, the number of parameters, the classes and the size of the images."""
        parameters = self.classifier.network.parameters().values()
        return {
            "name": printable(str(self.classifier.path)),
            "classes": [printable(str(x)) for x in self.classifier.classes],
            "side": self.side,
            "parameters": f"{sum(math.prod(x.shape) for x in parameters):,}",
        }

    def explain(self, ink: np.ndarray) -> dict[str, Any]:
        """Return the network's prediction for a drawing, with its explanation.

        Raises
        ------
        InputError
            If the drawing is blank.
        """
        field = self.classifier.field(ink)
        examples = self.classifier.examples(field[None])
        network = self.classifier.network
        (probabilities,) = self.classifier.probabilities(examples)
        guess = int(probabilities.argmax())
        place = (network.device or nnxp.device("cpu"), network.dtype or "float32")
        x = next(prepared_examples(examples, 1, network.data_format, *place))
        layers, before = [], x
        for name, y in network.activations(x).items():
            layer = {"name": name, "layer": printable(repr(self.layers[name])[:200])}
            # Show no outputs of Flatten, and of layers that do nothing in inference.
            if np.array_equal(np.ravel(y), np.ravel(before)):
                layers.append(layer | {"count": list(y.shape[1:])})
            else:
                shown = y[0][: MAPS if y.ndim == 4 else UNITS]
                layers.append(layer | {"count": list(y.shape[1:]), "output": encoded(shown)})
            before = y
        scores = before[0] if len(before[0]) == len(probabilities) else []
        gradient = self.gradient(x, guess)
        return {
            "guess": guess,
            "probabilities": [round(float(p), 6) for p in probabilities],
            "scores": [round(float(s), 4) for s in scores],
            "input": encoded(field.astype(np.float64)),
            "gradient": None if gradient is None else encoded(gradient.reshape(field.shape)),
            "layers": layers,
        }

    def gradient(self, x: np.ndarray, guess: int) -> np.ndarray | None:
        """Return the gradient of a class's score with respect to the inputs of one example.

        Return None if a user's layer does not compute the same in training and in inference.
        """
        with self.lock:
            scores = self.twin.forward(x, training=True)
            # The scores differ by rounding: float32 has 7 digits, and sums lose a few of them.
            tolerance = 1e-3 * float(np.abs(scores).max())
            if not np.allclose(scores, self.classifier.network.forward(x), rtol=0, atol=tolerance):
                return None
            dy = np.zeros_like(scores)
            if scores.shape[1] == 1:  # two classes with the score of the second one
                dy[0, 0] = 1 if guess else -1
            else:
                dy[0, guess] = 1
            return self.twin.backward(dy)


def encoded(x: np.ndarray) -> dict[str, Any]:
    """Return an array as JSON values; see `Explainer`."""
    largest = float(np.abs(x).max()) or 1.0
    data = np.rint(x * (127 / largest)).astype(np.int8)
    return {
        "shape": list(x.shape),
        "largest": float(f"{largest:.4g}"),
        "data": base64.b64encode(np.ascontiguousarray(data)).decode(),
    }


class Server(socketserver.ThreadingTCPServer):
    """An HTTP server that answers only this computer."""

    daemon_threads = True
    allow_reuse_address = sys.platform != "win32"  # on Windows, two servers could share a port

    def __init__(self, explainer: Explainer, port: int) -> None:
        self.explainer = explainer
        self.page = PAGE.read_bytes()
        try:
            super().__init__((HOST, port), Handler)
        except OSError as error:
            raise nnxp.InputError(
                f"port {port} cannot be used ({error.strerror}); give another --port, or 0 for any "
                "that is free"
            ) from error
        self.port: int = self.server_address[1]
        self.hosts = [f"{HOST}:{self.port}", f"localhost:{self.port}"]
        # The policy allows only the page's own style and script.
        text = self.page.decode()
        own = {
            name: base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
            for name, part in re.findall(r"<(style|script)>(.*?)</", text, re.S)
        }
        self.policy = (
            f"default-src 'none'; style-src 'sha256-{own['style']}'; "
            f"script-src 'sha256-{own['script']}'; connect-src 'self'; img-src data:; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )

    def handle_error(self, request: Any, address: Any) -> None:
        """Print an error on one line; a closed connection is not an error."""
        error = sys.exception()
        if not isinstance(error, (ConnectionError, TimeoutError)):
            print(f"draw.py: error: {type(error).__name__}: {error}", file=sys.stderr)


class Handler(BaseHTTPRequestHandler):
    """Handler of requests from the page; it rejects requests from pages of other sites."""

    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise a response waits for 40 ms
    timeout = 60  # seconds after which an idle connection is closed

    def do_GET(self) -> None:
        """Send the page, or the model's description."""
        if not self._is_own():
            return
        if self.path == "/":
            self._send(200, self.server.page, "text/html; charset=utf-8")
        elif self.path == "/model":
            self._send_json(200, self.server.explainer.model())
        else:
            self._refuse(404, "there is nothing at this address")

    def do_POST(self) -> None:
        """Send the prediction for a drawing: a square of uint8 ink, 0 for the background."""
        if not self._is_own():
            return
        length = self.headers.get("Content-Length", "")
        # A page of another site needs a preflight request for this type, which is not answered.
        if self.headers.get("Content-Type") != "application/octet-stream":
            self._refuse(415, "a drawing is sent as application/octet-stream")
        elif self.path != "/predict":
            self._refuse(404, "there is nothing at this address")
        elif not (length.isascii() and length.isdecimal()):
            self._refuse(411, "the request has no valid Content-Length")
        elif len(length) > 6 or int(length) > LARGEST**2:
            self._refuse(413, f"a drawing has at most {LARGEST} x {LARGEST} pixels")
        elif not int(length) or math.isqrt(int(length)) ** 2 != int(length):
            self._refuse(400, "a drawing has a square of pixels")
        else:
            body = self.rfile.read(int(length))
            if len(body) < int(length):  # the browser has closed the connection
                self.close_connection = True
                return
            ink = np.frombuffer(body, np.uint8).reshape(math.isqrt(int(length)), -1)
            try:
                self._send_json(200, self.server.explainer.explain(ink))
            except nnxp.InputError as error:
                self._send_json(422, {"error": str(error)})

    def _is_own(self) -> bool:
        """Return whether the request is for this server and from its page; otherwise reject it.

        The name of another site may resolve to this computer; its requests have that name as Host.
        Or its page may send requests to this address; they have its Origin.
        """
        origins = self.headers.get_all("Origin") or []
        own = [f"http://{host}" for host in self.server.hosts]
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or hosts[0] not in self.server.hosts:
            self._refuse(421, f"this server is http://{self.server.hosts[0]}/")
        elif self.headers.get("Transfer-Encoding"):
            self._refuse(411, "the request has no Content-Length")
        elif (self.command == "POST" and not origins) or any(x not in own for x in origins):
            self._refuse(403, "only the page of this server may ask it")
        else:
            return True
        return False

    def _refuse(self, status: int, message: str) -> None:
        self.close_connection = True  # the body is not read
        self._send_json(status, {"error": message})

    def _send_json(self, status: int, value: Any) -> None:
        self._send(status, json.dumps(value, allow_nan=False).encode(), "application/json")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind, "Content-Length": len(body), "Cache-Control": "no-store",
            "Content-Security-Policy": self.server.policy, "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin",
        }  # fmt: skip
        for name, value in headers.items():
            self.send_header(name, str(value))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        """Return the server's name, without the version of Python."""
        return "nnxp"

    def log_message(self, *_: Any) -> None:
        """Print nothing: a drawing makes many requests."""


if __name__ == "__main__":
    run(main)
