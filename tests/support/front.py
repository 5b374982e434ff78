"""A proxy for an S3 server that injects faults: `python front.py PORT BEHIND FAULTS.json`.

The proxy honours conditional puts (rclone ignores them) and strikes a share of the requests with each fault. The server
behind the proxy does not check signatures.
"""

import asyncio
import json
import random
import sys
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from email.utils import formatdate

import aiohttp
from aiohttp import web
from yarl import URL

CONTROL = "/-/faults"
NOT_PASSED = {"connection", "content-length", "expect", "host", "if-none-match", "keep-alive", "transfer-encoding"}
UNTOUCHED = {"connection", "content-length", "date", "keep-alive", "server", "transfer-encoding"}


@dataclass
class Faults:
    """Share of the requests or responses that each fault strikes, unless its description says otherwise."""

    seed: int = 0
    latency_s: float = 0.0
    """Longest delay of a request in seconds; delays are uniform."""
    busy: float = 0.0
    """The response is 503, and nothing was done."""
    busy_first: int = 0
    """Number of first requests of each kind about each object that are answered with 503."""
    retry_after: str = ""
    """Retry-After of a 503: seconds, or "date" for a date two seconds later. Earlier requests are counted as `early`."""
    reset: float = 0.0
    """The connection is reset before the request is processed."""
    reset_middle: float = 0.0
    """The connection is reset in the middle of a body."""
    truncate: float = 0.0
    """The connection is closed in the middle of a body."""
    lost: float = 0.0
    """The request is processed, and the connection is reset instead of a response."""
    corrupt_get: float = 0.0
    """One bit of an object is flipped in a download."""
    corrupt_put: float = 0.0
    """One bit of an object is flipped in an upload."""
    forbid: str = ""
    """Writes of keys that contain this text are refused with 403."""


def error(status: int, code: str, more: str = "") -> web.Response:
    text = f"<Error><Code>{code}</Code><Message>a fault of the front</Message>{more}</Error>"
    return web.Response(status=status, text=f'<?xml version="1.0"?>{text}', content_type="application/xml")


