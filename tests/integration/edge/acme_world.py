"""A network of its own with an ACME authority, names, and a server behind a Caddy that asks the authority.

Run in a new network namespace: `unshare --net python -m tests.integration.edge.acme_world FOLDER`. Prints
what a client got that knows nothing but the domain and the authority's root.
"""

import re
import socket
import ssl
import struct
import subprocess
import sys
import threading
from pathlib import Path

import httpx
from tests.support.proxy import ON_DEMAND, caddy
from tests.support.server import Server
from tests.support.waiting import until

AUTHORITY = """
{
	admin off
	auto_https disable_redirects
	skip_install_trust
	http_port 9080
}

https://ca.box.test:9443 {
	tls internal
	acme_server
}
"""
ANSWER = struct.pack(">HHHIH4B", 0xC00C, 1, 1, 5, 4, 127, 0, 0, 1)
"""An address record: 127.0.0.1 for the name of the question (RFC 1035 4.1.3)."""


def serve_names() -> None:
    """Have every name lead to this machine, at the address where programs here look for a name service."""
    found = re.search(r"^nameserver\s+([0-9.]+)", Path("/etc/resolv.conf").read_text(), re.MULTILINE)
    address = found[1] if found else "127.0.0.1"
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    if not address.startswith("127."):
        subprocess.run(["ip", "addr", "add", f"{address}/32", "dev", "lo"], check=True)
    service = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    service.bind((address, 53))
    threading.Thread(target=answer_names, args=(service,), daemon=True).start()


def answer_names(service: socket.socket) -> None:
    """Answer questions for addresses of IPv4; there is nothing else."""
    while True:
        asked, asker = service.recvfrom(512)
        end = 12
        while asked[end]:
            end += asked[end] + 1
        is_address = asked[end + 1 : end + 3] == b"\0\1"
        head = asked[:2] + b"\x81\x80\0\1" + (b"\0\1" if is_address else b"\0\0") + bytes(4)
        service.sendto(head + asked[12 : end + 5] + (ANSWER if is_address else b""), asker)


def main(folder: Path) -> None:
    """Put all of it up, use it as a client would, take it down."""
    serve_names()
    server = Server(folder / "state")
    server.state.mkdir()
    (server.state / "config.toml").write_text('domain = "box.test"\n')
    server.start()
    try:
        with caddy(AUTHORITY, folder / "authority") as data:
            root = data / "pki" / "authorities" / "local" / "root.crt"
            until(
                lambda: root.exists() and answers("https://ca.box.test:9443/", root),
                within_s=20,
                what="the CA",
            )
            directory = {
                "ACME_DIRECTORY": "https://ca.box.test:9443/acme/local/directory",
                "ACME_ROOT": str(root),
            }
            with caddy(ON_DEMAND, folder / "front", CLOCHE=f"127.0.0.1:{server.port}", **directory):
                until(lambda: answers("https://api.box.test/health", root), within_s=30, what="a certificate")
                use(server.key, root)
    finally:
        server.stop()


def answers(url: str, root: Path) -> bool:
    """Whether a client that trusts this root alone gets an answer."""
    try:
        httpx.get(url, verify=ssl.create_default_context(cafile=str(root)), trust_env=False, timeout=20)
    except httpx.TransportError:
        return False
    return True


def use(key: str, root: Path) -> None:
    """A sandbox through the proxy, and a port of it by its https name."""
    context = ssl.create_default_context(cafile=str(root))
    client = httpx.Client(
        base_url="https://api.box.test", headers={"X-API-KEY": key}, verify=context, timeout=60
    )
    create = client.post("/v2/sandboxes", json={"templateID": "base"})
    assert create.status_code == 201, create.text
    made = create.json()
    host = f"49983-{made['sandboxID']}.{made['domain']}"
    health = httpx.get(f"https://{host}/health", verify=context, timeout=60)
    print(create.status_code, made["domain"], health.status_code)
    with (
        socket.create_connection((host, 443)) as plain,
        context.wrap_socket(plain, server_hostname=host) as tls,
    ):
        shown = tls.getpeercert() or {}
    print(
        shown["subjectAltName"] == (("DNS", host),), dict(pair[0] for pair in shown["issuer"])["commonName"]
    )
    gone = client.delete(f"/sandboxes/{made['sandboxID']}")
    assert gone.status_code == 204


if __name__ == "__main__":
    main(Path(sys.argv[1]))
