"""Receives traces by OTLP over HTTP and reads them with OpenTelemetry's own package `opentelemetry-proto`.

Usage: python otlp.py PORT FILE

Writes one line of JSON to the file for each export, in the form that the OpenTelemetry Collector's file exporter has:
ids in hexadecimal, enumerations as numbers. An export that the package does not understand is answered with 400.
"""

import base64
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

WRITING = threading.Lock()


def in_hexadecimal(value):
    """The same, with ids as OTLP's JSON has them; protobuf's has bytes in base64."""
    if isinstance(value, list):
        return [in_hexadecimal(item) for item in value]
    if not isinstance(value, dict):
        return value
    ids = ("traceId", "spanId", "parentSpanId")
    return {
        name: base64.b64decode(item).hex() if name in ids else in_hexadecimal(item)
        for name, item in value.items()
    }


class Collector(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):  # pylint: disable=invalid-name
        """Reads, writes down and answers."""
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        try:
            export = ExportTraceServiceRequest.FromString(body)
        except DecodeError:
            return self.answer(400, b"")
        if self.path != "/v1/traces":
            return self.answer(404, b"")
        line = in_hexadecimal(MessageToDict(export, use_integers_for_enums=True))
        with WRITING, open(sys.argv[2], "a", encoding="utf-8") as file:
            print(json.dumps(line), file=file)
        return self.answer(200, ExportTraceServiceResponse().SerializeToString())

    def answer(self, status, body):
        """Sends an answer."""
        self.send_response(status)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):  # pylint: disable=arguments-differ
        """The file says it all."""


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Collector).serve_forever()
