"""The registry: one meaning of a name, nothing imported before an entry is built, no noise."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch

from sgd_sai.bench.command import TIMED
from sgd_sai.lab.optimizers import OPTIMIZERS
from sgd_sai.memory.optimizers import PLANNED
from sgd_sai.peers import PEERS, release

#: Those whose bytes are planned, and that nothing builds.
BARE = {"sgd-no-momentum", "adafactor"}


def test_every_entry_is_used():
    assert {*OPTIMIZERS, *TIMED, *PLANNED} == set(PEERS)
    assert all(name == peer.name for name, peer in PEERS.items())
    assert len({peer.label for peer in PEERS.values()}) == len(PEERS)


def printed(code: str) -> tuple[str, str]:
    """Standard output and standard error of a fresh interpreter."""
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return ran.stdout, ran.stderr


def test_the_registry_needs_torch_alone():
    """And `import sgd_sai` does not read it."""
    out, _ = printed(
        "import sys, torch; before = set(sys.modules); import sgd_sai; print('sgd_sai.peers' in sys.modules);"
        "import sgd_sai.peers; print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    early, new = out.splitlines()
    assert early == "False"
    assert set(new.split()) <= {"sgd_sai", *sys.stdlib_module_names}


def test_nothing_is_printed_when_they_are_built_and_take_their_first_step():
    here = [name for name, peer in PEERS.items() if name not in BARE and peer.missing() is None]
    code = f"""
        import torch
        from sgd_sai.peers import PEERS
        for name in {here!r}:
            model, peer = torch.nn.Linear(64, 64), PEERS[name]
            # As the lab builds it, torchao's does not compile.
            if hasattr(peer, "train"):
                optimizer = peer.train(model, 1e-3, 1e-3)
            else:
                optimizer = peer.plain(list(model.parameters()), lr=1e-3)
            before = model.weight.detach().clone()
            model(torch.ones(1, 64)).square().sum().backward()
            optimizer.step()
            assert not torch.equal(model.weight, before), name
    """
    assert printed(textwrap.dedent(code)) == ("", "")


def test_the_release_is_loaded_once_and_is_the_authors():
    if release.missing():
        pytest.skip(f"this test needs {release.missing()}")
    assert release.module() is release.module()
    optimizer = release.build([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    assert isinstance(optimizer, release.module().SGD_sai)


def test_a_missing_release_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(release, "_FOLDER", "nowhere")
    assert release.missing() == (
        "the authors' release in nowhere/: pip install --no-deps --target nowhere sgd-sai==1.0.3"
    )
