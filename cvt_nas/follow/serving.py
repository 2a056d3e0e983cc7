"""A server for the page of a run. It serves this machine only, and sends new results as they arrive.

The address of the page contains a secret, and only those who know it can open the page. Other web sites in the same
browser cannot read the page or ask for anything in the reader's name. Each request must contain the secret and be
addressed to this machine. A request that asks for something must also come from the page itself.
"""

import asyncio
import contextlib
import importlib.util
import json
import secrets
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from cvt_nas.errors import CvtNasError, StorageError
from cvt_nas.follow.asking import ask_for_trials, ask_to_stop, ask_to_try, parse_arch, text_of
from cvt_nas.follow.snapshot import Snapshot, Snapshots, live_html
from cvt_nas.report.page import Live, html_page
from cvt_nas.run import RunFolder

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_BETWEEN_SENDS = 0.2
_SECONDS_OF_SILENCE = 15.0  # then the server sends a sign that the connection is alive
_SECONDS_TO_END = 5
_MAX_BYTES = 2**16  # of the body of a request
_NAMES = {"127.0.0.1", "localhost", "::1"}  # a site that wants to read the page would use another name for this machine
_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "frame-ancestors 'none'",  # a page cannot set this itself; the page contains the rest
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
}


@contextlib.contextmanager
def serving(run: RunFolder, *, port: int = 0, stop: threading.Event) -> Iterator[str]:
    """Serves the page of a run within the block, until `stop` is set. Yields its URL.

    Args:
        port: Port on 127.0.0.1. The system chooses one if it is 0.

    Raises:
        CvtNasError: If the extra `watch` is not installed, or if the port cannot be used.
    """
    check_watch()
    import uvicorn

    token, snapshots, closing = secrets.token_urlsafe(24), Snapshots(run), threading.Event()
    with _bound(port) as listening:
        app = guarded(app_of(run, snapshots, closing), token)
        config = uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="off", ws="none", server_header=False, date_header=False,
            timeout_graceful_shutdown=_SECONDS_TO_END,
        )  # fmt: skip
        server = uvicorn.Server(config)
        # outside the main thread, uvicorn does not handle signals
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="watch", daemon=True)
        looking = threading.Thread(target=_keep_looking, args=(snapshots, stop, closing), name="looks", daemon=True)
        looking.start()
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/{token}/"
        finally:
            stop.set()
            looking.join()
            server.should_exit = True
            thread.join()


def check_watch() -> None:
    """Raises CvtNasError if a package of the extra `watch` is missing."""
    if any(importlib.util.find_spec(name) is None for name in ("starlette", "uvicorn")):
        raise CvtNasError("the live page needs pip install 'cvt-nas[watch]'")


def _bound(port: int) -> socket.socket:
    bound = socket.socket()
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", port))
        bound.listen()  # so that an early request waits
    except OSError as error:
        bound.close()
        raise CvtNasError(
            f"--port {port}: cannot be used: {error.strerror}; without it, a free one is chosen"
        ) from error
    return bound


def _keep_looking(snapshots: Snapshots, stop: threading.Event, closing: threading.Event) -> None:
    try:
        while not stop.wait(_SECONDS_BETWEEN_LOOKS):
            snapshots.look()
        snapshots.look(is_last=True)
    finally:
        closing.set()


def guarded(app: "ASGIApp", token: str) -> "ASGIApp":
    """Puts `app` below `/TOKEN/`. Requests without the token, or not addressed to this machine, are refused."""
    from starlette.datastructures import Headers
    from starlette.responses import PlainTextResponse

    async def guard(scope: "Scope", receive: "Receive", send: "Send") -> None:
        headers, path = Headers(scope=scope), str(scope["path"])
        _, given, *below = path.split("/", 2)
        if not below or not secrets.compare_digest(given.encode("utf-8", "replace"), token.encode()):
            refused = "The address lacks the token, or has another one. Open the address that cvt-nas watch printed."
        elif _name_of(host := headers.get("host", "")) not in _NAMES:
            refused = "The page is for this machine alone."
        elif scope["method"] not in ("GET", "HEAD") and headers.get("origin") != f"http://{host}":
            refused = "Only the page itself can ask for something."
        else:
            await app({**scope, "path": f"/{below[0]}"}, receive, send)
            return
        await PlainTextResponse(refused + "\n", status_code=403, headers=_HEADERS)(scope, receive, send)

    return guard


