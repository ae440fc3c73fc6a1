"""A gRPC client that knows an address and nothing else.

What it can say it learns from the server's reflection service, on grpcio and without generated
code of this project. Errors come with their google.rpc details, whose types are learnt there too.
"""

import time

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

# Longest wait for one answer, in seconds: two slow cores may be busy with other tests.
TIMEOUT_S = 30
# Largest message sent or taken here: the servers' limits are under test, not this client's.
BYTES_MAX = 128 << 20


class Refused(Exception):
    """A status that is not OK, with what its details say."""

    def __init__(self, code, message, reason, fields, metadata):
        super().__init__(f"{code} / {reason}: {message} {fields or ''}")
        self.code, self.message, self.reason = code, message, reason
        self.fields, self.metadata = fields, metadata


class Server:
    """One daemon, driven by reflection."""

    def __init__(self, address):
        options = [
            ("grpc.max_send_message_length", BYTES_MAX),
            ("grpc.max_receive_message_length", BYTES_MAX),
        ]
        self.address = address
        self.channel = grpc.insecure_channel(address, options=options)
        self.database = ProtoReflectionDescriptorDatabase(self.channel)
        self.pool = DescriptorPool(self.database)
        self.services = {name: self.pool.FindServiceByName(name) for name in self.listed()}
        # Every method that was called, as Service/Method: for the caller's count.
        self.called = set()

    def listed(self):
        """The services that the server lists, without reflection itself."""
        names = self.database.get_services()
        return [name for name in names if not name.startswith("grpc.reflection.")]

    def methods(self):
        """Every method of every listed service, as package.Service/Method."""
        return {f"{s.full_name}/{m.name}" for s in self.services.values() for m in s.methods}

    def method(self, path):
        service, name = path.split("/")
        names = [full for full in self.services if full.rsplit(".", 1)[1] == service]
        (full,) = names
        return self.services[full].methods_by_name[name]

    def message(self, descriptor, fields):
        return json_format.ParseDict(fields, GetMessageClass(descriptor)(), descriptor_pool=self.pool)

    def stub(self, path):
        method = self.method(path)
        kind = {
            (False, False): self.channel.unary_unary,
            (False, True): self.channel.unary_stream,
            (True, True): self.channel.stream_stream,
        }[(method.client_streaming, method.server_streaming)]
        answer = GetMessageClass(method.output_type)
        self.called.add(f"{method.containing_service.full_name}/{method.name}")
        return method, kind(
            f"/{method.containing_service.full_name}/{method.name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )

    def call(self, path, timeout=TIMEOUT_S, **fields):
        """Calls a unary method; its answer as a dictionary of JSON names."""
        method, stub = self.stub(path)
        try:
            return self.shown(stub(self.message(method.input_type, fields), timeout=timeout))
        except grpc.RpcError as error:
            raise self.refused(error) from None

    def stream(self, path, timeout=TIMEOUT_S, **fields):
        """Calls a server-streaming method; yields answers. Closing it cancels the call."""
        method, stub = self.stub(path)
        return self.answers(stub(self.message(method.input_type, fields), timeout=timeout))

    def duplex(self, path, requests, timeout=TIMEOUT_S):
        """Calls a bidirectional method with an iterator of dictionaries; yields answers."""
        method, stub = self.stub(path)
        messages = (self.message(method.input_type, fields) for fields in requests)
        return self.answers(stub(messages, timeout=timeout))

    def answers(self, call):
        try:
            for answer in call:
                yield self.shown(answer)
        except grpc.RpcError as error:
            raise self.refused(error) from None
        finally:
            call.cancel()

    def raw(self, path, body, timeout=TIMEOUT_S):
        """Sends any bytes as a message to a unary method; the answer's bytes."""
        stub = self.channel.unary_unary(
            path, request_serializer=bytes, response_deserializer=bytes
        )
        try:
            return stub(body, timeout=timeout)
        except grpc.RpcError as error:
            raise self.refused(error) from None

    def shown(self, message):
        return json_format.MessageToDict(
            message, always_print_fields_with_no_presence=True, descriptor_pool=self.pool
        )

    def named(self, name, data):
        """Reads a message of a type that is known by name, e.g. from an Any."""
        message = GetMessageClass(self.pool.FindMessageTypeByName(name))()
        message.ParseFromString(data)
        return message

    def refused(self, error):
        reason, fields, metadata = None, [], {}
        for key, value in error.trailing_metadata() or ():
            if key != "grpc-status-details-bin":
                continue
            status = self.named("google.rpc.Status", value)
            check(status.code == error.code().value[0], "the details repeat the code")
            for detail in status.details:
                name = detail.type_url.rsplit("/", 1)[1]
                message = self.named(name, detail.value)
                if name == "google.rpc.ErrorInfo":
                    check(message.domain == "concord.v1", f"the domain is {message.domain}")
                    reason, metadata = message.reason, dict(message.metadata)
                elif name == "google.rpc.BadRequest":
                    fields = [violation.field for violation in message.field_violations]
        return Refused(error.code().name, error.details(), reason, fields, metadata)


def check(holds, what):
    """Fails with a sentence; unlike `assert` it also works under -O."""
    if not holds:
        raise AssertionError(what)


def eventually(what, look):
    """Looks until it is true, no longer than one answer may take."""
    deadline = time.monotonic() + TIMEOUT_S
    while not look():
        check(time.monotonic() < deadline, f"not in {TIMEOUT_S} s: {what}")
        time.sleep(0.02)


def refusal(call, *args, **fields):
    """The refusal of a call that must not succeed."""
    try:
        answer = call(*args, **fields)
    except Refused as refused:
        return refused
    raise AssertionError(f"{args} {fields} was answered: {answer}")


def expect(refused, code, reason, *fields):
    """A refusal has this code, this reason, and names at least these fields."""
    check(
        (refused.code, refused.reason) == (code, reason) and set(fields) <= set(refused.fields),
        f"expected {code} / {reason} {list(fields)}, got {refused}",
    )
