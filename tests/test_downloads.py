"""Downloads: MNIST from mirrors on this machine, which answer well and in every wrong way."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import json
import os
import shutil
import ssl
import subprocess
import sys
import threading

import pytest
from file_samples import write_mnist_layout
from script_runner import PATHS

import nnxp
from nnxp.data import mnist

LOAD = """
import json, logging, sys
logging.basicConfig(level="INFO")
from nnxp.data import mnist
mnist.FILES, mnist.MIRRORS = json.loads(sys.argv[1])
print(len(mnist.load_mnist()[0]))
"""


class Server(http.server.ThreadingHTTPServer):
    """Mirrors on this machine: `answers` has the contents of a path, or a function to answer."""

    def __init__(self, certificate):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = {}
        self.stopped = threading.Event()
        self.sent = 0
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
            self.socket = context.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, request, client_address):
        """Say nothing: clients leave, as they should."""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        answer = self.server.answers.get(self.path)
        if answer is None:
            self.send_error(404)
        elif callable(answer):
            answer(self)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    def do_CONNECT(self):
        self.send_error(407)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate for 127.0.0.1, and its key."""
    if not shutil.which("openssl"):
        pytest.skip("openssl: not installed")
    folder = tmp_path_factory.mktemp("certificate")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=nnxp", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=folder, capture_output=True, check=True,
    )  # fmt: skip
    return folder


@pytest.fixture
def new_server():
    servers = []

    def create(certificate=None):
        servers.append(Server(certificate))
        return servers[-1]

    yield create
    for server in servers:
        server.stopped.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder to which MNIST is downloaded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("NNXP_DATA_DIR", raising=False)
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache" / "nnxp" / "mnist"


@pytest.fixture
def mirrors(tmp_path, cache, certificate, new_server, monkeypatch):
    """Two mirrors, /first/ and /second/, that serve the digits as if they were MNIST."""
    server = new_server(certificate)
    source = write_mnist_layout(tmp_path / "source", *nnxp.data.load_digits())
    digests = {}
    for path in source.iterdir():
        data = gzip.compress(path.read_bytes(), mtime=0)
        digests[path.name] = hashlib.sha256(data).hexdigest()
        for mirror in ("first", "second"):
            server.answers[f"/{mirror}/{path.name}.gz"] = data
    base = f"https://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(mnist, "FILES", {name: digests[name] for name in mnist.FILES})
    monkeypatch.setattr(mnist, "MIRRORS", (f"{base}/first/", f"{base}/second/"))
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    return server


def names_in(cache):
    return sorted(path.name for path in cache.iterdir()) if cache.exists() else []


def first_file(mirror):
    return f"/{mirror}/{next(iter(mnist.FILES))}.gz"


