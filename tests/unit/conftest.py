"""What the unit tests share: how properties are tested, released files' extra tensors, and the jobs' parsers."""

import importlib
import io
import os
import shlex
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from PIL import Image
from torch import Tensor

from reddit_core.networks.sr3_unet import ResBlock, UNet

# The same examples in every run, however slow the machine is.
settings.register_profile("house", deadline=None, derandomize=True, database=None)
settings.load_profile("house")


@pytest.fixture(scope="session")
def unused_tensors() -> Callable[[UNet], dict[str, Tensor]]:
    """A function from a network to what released state dicts hold beside it and what has no effect on its output."""

    def make(unet: UNet) -> dict[str, Tensor]:
        base = unet.config.base_channels
        tensors: dict[str, Tensor] = {}
        for name, module in unet.named_modules():
            if isinstance(module, ResBlock):
                convolution = module.block1.block[3]
                assert isinstance(convolution, torch.nn.Conv2d)
                channels = convolution.out_channels
                tensors[f"denoise_fn.{name}.mlp.1.weight"] = torch.rand(channels, base)
                tensors[f"denoise_fn.{name}.mlp.1.bias"] = torch.rand(channels)
        for index, channels in ((0, base), (2, base), (4, 3)):
            tensors[f"denoise_fn.var_conv.{index}.weight"] = torch.rand(channels, base, 3, 3)
            tensors[f"denoise_fn.var_conv.{index}.bias"] = torch.rand(channels)
        return tensors

    return make


@pytest.fixture(scope="session")
def check_job_command() -> Callable[[str, str], None]:
    """A function that puts a job's documented flags through the job's own parser."""
    from jobs.cli import parse, take_sources  # noqa: PLC0415 - imports Ray, which most unit tests run without

    def check(name: str, text: str) -> None:
        job = importlib.import_module(f"jobs.{name}").JOB
        sources, flags = take_sources(shlex.split(text.replace("\\\n", " ")))
        assert isinstance(parse(job, sources, flags), job.config)

    return check


@pytest.fixture
def as_ordinary_user() -> Iterator[Path]:
    """An empty folder, and a user whom permissions bind: not root, if the tests are run as root."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        was_root = os.geteuid() == 0
        if was_root:
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            if was_root:
                os.seteuid(0)
            for path in [path for path in Path(folder).rglob("*") if path.is_dir()]:
                path.chmod(0o700)


@pytest.fixture
def signed_photograph() -> Iterator[tuple[str, bytes]]:
    """A signed URL of one JPEG, and its bytes: GET of it alone is allowed, and the folder cannot be listed."""
    sink = io.BytesIO()
    Image.new("RGB", (60, 40), (20, 30, 40)).save(sink, "JPEG")
    path, data = "/night/my%20cat.jpg?X-Amz-Signature=hush", sink.getvalue()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == path
            self.send_response(200 if found else 403)
            self.send_header("Content-Length", str(len(data) if found else 0))
            self.end_headers()
            self.wfile.write(data if found else b"")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}{path}", data
        server.shutdown()
