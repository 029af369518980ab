"""OpenStack Swift with its S3 API on one machine, in one folder: rings, configuration and four servers.

    python tests/ray/swift_server.py FOLDER PORT

serves S3 at http://127.0.0.1:PORT to `test:tester` with the secret in AWS_SECRET_ACCESS_KEY, until its standard input
is closed.
"""

import getpass
import os
import socket
import subprocess
import sys
from pathlib import Path

from swift.common.ring import RingBuilder

KINDS = ("account", "container", "object")
SWIFT_CONF = """[swift-hash]
swift_hash_path_suffix = tests
[storage-policy:0]
name = one
default = yes
"""
SERVER = """[DEFAULT]
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
[pipeline:main]
pipeline = {pipeline}
[app:{kind}-server]
use = egg:swift#{kind}
"""
PROXY = """allow_account_management = true
account_autocreate = true
[filter:s3api]
use = egg:swift#s3api
s3_acl = false
check_bucket_owner = false
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {secret} .admin
[filter:bulk]
use = egg:swift#bulk
[filter:slo]
use = egg:swift#slo
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_ring(folder: Path, kind: str, port: int) -> None:
    """A ring of one device, `folder/devices/one`, held once."""
    builder = RingBuilder(2, 1, 0)
    device = {"region": 1, "zone": 1, "ip": "127.0.0.1", "port": port, "device": "one", "weight": 1.0}
    builder.add_dev({**device, "replication_ip": "127.0.0.1", "replication_port": port})
    builder.rebalance()
    builder.get_ring().save(str(folder / f"{kind}.ring.gz"))


def write_server(folder: Path, kind: str, port: int, pipeline: str = "", more: str = "") -> Path:
    path = folder / f"{kind}-server.conf"
    values = {"user": getpass.getuser(), "pipeline": pipeline or f"{kind}-server"}
    text = SERVER.format(folder=folder, port=port, kind=kind, **values)
    path.write_text(text + more)
    path.chmod(0o600)
    return path


def main() -> None:
    folder, port, secret = Path(sys.argv[1]), int(sys.argv[2]), os.environ["AWS_SECRET_ACCESS_KEY"]
    (folder / "devices" / "one").mkdir(parents=True)
    (folder / "swift.conf").write_text(SWIFT_CONF)
    configs = []
    for kind in KINDS:
        own = free_port()
        write_ring(folder, kind, own)
        configs.append((kind, write_server(folder, kind, own)))
    pipeline = "s3api tempauth bulk slo proxy-server"
    configs.append(("proxy", write_server(folder, "proxy", port, pipeline, PROXY.format(secret=secret))))
    servers = []
    for kind, path in configs:
        program = Path(sys.executable).with_name(f"swift-{kind}-server")
        with (folder / f"{kind}.log").open("wb") as log:
            servers.append(subprocess.Popen([sys.executable, str(program), str(path)], stdout=log, stderr=log))
    sys.stdin.read()
    for server in servers:
        server.terminate()
    for server in servers:
        server.wait()


if __name__ == "__main__":
    main()
