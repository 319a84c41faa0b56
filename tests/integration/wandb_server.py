# ruff: noqa: N802, N815 (methods are named as what they answer)
"""A loopback stand-in for the W&B server: runs, history, files, artifacts and views, as wandb 0.31 asks for them.

It shows what the client does, not what the server would: what it does not know it notes in `unknown` and refuses.
Faults are functions of a request that may answer it in the server's place.
"""

import base64
import contextlib
import gzip
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

Answer = tuple[int, Any]
Fault = Callable[[str], Answer | None]
ENTITY = "lab"
KEY = "k" * 40
HISTORY = "wandb-history.jsonl"
WHEN = "2026-01-01T00:00:00Z"


@dataclass
class StoredRun:
    """One run as the server has it; `lines` are what was streamed, by file and offset."""

    name: str
    project: str
    attributes: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, dict[int, str]] = field(default_factory=dict)
    exit_code: int | None = None
    used: list[str] = field(default_factory=list)
    logged: list[str] = field(default_factory=list)

    @property
    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for _, line in sorted(self.lines.get(HISTORY, {}).items())]

    def values(self, name: str) -> list[Any]:
        """The logged values of one metric."""
        return [row[name] for row in self.history if name in row]


@dataclass
class StoredArtifact:
    """One version of an artifact."""

    id: str
    name: str
    type: str
    version: int
    digest: str
    project: str
    clients: tuple[str | None, ...]
    state: str = "PENDING"
    aliases: set[str] = field(default_factory=set)
    manifest: dict[str, Any] = field(default_factory=dict)