class Front:
    def __init__(self, behind: str, faults: Faults) -> None:
        self.behind = behind
        self.set(faults)
        self.locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.begin()

    def set(self, faults: Faults) -> None:
        self.faults, self.random = faults, random.Random(faults.seed)
        self.chances: Counter[str] = Counter()
        self.struck_at: dict[str, int] = {}
        self.asked: Counter[tuple[str, str]] = Counter()
        self.not_before: dict[tuple[str, str], float] = {}

    def begin(self) -> None:
        """Reset the counts."""
        self.counts: Counter[str] = Counter()
        self.written: list[str] = []
        self.requests: set[str] = set()
        self.unmended: set[str] = set()
        self.swallowed: list[str] = []

    def strikes(self, name: str) -> bool:
        """Strike one random request of every 1 / share requests, so that each fault also occurs in short runs."""
        if not (share := getattr(self.faults, name)):
            return False
        chances, every = self.chances[name], round(1 / share)
        if chances % every == 0:
            self.struck_at[name] = chances + self.random.randrange(every)
        self.chances[name] += 1
        struck = chances == self.struck_at[name]
        self.counts[name] += struck
        return struck

    def flipped(self, data: bytes) -> bytes:
        place = self.random.randrange(len(data))
        return data[:place] + bytes([data[place] ^ 1 << self.random.randrange(8)]) + data[place + 1 :]

    async def control(self, request: web.Request) -> web.Response:
        if request.method == "PUT":
            self.set(Faults(**await request.json()))
            self.begin()
        seen = {
            "counts": {name: count for name, count in self.counts.items() if count},
            "written": self.written,
            "swallowed": self.swallowed,
        }
        asked = {"requests": sorted(self.requests), "unmended": sorted(self.unmended)}
        return web.json_response({**asdict(self.faults), **seen, **asked})

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.counts["requests"] += 1
        path = request.path
        self.requests.add(" ".join([request.method, path, *sorted(request.query)]))
        is_object, writes = path.strip("/").count("/") > 0, request.method not in ("GET", "HEAD")
        await asyncio.sleep(self.random.random() * self.faults.latency_s)
        if self.strikes("reset"):
            return self.reset(request)
        if self.strikes("busy") or self.is_busy(request.method, path):
            return self.busy(request.method, path)
        if writes and self.faults.forbid and self.faults.forbid in path:
            self.counts["forbid"] += 1
            return error(403, "AccessDenied")
        damaged = is_object and request.method == "PUT" and len(body) > 0 and self.strikes("corrupt_put")
        sent = self.flipped(body) if damaged else body
        if request.headers.get("If-None-Match") == "*":
            async with self.locks[path]:
                status = (await self.ask(request, "HEAD", b""))[0]
                if status == 200:
                    return error(412, "PreconditionFailed", "<Condition>If-None-Match</Condition>")
                answer = await self.ask(request, request.method, sent)
        else:
            answer = await self.ask(request, request.method, sent)
        status, headers, content = answer
        if writes and status < 300:
            self.written.append(path)
            if damaged:
                self.swallowed.append(path)
            if self.strikes("lost"):
                return self.reset(request)
        return await self.answer(request, status, headers, content, is_object)

    def is_busy(self, method: str, path: str) -> bool:
        """Return whether a request is one of the first ones about its object."""
        if time.monotonic() < self.not_before.get((method, path), 0.0):
            self.counts["early"] += 1
        self.asked[method, path] += 1
        busy = self.asked[method, path] <= self.faults.busy_first
        self.counts["busy_first"] += busy
        return busy

    def busy(self, method: str, path: str) -> web.Response:
        answer = error(503, "SlowDown")
        if self.faults.retry_after == "date":
            # A date has no fractions of a second: at least one second always remains.
            answer.headers["Retry-After"] = formatdate(time.time() + 2, usegmt=True)
            self.not_before[method, path] = time.monotonic() + 0.9
        elif self.faults.retry_after:
            answer.headers["Retry-After"] = self.faults.retry_after
            self.not_before[method, path] = time.monotonic() + float(self.faults.retry_after)
        return answer

    async def ask(self, request: web.Request, method: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        headers = {k: v for k, v in request.headers.items() if k.lower() not in NOT_PASSED}
        url = URL(self.behind + request.raw_path, encoded=True)
        async with request.app["session"].request(method, url, headers=headers, data=body, allow_redirects=False) as answer:
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in UNTOUCHED}
            length = (
                {"Content-Length": answer.headers["Content-Length"]} if method == "HEAD" and answer.status == 200 else {}
            )
            return answer.status, kept | length, await answer.read()

    async def answer(
        self, request: web.Request, status: int, headers: dict[str, str], content: bytes, is_object: bool
    ) -> web.StreamResponse:
        if request.method != "GET" or status >= 300 or not content:
            return web.Response(status=status, headers=headers, body=content)
        cut = self.strikes("truncate")
        if cut or self.strikes("reset_middle"):
            part = web.StreamResponse(status=status, headers=headers | {"Content-Length": str(len(content))})
            await part.prepare(request)
            await part.write(content[: len(content) // 2])
            if request.transport:
                request.transport.close() if cut else request.transport.abort()
            return part
        if is_object:
            if self.strikes("corrupt_get"):
                self.unmended.add(request.path)
                content = self.flipped(content)
            else:
                self.unmended.discard(request.path)
        return web.Response(status=status, headers=headers, body=content)

    def reset(self, request: web.Request) -> web.Response:
        if request.transport:
            request.transport.abort()
        return web.Response()


async def session(app: web.Application):
    options = {"auto_decompress": False, "skip_auto_headers": ["Content-Type"]}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), **options) as app["session"]:
        yield


@web.middleware
async def behind_is_gone(request: web.Request, handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except aiohttp.ClientError:
        return error(502, "BadGateway")


def main(port: str, behind: str, faults: str) -> None:
    app = web.Application(client_max_size=1 << 30, middlewares=[behind_is_gone])
    front = Front(behind, Faults(**json.loads(faults)))
    app.cleanup_ctx.append(session)
    app.router.add_route("*", CONTROL, front.control)
    app.router.add_route("*", "/{path:.*}", front.handle)
    web.run_app(app, host="127.0.0.1", port=int(port), print=None, access_log=None, handle_signals=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
