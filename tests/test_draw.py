"""scripts/draw.py: the page's server, and its answers; see also test_browser."""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import signal
import socket

import numpy as np
import pytest
from script_runner import SCRIPTS, drawing_page, run, script_modules

import nnxp
from nnxp.data import Dataset

pytestmark = pytest.mark.skipif(not SCRIPTS.exists(), reason="scripts: not beside the tests")

TYPE = "application/octet-stream"


def trained(network, dataset, loss=None):
    trainer = nnxp.Trainer(network, loss or nnxp.SoftmaxWithLoss(), nnxp.Adam(), capture=False)
    trainer.fit(dataset, epochs=2, batch_size=50, rng=0)
    return network


@pytest.fixture(scope="module")
def lenet(tmp_path_factory):
    """The file of a LeNet with every kind of layer that does something else in training."""
    layers = nnxp.lenet(10, image=(1, 8, 8), padding=2, batch_norm=True, dropout=0.2, rng=0)
    network = nnxp.Sequential([nnxp.RandomShift(1, rng=0), *layers])
    path = tmp_path_factory.mktemp("lenet") / "lenet.safetensors"
    trained(network, nnxp.data.load_digits(images=True)[0]).save(path)
    return path


@pytest.fixture(scope="module")
def port(lenet):
    with drawing_page(lenet) as (port, _):
        yield port


def drawing():
    """Return ink of a one, 100 x 100 pixels."""
    ink = np.zeros((100, 100), np.uint8)
    ink[20:80, 45:55] = 255
    return ink


def ask(port, method="POST", path="/predict", body=None, **headers):
    """Send a request like the page's, with other `headers`; None omits one."""
    own = {"Host": f"127.0.0.1:{port}", "Origin": f"http://127.0.0.1:{port}", "Content_Type": TYPE}
    if body is not None:
        own["Content_Length"] = str(len(body))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.putrequest(method, path, skip_host=True)
    for name, value in (own | headers).items():
        if value is not None:
            connection.putheader(name.replace("_", "-"), value)
    connection.endheaders(body)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer, text


def decode(array):
    data = np.frombuffer(base64.b64decode(array["data"]), np.int8).reshape(array["shape"])
    return data * (array["largest"] / 127)


def test_the_page_loads_nothing_from_elsewhere(port):
    answer, text = ask(port, "GET", "/", Origin=None)
    page = text.decode()
    assert answer.status == 200
    assert page == (SCRIPTS / "draw.html").read_text(encoding="utf-8")
    assert "http" not in page.replace("http-equiv", "")
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["Server"] == "nnxp"
    assert answer.headers.get("Access-Control-Allow-Origin") is None


def test_the_model_is_described(port, lenet):
    answer, text = ask(port, "GET", "/model", Origin=None)
    assert answer.status == 200
    count = sum(x.size for x in nnxp.load_network(lenet).parameters().values())
    assert json.loads(text) == {
        "name": str(lenet), "parameters": f"{count:,}", "classes": [str(i) for i in range(10)],
        "side": 8,
    }  # fmt: skip


def test_the_answer_is_the_networks(port, lenet):
    answer, text = ask(port, body=drawing().tobytes())
    assert answer.status == 200
    found = json.loads(text)
    network = nnxp.load_network(lenet)
    field = nnxp.data.center_drawing(drawing(), 8, box=8)
    x = field[None, None]
    (probabilities,) = network.predict_proba(x)
    assert found["guess"] == probabilities.argmax()
    np.testing.assert_allclose(found["probabilities"], probabilities, atol=1e-5)
    np.testing.assert_allclose(found["scores"], network.predict(x)[0], atol=1e-3)
    np.testing.assert_allclose(decode(found["input"]), field, atol=255 / 127)
    activations = network.activations((x / np.float32(255)).astype("float32"))
    assert [each["name"] for each in found["layers"]] == list(activations)
    silent = [each["name"] for each in found["layers"] if "output" not in each]
    assert silent == ["randomshift1", "flatten1", "dropout1"]
    for each in found["layers"]:
        expected = activations[each["name"]][0]
        assert each["count"] == list(expected.shape)
        if "output" in each:
            shown = decode(each["output"])
            # int8 holds 127 steps up to the largest number, which is sent with 4 digits.
            limit = np.abs(expected).max() * (0.5 / 127 + 1e-3)
            np.testing.assert_allclose(shown, expected[: len(shown)], rtol=0, atol=limit)