class WandbServer:
    """Serves on a free loopback port while its block runs."""

    def __init__(self) -> None:
        self.runs: dict[str, StoredRun] = {}
        self.artifacts: dict[str, StoredArtifact] = {}
        self.blobs: dict[str, bytes] = {}
        self.views: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.unknown: list[str] = []
        self.fault: Fault | None = None
        self._lock = threading.RLock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                status, answer = server.answer_to(self.command, unquote(self.path), body)
                sent = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(sent)))
                with contextlib.suppress(ConnectionError):  # a client that no longer waits
                    self.end_headers()
                    self.wfile.write(sent)

            do_GET = do_POST = do_PUT = do_HEAD = do_CONNECT = handle_any

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> "WandbServer":
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    # --- requests -----------------------------------------------------------------------------

    def answer_to(self, verb: str, path: str, body: bytes) -> Answer:
        asked = json.loads(body) if path == "/graphql" else {}
        named = re.search(r"\b(?:query|mutation)\s+(\w+)", asked.get("query", ""))
        operation = named.group(1) if named else f"{verb} {path}"
        self.asked.append(operation)
        fault = self.fault(operation) if self.fault is not None else None
        if fault is not None:
            return fault
        with self._lock:
            if path == "/graphql":
                return self._graphql(operation, asked.get("variables") or {})
            if found := re.fullmatch(r"/files/([^/]+)/([^/]+)/([^/]+)/file_stream", path):
                return self._stream(self._run(found[3], found[2]), json.loads(body))
            if path.startswith("/storage/"):
                return self._stored(verb, path.removeprefix("/storage/").split("?")[0], body)
            if path.startswith("/sdk/otel/") or (verb, path) == ("HEAD", "/"):
                return 200, b""
        self.unknown.append(operation)
        return 404, {"error": f"the stand-in has no {operation}"}

    def _graphql(self, operation: str, variables: dict[str, Any]) -> Answer:
        method = getattr(self, f"_on_{operation}", None)
        if method is None:
            self.unknown.append(operation)
            return 200, {"data": None, "errors": [{"message": f"the stand-in has no {operation}"}]}
        return 200, {"data": method(variables)}

    def _stream(self, run: StoredRun, message: dict[str, Any]) -> Answer:
        for name, chunk in (message.get("files") or {}).items():
            lines = run.lines.setdefault(name, {})
            lines.update({chunk["offset"] + place: line for place, line in enumerate(chunk["content"])})
            if name == "wandb-summary.json":
                run.summary = json.loads(chunk["content"][-1])
        if message.get("complete"):
            run.exit_code = message.get("exitcode")
        return 200, {"exitcode": None, "limits": {}}

    def _stored(self, verb: str, key: str, body: bytes) -> Answer:
        if verb == "PUT":
            self.blobs[key] = body
            return 200, b""
        return (200, self.blobs[key]) if key in self.blobs else (404, b"")

    def _run(self, name: str, project: str) -> StoredRun:
        return self.runs.setdefault(name, StoredRun(name, project))

    # --- who asks, and what the server can do -------------------------------------------------

    def _on_Viewer(self, _: dict[str, Any]) -> Any:
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        person = {"id": "u", "entity": ENTITY, "username": "tester", "email": "t@x", "flags": "{}", "admin": False}
        return {"viewer": {**person, "teams": teams, "apiKeys": {"edges": []}}}

    def _on_GetDefaultEntity(self, _: dict[str, Any]) -> Any:
        return {"viewer": {"id": "u", "entity": ENTITY}}

    def _on_ServerFeaturesQuery(self, _: dict[str, Any]) -> Any:
        return {"serverInfo": {"features": []}}

    def _on_OrganizationCoreWeaveOrganizationID(self, _: dict[str, Any]) -> Any:
        return {"entity": {"organization": None}}

    # --- runs ---------------------------------------------------------------------------------

    def _project(self, name: str) -> dict[str, Any]:
        return {"id": "p", "internalId": "1", "name": name, "entity": {"id": "e", "name": ENTITY}}

    def _on_UpsertBucket(self, v: dict[str, Any]) -> Any:
        name = v.get("name") or str(v.get("id")).removeprefix("run-")
        inserted = name not in self.runs
        run = self._run(name, v.get("project") or "uncategorized")
        kept = ("displayName", "groupName", "jobType", "tags", "notes")
        run.attributes.update({key: v[key] for key in kept if v.get(key) is not None})
        if v.get("config"):
            run.config = json.loads(v["config"])
        if v.get("summaryMetrics"):
            run.summary = json.loads(v["summaryMetrics"])
        return {"upsertBucket": {"bucket": self._bucket(run), "inserted": inserted}}

    def _bucket(self, run: StoredRun) -> dict[str, Any]:
        return {
            "id": f"run-{run.name}",
            "name": run.name,
            "displayName": run.attributes.get("displayName") or run.name,
            "description": None,
            "config": json.dumps(run.config),
            "sweepName": None,
            "historyLineCount": len(run.lines.get(HISTORY, {})),
            "project": self._project(run.project),
        }

    def _on_RunResumeStatus(self, v: dict[str, Any]) -> Any:
        run = self.runs.get(v["name"])
        if run is None:
            return {"model": {**self._project(v["project"]), "bucket": None}}

        def tail(name: str) -> str:
            lines = sorted(run.lines.get(name, {}).items())[-1:]
            return json.dumps([line for _, line in lines])

        bucket = {
            **self._bucket(run),
            "summaryMetrics": json.dumps(run.summary),
            "logLineCount": len(run.lines.get("output.log", {})),
            "eventsLineCount": len(run.lines.get("wandb-events.jsonl", {})),
            "historyTail": tail(HISTORY),
            "eventsTail": tail("wandb-events.jsonl"),
            "tags": [],
            "wandbConfig": json.dumps({"t": 1}),
        }
        return {"model": {**self._project(run.project), "bucket": bucket}}

    def _on_CreateRunFiles(self, v: dict[str, Any]) -> Any:
        files = [{"name": name, "uploadUrl": f"{self.url}/storage/run/{v['run']}/{name}"} for name in v["files"]]
        return {"createRunFiles": {"runID": f"run-{v['run']}", "uploadHeaders": [], "files": files}}

    def _on_Run(self, v: dict[str, Any]) -> Any:
        run = self.runs.get(v["name"])
        return {"project": {"internalId": "1", "run": None if run is None else self._whole(run)}}

    def _whole(self, run: StoredRun) -> dict[str, Any]:
        state = "running" if run.exit_code is None else "finished" if run.exit_code == 0 else "failed"
        return {
            **self._bucket(run),
            "projectId": "1",
            "tags": [],
            "state": state,
            "group": run.attributes.get("groupName"),
            "jobType": run.attributes.get("jobType"),
            "commit": None,
            "readOnly": False,
            "createdAt": WHEN,
            "heartbeatAt": WHEN,
            "notes": None,
            "user": {"name": "tester", "username": "tester"},
            "summaryMetrics": json.dumps(run.summary),
            "systemMetrics": "{}",
            "historyKeys": None,
        }

    # --- artifacts ----------------------------------------------------------------------------

    def _on_CreateArtifact(self, v: dict[str, Any]) -> Any:
        wanted = v["input"]
        name = wanted.get("artifactCollectionName") or (wanted.get("artifactCollectionNames") or ["?"])[0]
        before = [artifact for artifact in self.artifacts.values() if artifact.name == name]
        same = [a for a in before if a.digest == wanted["digest"] and a.state == "COMMITTED"]
        if same:
            artifact = same[0]
        else:
            id_ = base64.b64encode(f"{name}:{len(before)}".encode()).decode()
            clients = (wanted.get("clientID"), wanted.get("sequenceClientID"))
            artifact = StoredArtifact(
                id_, name, wanted["artifactTypeName"], len(before), wanted["digest"], wanted["projectName"], clients
            )
            self.artifacts[id_] = artifact
        artifact.aliases |= {alias["alias"] for alias in wanted.get("aliases") or []}
        if wanted.get("runName") in self.runs:
            self.runs[wanted["runName"]].logged.append(artifact.id)
        latest = [a.id for a in before if a.state == "COMMITTED"][-1:]
        sequence = {"latestArtifact": {"id": latest[0]} if latest else None}
        found = {"id": artifact.id, "state": artifact.state, "artifactSequence": sequence}
        return {"createArtifact": {"artifact": found}}

    def _manifest(self, artifact: str) -> dict[str, Any]:
        file = {"id": f"f-{artifact}", "uploadUrl": f"{self.url}/storage/manifest/{artifact}", "uploadHeaders": []}
        return {"artifactManifest": {"id": f"m-{artifact}", "file": file}}

    def _on_CreateArtifactManifest(self, v: dict[str, Any]) -> Any:
        return {"createArtifactManifest": self._manifest(v["artifactID"])}

    def _on_UpdateArtifactManifest(self, v: dict[str, Any]) -> Any:
        return {"updateArtifactManifest": self._manifest(v["artifactManifestID"].removeprefix("m-"))}

    def _on_CreateArtifactFiles(self, v: dict[str, Any]) -> Any:
        nodes = [
            {
                "storagePath": f"{file['artifactID']}/{file['name']}",
                "uploadUrl": f"{self.url}/storage/artifact/{file['artifactID']}/{file['md5']}",
                "uploadHeaders": [],
                "uploadMultipartUrls": None,
                "artifact": {"id": file["artifactID"]},
            }
            for file in v["input"]["artifactFiles"]
        ]
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def _on_CommitArtifact(self, v: dict[str, Any]) -> Any:
        artifact = self.artifacts[v["artifactID"]]
        artifact.state = "COMMITTED"
        artifact.manifest = json.loads(self.blobs[f"manifest/{artifact.id}"])
        return {"commitArtifact": {"artifact": {"id": artifact.id, "digest": artifact.digest}}}

    def _on_UseArtifact(self, v: dict[str, Any]) -> Any:
        wanted = v.get("input", v)  # Python and wandb-core shape this one differently
        artifact = self.artifacts[wanted["artifactID"]]
        if wanted.get("runName") in self.runs:
            self.runs[wanted["runName"]].used.append(artifact.id)
        return {"useArtifact": {"artifact": self._shown(artifact)}}

    def _on_ArtifactType(self, v: dict[str, Any]) -> Any:
        found = [artifact for artifact in self.artifacts.values() if artifact.name == v["name"].split(":")[0]]
        return {"project": {"artifact": {"artifactType": {"name": found[-1].type}} if found else None}}

    def _on_ClientIDMapping(self, v: dict[str, Any]) -> Any:
        found = [a for a in self.artifacts.values() if v["clientID"] in a.clients]
        return {"clientIDMapping": {"serverID": found[0].id} if found else None}

    def _shown(self, artifact: StoredArtifact) -> dict[str, Any]:
        project = {**self._project(artifact.project), "__typename": "Project"}
        sequence = {
            "__typename": "ArtifactSequence",
            "id": f"s-{artifact.name}",
            "name": artifact.name,
            "project": project,
        }
        aliases = [
            {"__typename": "ArtifactAlias", "id": alias, "alias": alias, "artifactCollection": sequence}
            for alias in sorted(artifact.aliases)
        ]
        return {
            "__typename": "Artifact",
            "id": artifact.id,
            "artifactSequence": sequence,
            "versionIndex": artifact.version,
            "artifactType": {"name": artifact.type},
            "description": None,
            "metadata": "{}",
            "ttlDurationSeconds": -2,
            "ttlIsInherited": True,
            "tags": [],
            "historyStep": None,
            "state": artifact.state,
            "size": 0,
            "digest": artifact.digest,
            "commitHash": "",
            "fileCount": len(artifact.manifest.get("contents", {})),
            "createdAt": WHEN,
            "updatedAt": None,
            "aliases": aliases,
        }

    def _of_run(self, ids: list[str]) -> dict[str, Any]:
        # Of whole artifacts alone: the client has no notion of another in such a list.
        whole = [self.artifacts[id_] for id_ in dict.fromkeys(ids) if self.artifacts[id_].state == "COMMITTED"]
        edges = [{"node": self._shown(artifact), "cursor": artifact.id} for artifact in whole]
        return {"totalCount": len(edges), "edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}

    def _on_RunOutputArtifacts(self, v: dict[str, Any]) -> Any:
        run = self.runs[v["run"]]
        return {"project": {"run": {"artifacts": self._of_run(run.logged)}}}

    def _on_RunInputArtifacts(self, v: dict[str, Any]) -> Any:
        run = self.runs[v["run"]]
        return {"project": {"run": {"artifacts": self._of_run(run.used)}}}

    # --- views --------------------------------------------------------------------------------

    def _on_UpsertView2(self, v: dict[str, Any]) -> Any:
        id_ = v.get("id") or f"view-{len(self.views)}"
        inserted = id_ not in self.views
        self.views[id_] = {"id": id_, "name": v["name"], "displayName": v["displayName"], "spec": v["spec"]}
        return {"upsertView": {"view": self.views[id_], "inserted": inserted}}

    def _on_View(self, v: dict[str, Any]) -> Any:
        found = [view for view in self.views.values() if view["name"] == v.get("viewName")]
        return {"project": {"allViews": {"edges": [{"node": view} for view in found]}}}
