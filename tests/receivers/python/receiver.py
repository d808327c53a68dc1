"""Receives webhooks and believes only what the PyPI package `standardwebhooks` verified.

Usage: WEBHOOK_SECRET=whsec_… python receiver.py

Writes one line of JSON to standard output for each request, after a first one that says where it listens. Answers 204
to a verified request and 401 to any other. Ends when its standard input does.
"""

import base64
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

WEBHOOK = Webhook(os.environ["WEBHOOK_SECRET"])


SAYING = threading.Lock()


def say(line):
    """In one piece and at once: lines of concurrent requests never mix."""
    with SAYING:
        print(json.dumps(line), flush=True)


def judge(headers, body):
    """Whether the library believes the request, and why not."""
    try:
        WEBHOOK.verify(body, headers)
    except (WebhookVerificationError, ValueError) as error:
        return {"verified": False, "error": f"{type(error).__name__}: {error}"}
    return {"verified": True, "error": ""}


class Receiver(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):  # pylint: disable=invalid-name
        """Reads, judges, reports and answers."""
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        verdict = judge(dict(self.headers), body)
        said = {"id": self.headers.get("webhook-id", ""), "path": self.path}
        say({**said, "body": base64.b64encode(body).decode(), **verdict})
        self.send_response(204 if verdict["verified"] else 401)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):  # pylint: disable=arguments-differ
        """Standard output says it all."""


def main():
    """Serves until standard input ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    say({"port": server.server_address[1]})
    sys.stdin.read()


main()
