"""A Kubernetes on the loopback address, without containers, for verify; and how it is spoken to."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CLUSTER = ROOT / ".tools/cluster"
KUBECTL = ROOT / ".tools/chart/bin/kubectl"
TOKEN = "verify"
WAIT_S = 90

scratch = Path(tempfile.mkdtemp(prefix="postrider-verify-"))
processes: list[subprocess.Popen] = []
began = time.monotonic()


class Failed(Exception):
    pass


def say(text: str) -> None:
    print(f"{time.monotonic() - began:6.1f} s  {text}", flush=True)


def check(holds: bool, text: str, found: object = "") -> None:
    if not holds:
        raise Failed(f"not so: {text}\n{found}")
    say(text)


def until(what: str, condition) -> object:
    """Waits until the condition gives something true; fails with what it gave last."""
    deadline = time.monotonic() + WAIT_S
    while True:
        last = condition()
        if last:
            return last
        if time.monotonic() > deadline:
            raise Failed(f"not within {WAIT_S} s: {what}; last: {last!r}")
        time.sleep(0.2)


def run(*command: object, fails: bool = False, stdin: str | None = None) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, input=stdin, timeout=300,
        env={**os.environ, "KUBECONFIG": str(scratch / "kubeconfig"), "HELM_CACHE_HOME": str(scratch / "helm")},
    )
    if (done.returncode != 0) != fails:
        raise Failed(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done


def kubectl(*arguments: object, **options) -> subprocess.CompletedProcess:
    return run(KUBECTL, *arguments, **options)


def apply(*objects: dict) -> None:
    kubectl("apply", "--server-side", "--filename", "-", stdin=yaml.safe_dump_all(objects))


# ---- the cluster

def ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in taken]


def start(program: str, *arguments: str, **environment: str) -> None:
    log = (scratch / f"{program}.log").open("w")
    processes.append(subprocess.Popen(
        [CLUSTER / program, *arguments], stdout=log, stderr=log, cwd=scratch, env={**os.environ, **environment}))


def start_cluster() -> None:
    missing = [name for name in ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok", "keda", "helm-3")
               if not (CLUSTER / name).exists()]
    if missing or not shutil.which("openssl"):
        sys.exit(f"verify: missing: {', '.join(missing) or 'openssl'}. Run deploy/helm/verify-tools, or install it.")
    client, peer, api, manager, scheduler, kwok = ports(6)
    run("openssl", "genrsa", "-out", scratch / "sa.key", "2048")
    (scratch / "tokens.csv").write_text(f'{TOKEN},admin,admin,"system:masters"\n')
    (scratch / "kubeconfig").write_text(yaml.safe_dump({
        "apiVersion": "v1", "kind": "Config", "current-context": "verify",
        "clusters": [{"name": "verify", "cluster": {"server": f"https://127.0.0.1:{api}", "insecure-skip-tls-verify": True}}],
        "users": [{"name": "verify", "user": {"token": TOKEN}}],
        "contexts": [{"name": "verify", "context": {"cluster": "verify", "user": "verify"}}],
    }))
    kubeconfig = f"--kubeconfig={scratch / 'kubeconfig'}"
    loopback = ["--leader-elect=false", "--bind-address=127.0.0.1", kubeconfig]
    start("etcd", f"--data-dir={scratch / 'etcd'}", f"--listen-client-urls=http://127.0.0.1:{client}",
          f"--advertise-client-urls=http://127.0.0.1:{client}", f"--listen-peer-urls=http://127.0.0.1:{peer}",
          "--unsafe-no-fsync")
    start("kube-apiserver", f"--etcd-servers=http://127.0.0.1:{client}", "--bind-address=127.0.0.1",
          "--advertise-address=127.0.0.1", f"--secure-port={api}", f"--cert-dir={scratch / 'certs'}",
          "--service-account-issuer=https://kubernetes.default.svc", f"--service-account-key-file={scratch / 'sa.key'}",
          f"--service-account-signing-key-file={scratch / 'sa.key'}", "--service-cluster-ip-range=10.0.0.0/24",
          f"--token-auth-file={scratch / 'tokens.csv'}", "--authorization-mode=RBAC", "--endpoint-reconciler-type=none",
          "--enable-admission-plugins=PodSecurity,NodeRestriction")
    until("the API server is ready",
          lambda: subprocess.run([KUBECTL, kubeconfig, "get", "--raw", "/readyz"], capture_output=True).stdout == b"ok")
    start("kube-controller-manager", *loopback, f"--secure-port={manager}",
          f"--service-account-private-key-file={scratch / 'sa.key'}", f"--cert-dir={scratch / 'manager'}")
    start("kube-scheduler", *loopback, f"--secure-port={scheduler}", f"--cert-dir={scratch / 'scheduler'}")
    start("kwok", kubeconfig, f"--config={CLUSTER / 'kwok-stages.yaml'}", "--manage-all-nodes=true",
          "--node-lease-duration-seconds=40", "--cidr=10.1.0.0/24", "--node-ip=10.1.0.1",
          f"--server-address=127.0.0.1:{kwok}")


def furnish_cluster() -> None:
    """Nodes in three zones, custom resource definitions, a priority class."""
    for path in [*sorted((CLUSTER / "crds").glob("*.yaml")), *sorted((HERE / "schemas").glob("*.yaml"))]:
        kubectl("apply", "--server-side", "--filename", path)
    apply(*(
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"node-{zone}", "labels": {
            "kubernetes.io/hostname": f"node-{zone}", "topology.kubernetes.io/zone": zone, "kubernetes.io/os": "linux"}}}
        for zone in "abc"
    ), {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "high"}, "value": 1000})
    for zone in "abc":
        kubectl("patch", "node", f"node-{zone}", "--subresource=status", "--type=merge", "--patch", json.dumps(
            {"status": {side: {"cpu": "32", "memory": "64Gi", "pods": "110"} for side in ("capacity", "allocatable")}}))
    kubectl("wait", "--for=condition=Ready", "nodes", "--all", "--timeout=60s")


def namespace(name: str) -> None:
    apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {
        f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}}})
    until("the service account default", lambda: "default" in kubectl("-n", name, "get", "sa", "-o", "name").stdout)


class Prometheus(BaseHTTPRequestHandler):
    """Answers every query with an age of five minutes, and remembers queries and who asked."""

    asked: set[tuple[str, str]] = set()

    def do_GET(self) -> None:
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query).get("query", [""])[0]
        self.asked.add((query, self.headers.get("Authorization", "")))
        result = [{"metric": {}, "value": [time.time(), "300"]}]
        body = json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def start_keda() -> str:
    """Starts KEDA's operator after its definitions are there; gives the address of the Prometheus to ask."""
    certificates = scratch / "keda"
    certificates.mkdir()
    run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=keda",
        "-keyout", certificates / "tls.key", "-out", certificates / "tls.crt")
    shutil.copy(certificates / "tls.crt", certificates / "ca.crt")
    apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "keda"}})
    metrics, probe, service = ports(3)
    start("keda", f"--kubeconfig={scratch / 'kubeconfig'}", "--leader-elect=false", "--enable-cert-rotation=false",
          f"--cert-dir={certificates}", f"--ca-dir={certificates}", f"--metrics-bind-address=127.0.0.1:{metrics}",
          f"--health-probe-bind-address=127.0.0.1:{probe}", f"--metrics-service-bind-address=127.0.0.1:{service}",
          "--enable-webhook-patching=false", "--enable-apiservice-patching=false",
          POD_NAMESPACE="keda", POD_NAME="keda", OPERATOR_NAME="keda", WATCH_NAMESPACE="", KEDA_CLUSTER_OBJECT_NAMESPACE="keda")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Prometheus)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def stop() -> None:
    """In the order opposite to that of starting; etcd last."""
    for process in reversed(processes):
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
