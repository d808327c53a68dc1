"""Publishes events straight to Kafka: a producer that shares nothing with the workspace but `proto/`.

Usage: python publish.py BOOTSTRAP_SERVERS TOPIC PROTO_DIRECTORY

Reads one JSON object a line from standard input: {"tenant", "type", "data": base64, "id"?, "ordering_key"?}. The code
for the messages is generated when it starts, by the protoc of the PyPI package `grpcio-tools`. Writes
{"acknowledged": N} when all are in the topic and fails otherwise.
"""

import base64
import json
import sys
import tempfile
from pathlib import Path

from confluent_kafka import Producer
from grpc_tools import protoc


def generated(proto_directory):
    """The module of event.proto, compiled now."""
    directory = tempfile.mkdtemp(prefix="postrider-proto-")
    source = "postrider/v1/event.proto"
    status = protoc.main(["protoc", f"-I{proto_directory}", f"--python_out={directory}", source])
    if status != 0:
        raise SystemExit(f"protoc failed with {status}")
    sys.path.insert(0, directory)
    from postrider.v1 import event_pb2  # pylint: disable=import-error,import-outside-toplevel

    return event_pb2


def main():
    """Publishes every line and waits for every acknowledgement."""
    bootstrap_servers, topic, proto_directory = sys.argv[1:]
    event_pb2 = generated(Path(proto_directory))
    producer = Producer(
        {
            "bootstrap.servers": bootstrap_servers,
            "enable.idempotence": True,
            # As Kafka's Java clients and as Postrider; librdkafka's own default puts a key elsewhere.
            "partitioner": "murmur2_random",
        }
    )
    fates = []
    for line in sys.stdin:
        wanted = json.loads(line)
        event = event_pb2.Event(
            id=wanted.get("id", ""),
            tenant=wanted["tenant"],
            type=wanted["type"],
            data=base64.b64decode(wanted["data"]),
            ordering_key=wanted.get("ordering_key", ""),
        )
        key = f"{event.tenant}/{event.ordering_key or event.id}"
        producer.produce(topic, key=key, value=event.SerializeToString(), callback=lambda *fate: fates.append(fate))
        producer.poll(0)
    left = producer.flush(60)
    failed = [str(error) for error, _ in fates if error is not None]
    if left or failed:
        raise SystemExit(f"{left} not acknowledged, {len(failed)} failed: {failed[:3]}")
    print(json.dumps({"acknowledged": len(fates)}))


main()
