"""A small OpenSearch or Elasticsearch over HTTP: checks requests against the documented API, scores by Lucene's rule.

Values of features are kept as FeatureField keeps them, the upper 17 bits of a float32; a linear query on one adds
weight x value in float32, a weight is above 0 and at most 64. Anything that is not part of this contract is answered
with 400.
"""

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

CLAUSES = 1024


class Bad(Exception):
    def __init__(self, status, kind, reason):
        super().__init__(reason)
        self.status, self.kind = status, kind


def need(good, reason):
    if not good:
        raise Bad(400, "illegal_argument_exception", reason)


def kept(value):
    bits = np.float32(value).view(np.uint32)
    return (bits >> 15 << 15).view(np.float32)


class Stub(ThreadingHTTPServer):
    """Listens on a free port of this machine.

    Attributes:
        failures: [method and path as a pattern, status, body], answered instead, each once, in order.
        requests: (method, path) of all that came.
    """

    daemon_threads = True

    def __init__(self, engine, login=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.engine, self.login = engine, login
        self.indices, self.failures, self.requests, self.lock = {}, [], [], threading.Lock()
        self.uri = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self):
        self.shutdown()
        self.server_close()

    def answer(self, method, path, params, headers, body):
        for number, (pattern, status, answer) in enumerate(self.failures):
            if re.fullmatch(pattern, f"{method} {path}"):
                del self.failures[number]
                return status, answer
        if self.login and headers.get("Authorization") != self.login:
            raise Bad(401, "security_exception", "unable to authenticate user for REST request")
        lines = path.endswith("/_bulk")
        if body:
            kind = headers.get("Content-Type", "").split(";")[0].replace("vnd.elasticsearch+", "")
            need(kind == ("application/x-ndjson" if lines else "application/json"), f"Content-Type {kind}")
        given = body.decode() if lines else json.loads(body) if body else None
        parts = [unquote(part) for part in path.strip("/").split("/")]
        return 200, self.work(method, parts, params, given)

    def work(self, method, parts, params, body):
        if parts[:2] == ["_search", "scroll"]:
            return self.scroll(method, body)
        name = parts[0]
        need(re.fullmatch(r"[a-z][a-z0-9_]*", name), f"name {name}")
        if method == "PUT" and len(parts) == 1:
            need(name not in self.indices, "resource_already_exists_exception")
            self.indices[name] = Index(name, body, self.engine)
            return {"acknowledged": True, "shards_acknowledged": True, "index": name}
        if name not in self.indices:
            raise Bad(404, "index_not_found_exception", f"no such index [{name}]")
        if method == "DELETE" and len(parts) == 1:
            del self.indices[name]
            return {"acknowledged": True}
        index = self.indices[name]
        route = method, parts[1]
        if route == ("POST", "_bulk"):
            return index.bulk(body)
        if route == ("POST", "_search") and "scroll" in params:
            return index.first_page(body)
        if route == ("POST", "_search"):
            need(params == {"allow_partial_search_results": ["false"]}, f"parameters {params}")
            return index.search(body)
        if route == ("POST", "_mget"):
            need(params == {"_source": ["packed"]} and set(body) == {"ids"}, "of _mget")
            return {"docs": [index.get(id) for id in body["ids"]]}
        if route == ("POST", "_count"):
            need(body == {"query": {"match_all": {}}}, "of _count")
            return {"count": len(index.found)}
        if route == ("GET", "_mapping"):
            return {name: {"mappings": index.mappings}}
        if route == ("PUT", "_settings"):
            need(set(body) == {"index"} and set(body["index"]) == {"refresh_interval"}, "of _settings")
            return {"acknowledged": True}
        if route == ("POST", "_refresh"):
            index.found = dict(index.documents)
            return {"_shards": {"failed": 0}}
        if parts[1] == "_doc" and len(parts) == 3:
            if method == "PUT":
                index.put(parts[2], body)
                return {"_id": parts[2], "result": "created"}
            document = index.get(parts[2])
            if not document["found"]:
                raise Bad(404, None, json.dumps(document))
            return document
        raise Bad(400, "illegal_argument_exception", f"no handler found for uri [{'/'.join(parts)}]")

    def scroll(self, method, body):
        if method == "DELETE":
            need(set(body) == {"scroll_id"} and isinstance(body["scroll_id"], list), "of scroll")
            return {"succeeded": True}
        need(method == "POST" and set(body) == {"scroll", "scroll_id"}, "of scroll")
        name, size, first = body["scroll_id"].split("|")
        return self.indices[name].page(int(size), int(first))