def _name_of(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def app_of(run: RunFolder, snapshots: Snapshots, closing: threading.Event) -> "Starlette":
    """Serves the page at `/`, its changes at `/events`, an architecture at `/choices/ID`, and requests at `/ask`."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, StreamingResponse
    from starlette.routing import Route

    def page(request: "Request") -> "Response":
        del request
        return HTMLResponse(page_of(run, snapshots.latest), headers=_HEADERS)

    async def events(request: "Request") -> "Response":
        seen = request.headers.get("last-event-id") or request.query_params.get("seen")
        sent = messages(snapshots, closing, seen=seen)
        return StreamingResponse(sent, media_type="text/event-stream", headers=_HEADERS)

    def choices(request: "Request") -> "Response":
        try:
            return PlainTextResponse(text_of(run.find(request.path_params["arch_id"]).arch, run), headers=_HEADERS)
        except CvtNasError as error:
            return JSONResponse({"said": str(error)}, status_code=404, headers=_HEADERS)

    async def ask(request: "Request") -> "Response":
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > _MAX_BYTES:
                raise HTTPException(413)
        fields = {name: values[0] for name, values in parse_qs(body.decode("utf-8", "replace")).items()}
        status, said = await asyncio.to_thread(asked, run, fields)
        if "application/json" in request.headers.get("accept", ""):
            return JSONResponse({"said": said}, status_code=status, headers=_HEADERS)
        if status == 200:  # a browser without JavaScript goes back to the page
            return RedirectResponse("./#live", status_code=303, headers=_HEADERS)
        return PlainTextResponse(said + "\n", status_code=status, headers=_HEADERS)

    return Starlette(
        routes=[
            Route("/", page),
            Route("/events", events),
            Route("/choices/{arch_id}", choices),
            Route("/ask", ask, methods=["POST"]),
        ]
    )


def page_of(run: RunFolder, snapshot: Snapshot) -> str:
    """The page with its live section."""
    live = Live(html=live_html(snapshot, run), style=_text("live.css"), script=_text("live.js"))
    return html_page(**snapshot.parts._asdict(), refresh=None, live=live)


def asked(run: RunFolder, fields: Mapping[str, str]) -> tuple[int, str]:
    """Handles the request of a form. Returns an HTTP status and one line for the reader."""
    try:
        kind = fields.get("ask")
        if kind == "stop":
            request = ask_to_stop(run)
        elif kind == "trials":
            number = fields.get("trials", "")
            if not number.isascii() or not number.isdigit() or len(number) > 9:
                return 400, f"{number!r} trials: must be a whole number"
            request = ask_for_trials(run, int(number))
        elif kind == "try":
            request = ask_to_try(run, parse_arch(fields.get("arch", ""), run))
        else:
            return 400, f"{kind!r}: must be stop, trials or try"
    except CvtNasError as error:
        return 400, str(error)
    except StorageError as error:
        return 500, f"{run.place}: cannot be written: {error.strerror or error}"
    return 200, f"Asked: {request.describe()}. The answer stands above."


async def messages(snapshots: Snapshots, closing: threading.Event, *, seen: str | None) -> AsyncIterator[str]:
    """Server-sent events: `live` and `page` whenever they have changed, and `end`.

    Args:
        seen: Version that the browser shows.
    """
    fragments, silent = None, 0.0
    while True:
        is_over, now = closing.is_set(), snapshots.latest
        changed = []
        if now.fragments != fragments:
            changed.append(f"event: live\ndata: {json.dumps(now.fragments)}\n\n")
            fragments = now.fragments
        if now.version != seen:
            message = await asyncio.to_thread(now.page_message)
            changed.append(f"event: page\nid: {now.version}\ndata: {message}\n\n")
            seen = now.version
        for text in changed:
            yield text
        if is_over and not changed:
            yield "event: end\ndata: \n\n"
            return
        silent = 0.0 if changed else silent + _SECONDS_BETWEEN_SENDS
        if silent >= _SECONDS_OF_SILENCE:
            yield ": \n\n"
            silent = 0.0
        await asyncio.sleep(_SECONDS_BETWEEN_SENDS)


@cache
def _text(name: str) -> str:
    return resources.files("cvt_nas.follow").joinpath(name).read_text(encoding="utf-8")
