"""Runs inside a sandbox: takes the place of one host of the internet that a snippet of the document calls.

Arguments: the host's name, the content type, the body. It makes its own certificate, makes the sandbox
trust it, points the name at itself, and prints `ready`.
"""

import http.server
import ssl
import subprocess
import sys
import threading
from pathlib import Path

BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")


def certificate(host: str) -> tuple[str, str]:
    """Make a certificate for the host and add it to what the sandbox trusts."""
    key, cert = f"/root/{host}.key", f"/root/{host}.pem"
    request = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-keyout",
        key,
        "-out",
        cert,
    ]
    names = ["-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}"]
    subprocess.run(request + names, check=True, capture_output=True)
    with BUNDLE.open("a") as bundle:
        bundle.write("\n" + Path(cert).read_text())
    return cert, key


def main() -> None:
    """Serve until the sandbox ends."""
    host, content_type, body = sys.argv[1:]

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body.encode())

        def do_HEAD(self) -> None:
            self.do_GET()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate(host))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 443), Answer)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever).start()
    with Path("/etc/hosts").open("a") as hosts:
        hosts.write(f"127.0.0.1 {host}\n")
    print("ready", flush=True)


main()
