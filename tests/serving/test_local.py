"""`foley serve` as a person meets it."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from foley_ray.errors import ConfigError
from foley_ray.serving.local import local_settings, run


def test_a_network_address_needs_keys_and_a_taken_port_is_said_before_anything_starts(tiny_model: Path, tmp_path: Path) -> None:
    settings = local_settings(tiny_model, None, gpu=False)
    with pytest.raises(ConfigError, match=r"--host 0\.0\.0\.0 opens the service to the network"):
        run(settings, "0.0.0.0", 8000, print)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="choose another --port"):
            run(settings, "127.0.0.1", taken.getsockname()[1], print)


@pytest.mark.cluster
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_says_where_it_is_and_ctrl_c_or_a_service_manager_ends_it(
    number: signal.Signals, tiny_model: Path, tmp_path: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "foley_ray.cli", "serve", "--model", tiny_model, "--port", port, "--data", tmp_path / "data"]
    program = subprocess.Popen([*map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert program.stdout is not None
        said = [program.stdout.readline(), program.stdout.readline()]
        assert said[0].startswith("starting Ray")
        assert said[1].startswith(f"ready: http://127.0.0.1:{port}")
        answer = httpx.post(
            f"http://127.0.0.1:{port}/v1/sound-generation", json={"text": "rain", "duration_seconds": 0.5}, timeout=120
        )
        assert answer.status_code == 200
        program.send_signal(number)
        rest, errors = program.communicate(timeout=120)
        assert (program.returncode, rest.strip()) == (0, "stopping")
        assert "Traceback" not in errors
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
    finally:
        program.kill()
