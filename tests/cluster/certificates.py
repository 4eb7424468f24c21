"""Certificates and kubeconfigs. Source: Kubernetes, "PKI certificates and requirements".

Limit: made by openssl, valid for ten years, kept in the user's cache with mode 0600; for a cluster on one machine only.
"""

import subprocess
from pathlib import Path

DAYS = "3650"


def openssl(*arguments: str) -> None:
    """Runs openssl; it is on the list of packages that are checked before, so a failure here is ours."""
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def make_authority(pki: Path) -> None:
    """The certificate authority and the key that signs service-account tokens, unless they are there."""
    pki.mkdir(parents=True, exist_ok=True, mode=0o700)
    if (pki / "sa.pub").exists():
        return
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", DAYS,
            "-subj", "/CN=local-ca", "-keyout", f"{pki}/ca.key", "-out", f"{pki}/ca.crt")  # fmt: skip
    openssl("genrsa", "-out", f"{pki}/sa.key", "2048")
    openssl("rsa", "-in", f"{pki}/sa.key", "-pubout", "-out", f"{pki}/sa.pub")


def make_certificate(pki: Path, name: str, subject: str, names: str = "DNS:localhost") -> None:
    """`name`.crt and .key signed by the authority, unless they are there; `names` are its subjectAltNames."""
    if (pki / f"{name}.crt").exists():
        return
    extensions = pki / f"{name}.ext"
    extensions.write_text(f"subjectAltName={names}\n")
    openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", subject,
            "-keyout", f"{pki}/{name}.key", "-out", f"{pki}/{name}.csr")  # fmt: skip
    openssl("x509", "-req", "-in", f"{pki}/{name}.csr", "-CA", f"{pki}/ca.crt", "-CAkey", f"{pki}/ca.key",
            "-CAcreateserial", "-days", DAYS, "-extfile", str(extensions), "-out", f"{pki}/{name}.crt")  # fmt: skip


def make_all(pki: Path, address: str) -> None:
    """Every identity of a cluster whose API server and node answer at `address`."""
    service = "kubernetes.default.svc"
    dns = ["localhost", "kubernetes", "kubernetes.default", service, f"{service}.cluster.local"]
    names = ",".join([*(f"DNS:{name}" for name in dns), "IP:127.0.0.1", "IP:10.96.0.1", f"IP:{address}"])
    make_authority(pki)
    make_certificate(pki, "apiserver", "/CN=kube-apiserver", names)
    make_certificate(pki, "admin", "/O=system:masters/CN=admin")
    make_certificate(pki, "controller-manager", "/CN=system:kube-controller-manager")
    make_certificate(pki, "scheduler", "/CN=system:kube-scheduler")
    make_certificate(pki, "proxy", "/CN=system:kube-proxy")
    make_certificate(pki, "node", "/O=system:nodes/CN=system:node:local")
    make_certificate(pki, "kubelet-client", "/O=system:masters/CN=kube-apiserver-kubelet-client")
    make_certificate(pki, "kubelet", "/CN=local", f"IP:{address},DNS:local")


def write_kubeconfig(path: Path, pki: Path, user: str, server: str) -> None:
    """A kubeconfig for one of the identities above; `server` is the API server's URL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"""\
apiVersion: v1
kind: Config
clusters: [{{name: local, cluster: {{server: "{server}", certificate-authority: "{pki}/ca.crt"}}}}]
users: [{{name: "{user}", user: {{client-certificate: "{pki}/{user}.crt", client-key: "{pki}/{user}.key"}}}}]
contexts: [{{name: local, context: {{cluster: local, user: "{user}"}}}}]
current-context: local
""")