def test_requests_of_other_sites_are_refused(port):
    body = drawing().tobytes()
    own = f"127.0.0.1:{port}"
    assert ask(port, body=body, Host=f"localhost:{port}")[0].status == 200
    cases = [
        ({"Host": f"evil.example:{port}"}, 421),
        ({"Host": "127.0.0.1"}, 421),
        ({"Host": None}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": f"https://{own}"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": None}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": None}, 415),
    ]
    for headers, status in cases:
        answer, text = ask(port, body=body, **headers)
        assert answer.status == status, headers
        assert json.loads(text)["error"]
        assert answer.headers.get("Access-Control-Allow-Origin") is None
    assert ask(port, "GET", "/", Host="evil.example")[0].status == 421
    assert ask(port, "GET", "/model", Origin="http://evil.example")[0].status == 403
    assert ask(port, "OPTIONS")[0].status == 501


def test_wrong_requests_are_refused(port):
    cases = [
        ({"body": b""}, 400, "a square of pixels"),
        ({"body": bytes(99)}, 400, "a square of pixels"),
        ({"body": bytes(100)}, 422, "got a blank image"),
        ({"Content_Length": str(513**2)}, 413, "at most 512 x 512 pixels"),
        ({"Content_Length": "9" * 5000}, 413, "at most 512 x 512 pixels"),
        ({"Content_Length": "-1"}, 411, "no valid Content-Length"),
        ({"Content_Length": "²"}, 411, "no valid Content-Length"),
        ({}, 411, "no valid Content-Length"),
        ({"Transfer_Encoding": "chunked"}, 411, "no Content-Length"),
        ({"path": "/"}, 404, "nothing at this address"),
        ({"method": "GET"}, 404, "nothing at this address"),
        ({"method": "GET", "path": "/../draw.py"}, 404, "nothing at this address"),
    ]
    for options, status, message in cases:
        answer, text = ask(port, **options)
        assert (answer.status, message in json.loads(text)["error"]) == (status, True), options
    assert ask(port, body=drawing().tobytes())[0].status == 200


def test_a_request_that_breaks_off_does_not_stop_the_server(port):
    with socket.create_connection(("127.0.0.1", port)) as stream:
        head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: {TYPE}\r\n"
        origin = f"Origin: http://127.0.0.1:{port}\r\n"
        stream.sendall(f"{head}{origin}Content-Length: 10000\r\n\r\nabc".encode())
    with socket.create_connection(("127.0.0.1", port)) as stream:
        stream.sendall(b"\x00\xff nonsense\r\n\r\n")
        assert b"400" in stream.recv(1000)
    assert ask(port, body=drawing().tobytes())[0].status == 200


def test_ctrl_c_ends_the_server_and_a_used_port_is_an_error(lenet):
    with drawing_page(lenet) as (port, process):
        result = run("draw.py", lenet, "--port", port, status=1)
        assert result.stderr == (
            f"draw.py: error: port {port} cannot be used (Address already in use); give another "
            "--port, or 0 for any that is free\n"
        )
        with socket.create_connection(("127.0.0.1", port)):  # an open connection does not hold it
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate()
        assert process.returncode == 130
        assert errors == "draw.py: interrupted\n"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


@pytest.mark.parametrize("text", ["-1", "65536", "http", "²"])
def test_a_wrong_port_is_refused(text):
    with script_modules():
        import draw
    with pytest.raises(argparse.ArgumentTypeError, match="must be a number from 0 to 65535, got"):
        draw.port_number(text)


def test_a_network_of_tables_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    dataset = Dataset(rng.random((40, 4)), np.arange(40) % 3)
    network = trained(nnxp.mlp([4, 3], rng=0), dataset)
    with pytest.raises(nnxp.InputError, match="which do not form a square grey image"):
        explainer(network, tmp_path)


def explainer(network, tmp_path):
    with script_modules():
        import draw
        import trained
    network.save(tmp_path / "network.safetensors")
    return draw.Explainer(trained.Classifier(tmp_path / "network.safetensors"))


def smooth(outputs=10):
    """Return a network whose scores have a derivative everywhere, in float64."""
    options = {"rng": 0, "activation": "tanh", "batch_norm": True, "dtype": "float64"}
    inner = nnxp.mlp([64, 20, outputs], dropout=0.3, **options)
    block = nnxp.Residual(
        [nnxp.Dropout(0.2, rng=1, dtype="float64"), nnxp.BatchNorm(64, dtype="float64")]
    )
    return nnxp.Sequential([block, *inner])


@pytest.mark.parametrize("outputs", [10, 1])
def test_the_gradient_is_that_of_the_score_in_inference(tmp_path, outputs):
    train, _ = nnxp.data.load_digits()
    labels = train.labels if outputs == 10 else train.labels % 2
    loss = nnxp.SoftmaxWithLoss() if outputs == 10 else nnxp.SigmoidWithLoss()
    network = trained(smooth(outputs), Dataset(train.inputs, labels), loss)
    x = train.inputs[:2] / 255
    for guess in (0, 1):
        sign = -1 if (outputs, guess) == (1, 0) else 1
        column = guess if outputs == 10 else 0
        found = explainer(network, tmp_path).gradient(x[:1], guess)
        h = 1e-5  # the errors, of rounding eps / h and of the series h ** 2, are about 1e-10
        moved = x[:1] + np.concatenate([np.eye(64), -np.eye(64)]) * h
        scores = sign * network.forward(moved)[:, column]
        np.testing.assert_allclose(found[0], (scores[:64] - scores[64:]) / (2 * h), atol=1e-8)
        assert np.abs(found).max() > 1e-3


class Jitter(nnxp.Layer):
    """A layer of a user's that does something else in training."""

    def forward(self, x, training=False):
        y = x + 1.0 if training else x
        if training:
            self.save_for_backward(y, ())
        return y

    def backward(self, dy):
        self.saved(dy)
        return dy


def test_no_gradient_is_shown_where_it_is_not_known(tmp_path):
    nnxp.register(Jitter)
    network = nnxp.Sequential([Jitter(), *nnxp.mlp([64, 20, 10], rng=0)])
    found = explainer(trained(network, nnxp.data.load_digits()[0]), tmp_path).explain(drawing())
    assert found["gradient"] is None
    assert len(found["probabilities"]) == 10
