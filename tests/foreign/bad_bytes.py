"""Sends what no proper client can send: bytes that are no message, or far too many of them.

    bad_bytes.py GATEWAY PARTICIPANT [PARTICIPANT...]

Each must be refused with a status and a reason, and leave the daemons as they were.
"""

import sys

import grpc

from reflected import Refused, Server, check, expect, refusal

BANK = "/concord.v1.BankService/"
GET = BANK + "GetAccount"
TRANSFER = BANK + "Transfer"
EXECUTE = "/concord.v1.TransactionService/Execute"


def field(number, data):
    """A length-delimited field; its length is told truly."""
    length, size = b"", len(data)
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + data


# What is sent where, and the field that the refusal must name; empty when no field can be known.
UNDECODABLE = [
    ("invalid UTF-8", GET, field(1, b"\xff\xfe"), "account_id"),
    ("a lone surrogate", GET, field(1, b"\xed\xa0\x80"), "account_id"),
    ("an overlong NUL", GET, field(1, b"\xc0\x80"), "account_id"),
    ("a cut character", GET, field(1, "ä".encode()[:1]), "account_id"),
    ("a character above Unicode", GET, field(1, b"\xf5\x80\x80\x80"), "account_id"),
    ("UTF-16", GET, field(1, "acc".encode("utf-16")), "account_id"),
    ("invalid UTF-8 in a memo", TRANSFER, field(5, b"\x80"), "memo"),
    ("invalid UTF-8 in a request id", TRANSFER, field(6, b"\xfe"), "request_id"),
    (
        "invalid UTF-8 in SQL", EXECUTE,
        field(1, field(1, b"p1") + field(2, field(1, b"SELECT '\xff'"))), "statements.statement.sql",
    ),
    ("a length beyond the end", GET, b"\x0a\x7fabc", "account_id"),
    ("a varint without an end", GET, b"\x0a" + b"\xff" * 11, "account_id"),
    ("a number of another wire type", TRANSFER, b"\x1a\x01a", "amount"),
    ("a field number of zero", GET, b"\x02\x01a", ""),
    ("an unknown wire type", GET, b"\x0f", ""),
    ("a group that never ends", GET, b"\x9b\x06" * 1_000, ""),
    ("words", GET, b"garbage garbage", ""),
    ("a request of HTTP/1.1", GET, b"GET / HTTP/1.1\r\nHost: bank\r\n\r\n", ""),
    ("noise", GET, bytes(range(255, 0, -1)), ""),
]


def undecodable(gateway):
    for name, path, body, where in UNDECODABLE:
        refused = refusal(gateway.raw, path, body)
        try:
            expect(refused, "INVALID_ARGUMENT", "INVALID_FIELD", where)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


def oversized(server, path, limit):
    """Just above the limit is refused, whatever is in it, and the next call works."""
    refused = refusal(server.raw, path, field(1, b"a" * limit))
    expect(refused, "RESOURCE_EXHAUSTED", "LIMIT_REACHED")
    check(str(limit) in refused.message, f"the limit is told: {refused}")


def tolerated(gateway):
    """What newer clients may send: unknown fields, and a field twice, of which the last counts."""
    for body in (
        field(1, b"first") + field(1, b"no-such-account"),
        field(1, b"no-such-account") + b"\x98\x06\x01" + field(15, b"newer"),
    ):
        refused = refusal(gateway.raw, GET, body)
        expect(refused, "NOT_FOUND", "ACCOUNT_NOT_FOUND")
        check("no-such-account" in refused.message, refused.message)


def wrong_shape(gateway):
    """Calls that are not of the method's form."""
    for path in ("/concord.v1.BankService/Steal", "/concord.v1.Nothing/Get", "/", "/a/b/c", "/x"):
        refused = refusal(gateway.raw, path, b"")
        check(refused.code == "UNIMPLEMENTED", f"{path}: {refused}")
    stub = gateway.channel.stream_unary(GET, request_serializer=bytes, response_deserializer=bytes)
    try:
        stub(iter([]), timeout=30)
        raise AssertionError("a call without a message was answered")
    except grpc.RpcError as error:
        expect(gateway.refused(error), "INVALID_ARGUMENT", "INVALID_FIELD")
    unary = gateway.channel.unary_unary(GET, request_serializer=bytes, response_deserializer=bytes)
    try:
        unary(field(1, b"a" * 4_096), timeout=30, compression=grpc.Compression.Gzip)
        raise AssertionError("a compressed message was answered")
    except grpc.RpcError as error:
        check(error.code() is grpc.StatusCode.UNIMPLEMENTED, f"{error}")
    try:
        unary(b"", timeout=30, metadata=[("x-much", "a" * 60_000)])
        raise AssertionError("headers of 60 kB were answered")
    except grpc.RpcError as error:
        check(error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED, f"{error}")


def broken_link(participant):
    """A frame that is no frame ends its stream, and no other."""
    path = "/concord.v1.Participant/Link"
    stub = participant.channel.stream_stream(
        path, request_serializer=bytes, response_deserializer=bytes
    )
    for body in (b"garbage", field(1, b"\x08\x01") * 1_025, field(1, field(2, b"\xff"))):
        try:
            replies = list(stub(iter([body]), timeout=30))
            check(replies == [], f"{replies}")
        except grpc.RpcError as error:
            check(error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED, f"{error}")


def main(gateway, *participants):
    front, rest = Server(gateway), [Server(address) for address in participants]
    undecodable(front)
    oversized(front, GET, 8 << 20)
    oversized(rest[0], "/concord.v1.Participant/Query", 64 << 20)
    tolerated(front)
    wrong_shape(front)
    for server in rest:
        broken_link(server)
    status = front.call("AdminService/GetClusterStatus")
    check((status["active"], status["committing"], status["stuck"]) == (0, 0, 0), f"{status}")
    for server in rest:
        check(server.call("Participant/GetStatus")["canVote"], "it can vote")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Refused as refused:
        raise SystemExit(f"refused: {refused}") from refused
