"""The web of the played world: names, plain and encrypted sites, and what is sent past them by UDP."""

import contextlib
import datetime
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cloche_server import resolvers
from tests.support.outside import Outside
from tests.support.waiting import until

RESOLVER = "127.0.0.98"

_SITES = """
import http.server, os, socket, ssl, sys, threading, time
class Site(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        print('asked', self.headers['Host'], self.path, flush=True)
        self.send_response(200)
        if self.path == '/stream':
            self.end_headers()
            while True:
                self.wfile.write(b'more\\n')
                time.sleep(0.05)
        body = ('site of ' + self.headers['Host'] + self.path).encode()
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    def handle_error(self, *_): pass
def hear(port):
    with socket.socket(type=socket.SOCK_DGRAM) as bound:
        bound.bind(('', port))
        while True:
            bound.recv(2000)
            print('datagram', port, flush=True)
plain, secret = Server(('', 80), Site), Server(('', 443), Site)
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
tls.load_cert_chain(sys.argv[1])
secret.socket = tls.wrap_socket(secret.socket, server_side=True, do_handshake_on_connect=False)
for target in (plain.serve_forever, secret.serve_forever, lambda: hear(53), lambda: hear(443)):
    threading.Thread(target=target, daemon=True).start()
print('up', flush=True)
threading.Event().wait()
"""


class Web:
    """Sites and names; tests say what a name answers, and read what got through."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self.names: dict[str, Callable[[], str]] = {}
        """What the name server says of each name, asked anew each time."""

    def lines(self) -> list[str]:
        """What reached it."""
        return self._log.read_text().splitlines()[1:]


@contextlib.contextmanager
def played(world: Outside, folder: Path) -> Iterator[Web]:
    """Run the sites in the world's namespace, and a name server on the host's loopback."""
    log, certificate = folder / "web.log", folder / "site.pem"
    certificate.write_bytes(_certificate())
    program = ["nsenter", f"--net=/proc/{world.pid}/ns/net", sys.executable, "-c", _SITES, str(certificate)]
    with log.open("w") as output:
        sites = subprocess.Popen(program, stdout=output)
    web = Web(log)
    with socket.socket(type=socket.SOCK_DGRAM) as bound:
        bound.bind((RESOLVER, 53))
        thread = threading.Thread(target=_answer, args=(bound, web))
        thread.start()
        try:
            until(lambda: "up" in log.read_text(), within_s=20, what="the sites")
            yield web
        finally:
            sites.kill()
            sites.wait(timeout=10)
            with socket.socket(type=socket.SOCK_DGRAM) as ending:
                ending.sendto(b"end", (RESOLVER, 53))
            thread.join()


def _answer(bound: socket.socket, web: Web) -> None:
    while True:
        question, asker = bound.recvfrom(2000)
        if question == b"end":
            return
        name = (resolvers.read_name(question) or "").lower()
        is_for_addresses = question[-4:-2] == b"\0\1"
        known = web.names.get(name)
        flags = b"\x81\x80" if known else b"\x81\x83"
        record = b""
        if known and is_for_addresses:
            record = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + IPv4Address(known()).packed
        count = (1 if record else 0).to_bytes(2)
        end = 12 + len(name) + 2 + 4
        bound.sendto(question[:2] + flags + b"\0\1" + count + bytes(4) + question[12:end] + record, asker)


def _certificate() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "sites of the played world")])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    signed = made.sign(key, hashes.SHA256())
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return secret + signed.public_bytes(serialization.Encoding.PEM)