def start(code=LOAD):
    """Load MNIST in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, json.dumps([mnist.FILES, mnist.MIRRORS])],
        env=os.environ | {"PYTHONPATH": PATHS},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_published_mirrors_are_https_and_all_files_have_digests():
    assert all(mirror.startswith("https://") and mirror.endswith("/") for mirror in mnist.MIRRORS)
    assert len(mnist.FILES) == 4
    assert all(len(bytes.fromhex(digest)) == 32 for digest in mnist.FILES.values())


def test_download_fills_the_cache_once(mirrors, cache, caplog):
    def downloads():
        count = caplog.text.count("downloading https://")
        caplog.clear()
        return count

    train, _ = nnxp.data.load_mnist()
    assert len(train) == 1438
    assert downloads() == 4
    assert names_in(cache) == sorted(f"{name}.gz" for name in mnist.FILES)
    (cached,) = cache.glob("t10k-labels*")
    cached.unlink()
    nnxp.data.load_mnist()
    assert downloads() == 1  # what is missing alone
    cached.with_suffix("").write_bytes(gzip.decompress(cached.read_bytes()))
    cached.unlink()
    next(cache.glob("train-labels*")).unlink()
    nnxp.data.load_mnist()
    assert downloads() == 1  # a plain file is as good
    mirrors.answers.clear()
    assert len(nnxp.data.load_mnist()[0]) == 1438  # from the cache
    assert downloads() == 0


def test_second_mirror_replaces_missing_and_wrong_files(mirrors, cache, caplog):
    first, second, third, _ = mnist.FILES
    del mirrors.answers[f"/first/{first}.gz"]
    mirrors.answers[f"/second/{second}.gz"] = b"changed on the way"
    del mirrors.answers[f"/second/{third}.gz"]
    assert len(nnxp.data.load_mnist()[0]) == 1438
    assert names_in(cache) == sorted(f"{name}.gz" for name in mnist.FILES)
    tried = [line.split("/")[-2:] for line in caplog.messages]
    assert tried[:2] == [["first", f"{first}.gz"], ["second", f"{first}.gz"]]
    assert tried[2][0] == "second"  # the first has failed


def redirect(target, body=b""):
    def answer(handler):
        handler.send_response(302)
        handler.send_header("Location", target)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def endless_redirect(handler):
    redirect("/other")(handler)
    endless_body(handler)


def endless_body(handler):
    while not handler.server.stopped.is_set():
        handler.server.sent += handler.wfile.write(bytes(1 << 16))


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    endless_body(handler)


def truncated(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "9000")
    handler.end_headers()
    handler.wfile.write(b"half")


def drip(head):
    def answer(handler):
        handler.wfile.write(head)
        while not handler.server.stopped.wait(0.05):
            handler.wfile.write(b"x")
            handler.wfile.flush()

    return answer


def silence(handler):
    handler.server.stopped.wait()


def no_http(handler):
    handler.wfile.write(b"220 mail.example.org\r\n" * 9)


def hang_up(handler):
    handler.connection.close()


WRONG = {
    "changed": (b"changed on the way", "has another SHA-256 than published"),
    "not there": (None, r"the server answered 404 \(Not Found\)"),
    "broken": (lambda handler: handler.send_error(500), "the server answered 500"),
    "escapes": (
        lambda handler: handler.send_error(500, "\x1b[31mred"), r"answered 500 \(\\x1b\[31mred\)"
    ),
    "long": (lambda handler: handler.send_error(500, "a" * 60_000), r"answered 500 \(aaa"),
    "truncated": (truncated, "the file is truncated .*4 bytes read, 8996 more expected"),
    "hung up": (hang_up, "the connection was broken|no encrypted connection"),
    "no HTTP": (no_http, "the answer is not HTTP"),
    "endless": (endless, "it has more than 16,777,216 bytes"),
    "to http": (redirect("http://127.0.0.1:9/a"), "http://127.0.0.1 is not https"),
    "to ftp": (redirect("ftp://127.0.0.1:9/a"), "ftp://127.0.0.1 is not https"),
    "to a file": (redirect("file:///etc/passwd"), "'file:///etc/passwd' is not allowed"),
    "to an endless page": (endless_redirect, r"the server answered 404"),
    "in a circle": (redirect(""), "the server answered 302 .*infinite loop"),
    "dripping": (
        drip(b"HTTP/1.0 200 OK\r\nContent-Length: 9000\r\n\r\n"), "not complete after 1 s"
    ),
    "dripping headers": (drip(b"HTTP/1.0 200 OK\r\nX: "), "not complete after 1 s"),
    "silent": (silence, "not complete after 1 s|no answer for"),
}  # fmt: skip


@pytest.mark.parametrize(("answer", "message"), WRONG.values(), ids=WRONG)
def test_wrong_answers_are_named_and_leave_nothing(mirrors, cache, answer, message, monkeypatch):
    if "1 s" in message:
        monkeypatch.setattr("nnxp.data.download._DEADLINE", 1)
    for mirror in ("first", "second"):
        mirrors.answers[first_file(mirror)] = answer
    with pytest.raises(nnxp.DataUnavailableError, match=message) as caught:
        nnxp.data.load_mnist()
    text = str(caught.value)
    assert text.count(first_file("first")) >= 1
    assert text.count(first_file("second")) >= 1
    assert text.endswith("with --data-dir, or in NNXP_DATA_DIR")
    assert text.isprintable()
    assert len(text) < 1200
    assert names_in(cache) == []
    assert mirrors.sent < 60 << 20  # of both mirrors, with what waits in buffers


def test_failed_download_says_once_what_to_do(mirrors, cache):
    mirrors.answers.clear()
    with start(LOAD) as process:
        error = process.stderr.read()
    assert error.count("Traceback") == 1  # not also that of the cache, in which nothing is found
    assert (
        "; put the four files (train-images-idx3-ubyte, train-labels-idx1-ubyte, "
        "t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte) into a folder, and name it in "
        'nnxp.data.load_mnist("folder"), with --data-dir, or in NNXP_DATA_DIR\n'
    ) in error


def test_redirects_to_https_are_followed(mirrors):
    mirrors.answers[first_file("first")] = redirect(first_file("second"), b"a page")
    assert len(nnxp.data.load_mnist()[0]) == 1438


@pytest.mark.parametrize(
    ("mirror", "environment", "message"),
    [
        ("http://127.0.0.1:9/", {}, "http://127.0.0.1 is not https"),
        ("file:///", {}, "file:// is not https"),
        ("https://127.0.0.1:9/", {}, "the connection was refused"),
        ("https://nnxp.invalid/", {}, "the host is not found; is this machine offline"),
        ("https://127.0.0.1:{plain}/", {}, "no encrypted connection"),
        ("https://127.0.0.1:{tls}/", {"SSL_CERT_FILE": None}, "its certificate is not trusted"),
        ("https://localhost:{tls}/", {}, "its certificate is not trusted.*localhost"),
        (
            "https://127.0.0.1:{tls}/", {"https_proxy": "http://user:secret@127.0.0.1:9"},
            "through the proxy for https: the connection was refused",
        ),
        (
            "https://127.0.0.1:{tls}/", {"https_proxy": "http://127.0.0.1:{plain}"},
            "through the proxy for https: Tunnel connection failed: 407",
        ),
        (
            "https://127.0.0.1:{tls}/", {"https_proxy": "http://127.0.0.1:port"},
            "through the proxy for https: .*port",
        ),
    ],
    ids=[
        "http", "file", "refused", "no host", "no TLS", "untrusted", "another's certificate",
        "no proxy", "proxy that refuses", "impossible proxy",
    ],
)  # fmt: skip
def test_missing_connections_are_named(
    mirrors, cache, new_server, mirror, environment, message, monkeypatch
):
    ports = {"plain": new_server().server_port, "tls": mirrors.server_port}
    monkeypatch.setattr(mnist, "MIRRORS", (mirror.format(**ports),))
    for name, value in environment.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value.format(**ports))
    with pytest.raises(nnxp.DataUnavailableError, match=message) as caught:
        nnxp.data.load_mnist()
    assert "secret" not in str(caught.value)
    assert names_in(cache) == []


def test_killed_download_leaves_nothing(mirrors, cache):
    reached = threading.Event()
    second = list(mnist.FILES)[1]
    whole = mirrors.answers[f"/first/{second}.gz"]

    def half(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(whole)))
        handler.end_headers()
        handler.wfile.write(whole[: len(whole) // 2])
        reached.set()
        handler.server.stopped.wait()

    mirrors.answers[f"/first/{second}.gz"] = half
    with start() as process:
        while not reached.wait(0.1):
            assert process.poll() is None, process.stderr.read()
        process.kill()
    assert names_in(cache) == [f"{next(iter(mnist.FILES))}.gz"]
    mirrors.answers[f"/first/{second}.gz"] = whole
    assert len(nnxp.data.load_mnist()[0]) == 1438


def test_two_processes_download_at_once(mirrors, cache):
    meeting = threading.Barrier(2)
    for name in mnist.FILES:
        whole = mirrors.answers[f"/first/{name}.gz"]

        def together(handler, whole=whole):
            meeting.wait()
            handler.send_response(200)
            handler.end_headers()
            handler.wfile.write(whole)

        mirrors.answers[f"/first/{name}.gz"] = together
    processes = [start(), start()]

    def end_meeting(process):
        if process.wait():  # the other one would wait for it
            meeting.abort()

    for process in processes:
        threading.Thread(target=end_meeting, args=[process], daemon=True).start()
    for process in processes:
        out, err = process.communicate()
        assert out == "1438\n", err
        assert err.count("downloading") == 4
    assert names_in(cache) == sorted(f"{name}.gz" for name in mnist.FILES)


def test_cache_that_cannot_be_written_is_named_before_the_download(mirrors, tmp_path, capfd):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(nnxp.DataUnavailableError, match="downloaded to .*cache.*Not a directory"):
        nnxp.data.load_mnist()
    (tmp_path / "cache").unlink()
    if os.geteuid() == 0:
        pytest.skip("permissions: root may write everywhere")
    (tmp_path / "cache").mkdir(mode=0o500)
    with pytest.raises(nnxp.DataUnavailableError, match="downloaded to .*cache.*Permission denied"):
        nnxp.data.load_mnist()
    assert capfd.readouterr().err == ""


def test_cache_whose_name_is_too_long_is_named(mirrors, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ("x" * 300)))
    with pytest.raises(nnxp.DataUnavailableError, match="downloaded to .*x/nnxp/mnist .File name "):
        nnxp.data.load_mnist()


def test_full_disk_is_named_and_leaves_no_part(mirrors, cache):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
    with start(limit + LOAD) as process:
        error = process.stderr.read()
    assert process.returncode == 1
    assert f"DataUnavailableError: MNIST cannot be downloaded to {cache} (File too large); put" in (
        error
    )
    assert names_in(cache) == []


def test_missing_home_is_named_and_no_folder_is_made(homeless):
    code = "import nnxp\nnnxp.data.load_mnist()\n"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    wanted = "there is no home folder for the cache; set HOME to an absolute path, or put"
    assert f"nnxp.errors.DataUnavailableError: {wanted}" in result.stderr
    assert [path.name for path in homeless.iterdir()] == ["sitecustomize.py"]
