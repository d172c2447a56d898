"""How much a SuperLink reads, and of whom, before Flower does."""

import asyncio
from base64 import b64encode
from datetime import timedelta

import httpx
import pytest
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes, sign_message
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from splitfed.engines.deployment.proof import HEADER, proof
from splitfed.server.deployment.keys import signer
from splitfed.server.deployment.strangers import Strangers
from splitfed.server.deployment.superlink import MOST_PARTS, SMALL, Door, few_parts

SECRET, MOST = b"the secret", 1 << 30
PROVEN = (HEADER.encode(), proof(SECRET).encode())
NODE, HERE, SERVER = ("10.0.0.9", 5000), ("127.0.0.1", 5000), ("10.0.0.5", 8000)
PUSH = "/v1/fleet/push-object"


def status(
    door: Door, *headers: tuple[bytes, bytes], path: str = PUSH, client: tuple[str, int] = NODE, method: str = "POST"
) -> int:
    """Return what a request gets of which nobody ever reads a byte."""
    sent: list[dict] = []

    async def send(event) -> None:
        sent.append(event)

    async def receive() -> None:
        raise AssertionError("it reads before it has decided")

    scope = {"type": "http", "method": method, "path": path, "client": client, "server": SERVER, "headers": headers}
    asyncio.run(door(scope, receive, send))  # type: ignore[arg-type]
    if sent[0]["status"] != 200:
        assert (b"connection", b"close") in sent[0]["headers"]  # the rest is not read either
    return sent[0]["status"]


def door(known: bool = False, most: int = MOST, strangers: Strangers | None = None) -> Door:
    async def app(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    return Door(app, SECRET, strangers or Strangers(), lambda headers: b"key" if known else None, lambda: most)


def length(number: int | str) -> tuple[bytes, bytes]:
    return b"content-length", str(number).encode()


@pytest.mark.parametrize(("path", "method"), [(PUSH, "POST"), ("/v1/fleet/register-node", "POST"), ("/health", "GET")])
def test_without_a_key_only_little_is_read(path: str, method: str) -> None:
    assert status(door(), length(SMALL), path=path, method=method) == 200
    assert status(door(), path=path, method=method) == 200
    assert status(door(), length(SMALL + 1), path=path, method=method) == 413
    assert status(door(), length(629145600), path=path, method=method) == 413
    assert status(door(), (b"transfer-encoding", b"chunked"), path=path, method=method) == 411
    assert status(door(), length("-1"), path=path, method=method) == 413


def test_with_a_key_as_much_as_the_scenario_needs() -> None:
    assert status(door(known=True), length(MOST)) == 200
    assert status(door(known=True), length(MOST + 1)) == 413
    assert status(door(known=True), (b"transfer-encoding", b"chunked")) == 411
    assert status(door(known=True), length(SMALL + 1), path="/health", method="GET") == 413


def test_this_machine_sends_what_it_likes_with_the_proof_alone() -> None:
    assert status(door(), length(1 << 40), PROVEN, client=HERE) == 200
    assert status(door(), length(1 << 40), PROVEN) == 413
    assert status(door(), length(1 << 40), client=HERE) == 413


def test_who_has_shown_a_key_is_no_stranger_any_more() -> None:
    strangers = Strangers()
    status(door(strangers=strangers), length(5))
    assert not strangers.knows(NODE)
    status(door(known=True, strangers=strangers), length(5))
    assert strangers.knows(NODE)
    assert status(door(strangers=strangers), length(MOST)) == 200  # the same connection
    assert status(door(strangers=strangers), length(MOST), client=("10.0.0.9", 5001)) == 413


def test_a_message_in_many_parts_is_taken_without_them() -> None:
    """Each of them may be as long as all that a client needs."""

    def tree(*children: ObjectTree) -> ObjectTree:
        return ObjectTree(object_id="root", children=children)

    leaf = ObjectTree(object_id="leaf")
    deep = ObjectTree(object_id="node", children=[leaf] * (MOST_PARTS - 2))
    for fits in (tree(), tree(*[leaf] * (MOST_PARTS - 1)), tree(deep)):
        assert few_parts(fits) == fits
    for many in (tree(*[leaf] * MOST_PARTS), tree(deep, leaf), tree(*[leaf] * 100_000)):
        assert few_parts(many) == tree()


def signed(**changes: str) -> list[tuple[bytes, bytes]]:
    """Return the headers of a request as a SuperNode signs it."""
    request = httpx.Request("POST", "http://host/v1/fleet/pull-messages", content=b"x")
    context = type("Context", (), {"request": request, "rpc_method": "", "request_message": None})()
    NodeAuthHttpInterceptor(PRIVATE, PUBLIC).intercept(context, lambda context: httpx.Response(200))
    told = {name: changes.get(name, value) for name, value in request.headers.items()}
    return [(name.encode(), value.encode()) for name, value in told.items()]


PRIVATE, PUBLIC = generate_key_pairs()
OTHER, _ = generate_key_pairs()
KEY, SIGNATURE, TIME = "flwr-public-key", "flwr-signature", "flwr-timestamp"


def at(time, key=PRIVATE) -> dict[str, str]:
    text = time.isoformat()
    return {TIME: text, SIGNATURE: b64encode(sign_message(key, text.encode())).decode()}


def test_a_supernodes_signature_is_read_from_the_headers() -> None:
    assert {KEY, SIGNATURE, TIME} <= {name.decode() for name, _ in signed()}
    assert signer(signed()) == public_key_to_bytes(PUBLIC)


WRONG = {
    "another's": at(now(), OTHER), "old": at(now() - timedelta(hours=1)), "early": at(now() + timedelta(hours=1)),
    "without a zone": at(now().replace(tzinfo=None)), "no time": {TIME: "soon"}, "no signature": {SIGNATURE: "!"},
    "no key": {KEY: "QUJD"}, "not even text": {TIME: "\u00e9"},
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_no_other_is_taken(name: str) -> None:
    assert signer(signed(**WRONG[name])) is None
    assert signer([]) is None