class Index:
    def __init__(self, name, body, engine):
        need(set(body) == {"settings", "mappings"}, "of an index")
        need(set(body["settings"]) == {"index"}, "settings")
        need(set(body["settings"]["index"]) <= {"refresh_interval", "number_of_shards"}, "settings")
        self.name, self.engine, self.mappings, self.settings = name, engine, body["mappings"], body["settings"]["index"]
        need(self.mappings["dynamic"] == "strict", "dynamic")
        self.documents, self.found = {}, {}
        vector = self.mappings["properties"].get("vector")
        kinds = {
            "opensearch": {"type": "rank_features"},
            "elasticsearch": {"type": "sparse_vector", "index_options": {"prune": False}},
        }
        need(vector in (None, kinds[engine]), "field of features")

    def put(self, id, source):
        need(0 < len(id.encode()) <= 512, "id is too long")
        need(set(source) <= set(self.mappings["properties"]), "strict_dynamic_mapping_exception")
        features = {}
        for feature, value in source.get("vector", {}).items():
            need("." not in feature and isinstance(value, float), "feature")
            need(np.float32(value) >= np.finfo(np.float32).tiny, "a feature's value must be a positive normal float")
            features[feature] = kept(value)
        if "packed" in source:
            base64.b64decode(source["packed"], validate=True)
        excluded = self.mappings.get("_source", {}).get("excludes", [])
        self.documents[id] = features, {key: value for key, value in source.items() if key not in excluded}

    def bulk(self, body):
        need(body.endswith("\n"), "the bulk request must be terminated by a newline")
        lines, items = iter(body.splitlines()), []
        for line in lines:
            ((action, about),) = json.loads(line).items()
            need(set(about) == {"_id"}, "action")
            if action == "delete":
                self.documents.pop(about["_id"], None)
            else:
                need(action == "index", "action")
                self.put(about["_id"], json.loads(next(lines)))
            items.append({action: {"_id": about["_id"], "status": 200}})
        return {"errors": False, "items": items}

    def get(self, id):
        if id not in self.documents:
            return {"_id": id, "found": False}
        return {"_id": id, "found": True, "_source": self.documents[id][1]}

    def clauses(self, query):
        if self.engine == "opensearch":
            need(set(query) == {"neural_sparse"} and set(query["neural_sparse"]) == {"vector"}, "query")
            need(set(query["neural_sparse"]["vector"]) == {"query_tokens"}, "query")
            return query["neural_sparse"]["vector"]["query_tokens"]
        need(set(query) == {"sparse_vector"}, "query")
        query = query["sparse_vector"]
        need(set(query) == {"field", "query_vector", "prune"} and query["field"] == "vector", "query")
        need(query["prune"] is False, "prune")
        return query["query_vector"]

    def search(self, body):
        need(set(body) == {"size", "_source", "track_total_hits", "query"}, "search")
        need(1 <= body["size"] <= 10_000, "Result window is too large")
        tokens = self.clauses(body["query"])
        if len(tokens) > CLAUSES:
            raise Bad(400, "too_many_clauses", f"maxClauseCount is set to {CLAUSES}")
        need(tokens and all(0 < weight <= 64 for weight in tokens.values()), "weight must be in (0, 64]")
        scored = []
        for id, (features, _) in self.found.items():
            # Lucene adds the clauses of a document in double and gives a float.
            parts = [np.float32(weight) * features[token] for token, weight in tokens.items() if token in features]
            if parts:
                scored.append((-float(np.float32(sum(map(float, parts)))), id))
        hits = [{"_index": self.name, "_id": id, "_score": -score} for score, id in sorted(scored)[: body["size"]]]
        return {"timed_out": False, "_shards": {"failed": 0}, "hits": {"hits": hits}}

    def first_page(self, body):
        need(body["sort"] == ["_doc"] and body["query"] == {"match_all": {}} and body["_source"] is False, "scroll")
        need(body["size"] <= 10_000, "Result window is too large")
        return self.page(body["size"], 0)

    def page(self, size, first):
        chosen = list(self.found)[first : first + size]
        return {"_scroll_id": f"{self.name}|{size}|{first + size}", "hits": {"hits": [{"_id": id} for id in chosen]}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_any(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        where = urlsplit(self.path)
        self.server.requests.append((self.command, where.path))
        try:
            with self.server.lock:
                status, answer = self.server.answer(
                    self.command, where.path, parse_qs(where.query), self.headers, body
                )  # fmt: skip
        except Bad as error:
            status = error.status
            answer = {"error": {"type": error.kind, "reason": str(error), "root_cause": []}, "status": status}
            if error.kind is None:
                answer = json.loads(str(error))
        data = json.dumps(answer).encode()
        self.send_response(status)
        kind = "application/json"
        if self.server.engine == "elasticsearch":
            self.send_header("X-Elastic-Product", "Elasticsearch")
            kind = "application/vnd.elasticsearch+json;compatible-with=9"
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

    def log_message(self, *_):
        pass
