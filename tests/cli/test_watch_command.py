"""``vitreous watch`` from the command line."""

from __future__ import annotations

from vitreous.jobs.watch.server import listening_socket


def test_a_port_that_is_taken_is_named_by_its_flag(vitreous, tmp_path):
    with listening_socket() as listening:
        port = listening.getsockname()[1]
        code, _, err = vitreous("watch", tmp_path, "--port", port)
    assert (code, f"--port {port}: cannot be had" in err) == (2, True)


def test_without_a_folder_it_explains_itself(vitreous):
    _, out, err = vitreous("watch")
    assert "Example: vitreous watch OUT OUT2" in out + err
