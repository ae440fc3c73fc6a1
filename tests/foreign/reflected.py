"""A gRPC client that knows an address and nothing else.

Everything it can say it learns from the server's reflection service, on grpcio and without a line
of generated code of this project. Errors come back with their google.rpc details decoded, whose
types it learns by reflection too.
"""

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from google.rpc_dynamic import STATUS  # noqa: F401  (see below)
