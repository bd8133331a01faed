"""Sharing: a folder without pickle that is loaded as a run is, a model card, and a server that takes it."""

import base64
import dataclasses
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from conftest import assert_same

import camal_rl
from camal_rl import evaluate, hub, ppo
from camal_rl.errors import UserError
from camal_rl.results import faithfulness

pytest.importorskip("safetensors")
pytestmark = pytest.mark.slow


@pytest.fixture
def measured(fake_engine: None, trained_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A trained run that was evaluated."""
    monkeypatch.setattr(faithfulness, "SANITY_DRAWS", 2)
    options = ["--episodes", "3", "--faithfulness-frames", "0", "--video-episodes", "1", "--device", "cpu"]
    evaluate.evaluate(evaluate.parse_args([str(trained_folder), *options]))
    return trained_folder


def test_a_shared_folder_has_all_that_is_needed_and_is_played_alike(measured: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    hub.pack(measured, shared)
    assert sorted(str(file.relative_to(shared)) for file in shared.rglob("*") if file.is_file()) == [
        *("README.md", "args.json", "media/evaluation.mp4", "media/evaluation.png"),
        *("model.safetensors", "scores.json"),
    ]
    agent, env = camal_rl.load(shared, "cpu")
    own, _ = camal_rl.load(measured, "cpu")
    assert_same(dict(agent.agent.state_dict()), dict(own.agent.state_dict()))
    assert agent.steps == own.steps > 0
    env.close()
    before = json.loads((shared / "scores.json").read_text())
    options = ["--episodes", "3", "--faithfulness-frames", "0", "--video-episodes", "0", "--device", "cpu"]
    again, _ = evaluate.evaluate(evaluate.parse_args([str(shared), *options]))
    for name in ("return", "iou", "alpha", "length"):
        assert again[name] == before[name]


def test_the_model_card_tells_what_was_measured_and_how_it_was_made(measured: Path, tmp_path: Path) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    hub.pack(measured, tmp_path / "shared")
    card = huggingface_hub.ModelCard.load(tmp_path / "shared" / "README.md")
    scores = json.loads((measured / "scores.json").read_text())
    (result,) = card.data.eval_results
    mean, error = scores["return"]["mean"], scores["return"]["standard_error"]
    assert (result.metric_type, result.metric_value) == ("mean_reward", f"{mean:.2f} +/- {error:.2f}")
    assert (card.data.library_name, card.data.license) == ("camal_rl", "mit")
    assert f"| {mean:.2f} +/- {error:.2f} | {scores['iou']:.3f} |" in card.text
    assert "evaluate FOLDER --episodes 3" in card.text
    scores["return"]["standard_error"] = None  # of one episode
    options = json.loads((measured / "args.json").read_text())
    told = hub.card(options, scores, "environment/own.toml")
    assert f"      value: {mean:.2f}\n" in told
    assert "python -m camal_rl.ppo --env environment/own.toml" in told
    (command,) = re.findall(r"python -m camal_rl\.ppo (.*)", card.text)
    made = json.loads(json.dumps(dataclasses.asdict(ppo.parse_args(command.split())), default=str))
    learned = json.loads((measured / "args.json").read_text())["args"]
    assert {name: made[name] for name in learned.keys() & made.keys() - {"name"}} == {
        name: learned[name] for name in learned.keys() & made.keys() - {"name"}
    }


class Hub(BaseHTTPRequestHandler):
    """As much of the Hugging Face Hub's protocol as its client needs to upload and download small files."""

    files: ClassVar[dict[str, bytes]] = {}
    commit: ClassVar[str] = "0" * 40

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            self.answer(
                {
                    "url": "https://huggingface.co/someone/agent",
                    "id": "someone/agent",
                    "name": "someone/agent",
                }
            )
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            regular = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            self.answer({"files": [{"path": name, **regular} for name in names]})
        elif "/commit/" in self.path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = entry["value"]["content"]
                    self.files[entry["value"]["path"]] = base64.b64decode(content)
            address = f"https://huggingface.co/someone/agent/commit/{self.commit}"
            self.answer({"success": True, "commitUrl": address, "commitOid": self.commit, "hookOutput": ""})
        else:
            self.answer({"error": self.path}, 404)

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/someone/agent/revision/"):
            names = [{"rfilename": name} for name in self.files]
            self.answer({"id": "someone/agent", "sha": self.commit, "siblings": names, "private": False})
        elif self.path.startswith("/api/models/someone/agent/tree/"):
            entries = [
                {"type": "file", "path": name, "oid": "1" * 40, "size": len(content)}
                for name, content in self.files.items()
            ]
            self.answer(entries)
        elif name := next((name for name in self.files if self.path.endswith(f"/{name}")), None):
            self.send(self.files[name], 200, {"ETag": f'"{name}"', "X-Repo-Commit": self.commit})
        else:
            self.answer({"error": "Repository not found"}, 404)

    do_HEAD = do_GET  # noqa: N815

    def answer(self, content: Any, code: int = 200) -> None:
        self.send(json.dumps(content).encode(), code, {"Content-Type": "application/json"})

    def send(self, content: bytes, code: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Hub]]:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(Hub, "files", {})
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{http.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_token_of_a_test")
        yield Hub
        http.shutdown()


def test_a_run_is_uploaded_and_loaded_by_its_name(measured: Path, server: type[Hub], capsys: Any) -> None:
    args = hub.Args("push", str(measured), repo="someone/agent")
    assert hub.main(args) == 0
    assert {"model.safetensors", "args.json", "README.md", "scores.json"} <= server.files.keys()
    agent, env = camal_rl.load("someone/agent", "cpu")
    env.close()
    own, _ = camal_rl.load(measured, "cpu")
    assert all(
        torch.equal(one, other)
        for one, other in zip(agent.agent.parameters(), own.agent.parameters(), strict=True)
    )


def test_what_cannot_be_shared_or_loaded_is_one_line(
    trained_folder: Path, tmp_path: Path, server: Any
) -> None:
    with pytest.raises(UserError, match=r"give --repo USER/NAME to upload, or --output FOLDER"):
        hub.Args("push", "runs")
    with pytest.raises(UserError, match=r"load takes the repository and --output FOLDER"):
        hub.Args("load", "someone/agent")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match=r"full is not empty: choose another --output"):
        hub.pack(trained_folder, tmp_path / "full")
    with pytest.raises(UserError, match=r"can't make .*file: File exists\. Choose another --output"):
        hub.pack(trained_folder, tmp_path / "full" / "file")
    with pytest.raises(UserError, match=r"no folder someone/else, and as a repository it can't be loaded: "):
        hub.fetch("someone/else", tmp_path / "else")
