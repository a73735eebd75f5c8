"""A local server that answers as the Hugging Face hub, for the calls of huggingface_hub that resfit makes."""

import base64
import hashlib
import json
import urllib.parse
from typing import Any, NamedTuple

import yaml

from tests.loopback import LoopbackServer, QuietHandler

TOKEN = "hf_write"


class Answer(NamedTuple):
    """The answer to a request."""

    content: bytes | dict[str, Any] | list[Any] = b""
    status: int = 200
    headers: dict[str, str] = {}  # noqa: RUF012 - never changed


class Repository:
    """A repository: commits by their number, branches by name."""

    def __init__(self, *, private: bool) -> None:
        self.private = private
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.messages: list[str] = []
        self.commit({}, "Create", "main")

    def commit(self, files: dict[str, bytes], message: str, branch: str) -> str:
        before = self.commits.get(self.branches.get(branch, ""), {})
        sha = hashlib.sha1(f"{id(self)}{len(self.commits)}".encode()).hexdigest()
        self.commits[sha], self.branches[branch] = before | files, sha
        self.messages.append(message)
        return sha


class FakeHub(LoopbackServer):
    """The server. `repositories` maps "user/name" to its content; `asked` lists the requests."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}  # by SHA-256
        self.asked: list[str] = []
        outer = self

        class Handler(QuietHandler):
            def answer(self) -> None:
                outer.asked.append(f"{self.command} {self.path}")
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                given = outer.answer(self.command, self.path, body, self.headers.get("Authorization"))
                content = given.content if isinstance(given.content, bytes) else json.dumps(given.content).encode()
                self.send_response(given.status)
                for name, value in given.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815

        super().__init__(Handler)

    def answer(self, method: str, url: str, body: bytes, authorization: str | None) -> Answer:
        path = [urllib.parse.unquote(part) for part in urllib.parse.urlsplit(url).path.strip("/").split("/")]
        writes = method in ("POST", "PUT") and path[:2] != ["api", "validate-yaml"]
        if authorization not in (None, f"Bearer {TOKEN}") or (writes and authorization is None and path[0] != "large"):
            return Answer({"error": "Invalid credentials in Authorization header"}, 401,
                          {"X-Error-Message": "Invalid credentials in Authorization header"})  # fmt: skip
        match path:
            case ["api", "repos", "create"]:
                return self.create(json.loads(body))
            case ["api", "validate-yaml"]:
                return validated(json.loads(body)["content"])
            case ["large", sha]:
                assert hashlib.sha256(body).hexdigest() == sha
                self.large[sha] = body
                return Answer()
            case ["api", "models", user, name, *rest]:
                return self.of_repository(f"{user}/{name}", rest, body, authorization)
            case [user, name, "info", "lfs", "objects", "batch"]:
                uploads = [
                    one | {"actions": {"upload": {"href": f"{self.url}/large/{one['oid']}"}}}
                    for one in json.loads(body)["objects"]
                ]
                return Answer({"transfer": "basic", "objects": uploads})
            case [user, name, "resolve", revision, *file]:
                return self.of_repository(f"{user}/{name}", ["resolve", revision, "/".join(file)], body, authorization)
        return Answer(status=404)

    def create(self, asked: dict[str, Any]) -> Answer:
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != "user":
            return Answer({"error": "You have no rights in this namespace"}, 403)
        if name in self.repositories:
            return Answer({"error": "exists", "url": f"{self.url}/{name}"}, 409)
        self.repositories[name] = Repository(private=asked.get("visibility") == "private")
        return Answer({"url": f"{self.url}/{name}"})

    def of_repository(self, name: str, rest: list[str], body: bytes, authorization: str | None) -> Answer:
        repository = self.repositories.get(name)
        if repository is None or (repository.private and authorization is None):
            return Answer(status=401 if repository else 404, headers={"X-Error-Code": "RepoNotFound"})
        action, revision = (rest + ["info", "main"][len(rest) :])[:2] if rest else ("info", "main")
        sha = repository.branches.get(revision, revision)
        if sha not in repository.commits:
            return Answer(status=404, headers={"X-Error-Code": "RevisionNotFound"})
        files = repository.commits[sha]
        match action:
            case "info" | "revision":
                return Answer({"id": name, "sha": sha, "private": repository.private, "siblings": []})
            case "tree":
                return Answer([entry(path, content) for path, content in files.items()])
            case "preupload":
                return Answer({"files": [
                    {"path": one["path"], "uploadMode": "lfs" if large(one["path"]) else "regular",
                     "shouldIgnore": False}
                    for one in json.loads(body)["files"]
                ]})  # fmt: skip
            case "commit":
                return self.commit(name, revision, body)
            case "resolve" if rest[2] in files:
                content = files[rest[2]]
                return Answer(content, headers={"ETag": f'"{etag(rest[2], content)}"', "X-Repo-Commit": sha})
        return Answer(status=404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})

    def commit(self, name: str, revision: str, body: bytes) -> Answer:
        files, message = {}, ""
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
            else:
                files[value["path"]] = base64.b64decode(value["content"])
        sha = self.repositories[name].commit(files, message, revision)
        return Answer({"commitUrl": f"{self.url}/{name}/commit/{sha}", "commitOid": sha})


def large(path: str) -> bool:
    return path.endswith(".safetensors")


def etag(path: str, content: bytes) -> str:
    """Return the name of a file in caches: the SHA-256 of a large file, the number of a Git object of others."""
    if large(path):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry(path: str, content: bytes) -> dict[str, Any]:
    sizes: dict[str, Any] = {
        "type": "file",
        "path": path,
        "size": len(content),
        "oid": hashlib.sha1(content).hexdigest(),
    }
    if large(path):
        sizes["lfs"] = {"oid": etag(path, content), "size": len(content), "pointerSize": 134}
    return sizes


def validated(card: str) -> Answer:
    """Check the metadata of a card as the hub does, for the fields that resfit writes."""
    _, block, _ = card.split("---\n", 2)
    data = yaml.safe_load(block)
    texts = all(isinstance(data.get(name, ""), str) for name in ("library_name", "pipeline_tag", "license"))
    lists = all(
        isinstance(data.get(name, []), list) and all(isinstance(one, str) for one in data.get(name, []))
        for name in ("tags", "datasets", "metrics")
    )
    results = [result for model in data.get("model-index", []) for result in model["results"]]
    complete = all(
        {"type", "name"} <= set(result["dataset"]) and "type" in result["task"] and result["metrics"]
        for result in results
    )
    if data.get("license") == "no-such-license":
        return Answer({"errors": [{"message": '"license" must be one of [apache-2.0, mit, ...]'}]}, 400)
    if not (texts and lists and complete):
        return Answer({"errors": [{"message": f"invalid metadata: {data}"}]}, 400)
    return Answer({"errors": [], "warnings": []})
