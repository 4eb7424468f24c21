"""The node's configuration files, as text: containerd, kubelet, kube-proxy, DNS, pod network.

Source of every key: the components' own references for Kubernetes 1.36, containerd 1.6 and CNI 1.0.
"""

from pathlib import Path

from tests.cluster.network import BRIDGE, GATEWAY, NODE_PODS, PODS
from tests.cluster.paths import State

PAUSE_IMAGE = "localhost/pause:local"
"""The image of a pod's sandbox: busybox that sleeps. Tests use it, too, for pods that do next to nothing."""

GPUS = 4
"""Pretend GPUs on the node: the scheduler counts them and the kubelet admits them; there is no device."""


def write_all(state: State) -> None:
    """Writes the files that the node's components are started with."""
    texts = {
        "containerd.toml": containerd_toml(state),
        "kubelet.yaml": kubelet_yaml(state),
        "proxy.yaml": proxy_yaml(state),
        "Corefile": corefile(state),
        "cni/10-bridge.conflist": cni_conflist(state),
    }
    for name, text in texts.items():
        path = state.run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def containerd_toml(state: State) -> str:
    return f"""\
version = 2
root = "{state.containerd}"
state = "{state.run}/containerd"
[grpc]
  address = "{state.containerd_socket}"
[plugins."io.containerd.grpc.v1.cri"]
  # Where the machine does not hold CAP_SYS_RESOURCE no sandbox starts without this ("can't get final child's PID").
  restrict_oom_score_adj = true
  # Below our own folder, so that `down` finds them after a crash.
  netns_mounts_under_state_dir = true
  sandbox_image = "{PAUSE_IMAGE}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{state.run}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      Root = "{state.run}/runc"
"""


def kubelet_yaml(state: State) -> str:
    """No image is ever collected (they are loaded by hand), and no rule is written beside kube-proxy's."""
    return f"""\
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: {GATEWAY}
healthzBindAddress: 127.0.0.1
containerRuntimeEndpoint: "unix://{state.containerd_socket}"
cgroupDriver: cgroupfs
cgroupRoot: "/{state.cgroup}"
cpuManagerPolicy: none
failCgroupV1: false
failSwapOn: false
makeIPTablesUtilChains: false
clusterDNS: ["{GATEWAY}"]
clusterDomain: cluster.local
resolvConf: ""
tlsCertFile: "{state.pki}/kubelet.crt"
tlsPrivateKeyFile: "{state.pki}/kubelet.key"
authentication:
  anonymous: {{enabled: false}}
  webhook: {{enabled: true}}
  x509: {{clientCAFile: "{state.pki}/ca.crt"}}
authorization: {{mode: Webhook}}
evictionHard: {{imagefs.available: "1%", nodefs.available: "1%", memory.available: 100Mi}}
systemReserved: {{memory: 1536Mi}}
imageGCHighThresholdPercent: 100
podLogsDir: "{state.pod_logs}"
"""


def proxy_yaml(state: State) -> str:
    """All traffic to a Service is masqueraded: pods answer each other directly over the bridge, where it is not undone.

    (A kernel with bridge-nf-call-iptables would undo it there, but not every machine has that module.)
    """
    return f"""\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
nftables: {{masqueradeAll: true}}
clientConnection: {{kubeconfig: "{state.run}/proxy.kubeconfig"}}
clusterCIDR: {PODS}
hostnameOverride: local
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}
"""


def corefile(state: State) -> str:
    """Names of the cluster only: there is no way out, so no name from outside is looked up."""
    return f"""\
.:53 {{
    bind {GATEWAY}
    errors
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {state.run}/admin.kubeconfig local
    }}
    cache 5
}}
"""


def cni_conflist(state: State) -> str:
    return f"""\
{{"cniVersion": "1.0.0", "name": "bridge", "plugins": [{{"type": "bridge", "bridge": "{BRIDGE}", "isGateway": true,
"hairpinMode": true, "ipam": {{"type": "host-local", "ranges": [[{{"subnet": "{NODE_PODS}"}}]],
"routes": [{{"dst": "0.0.0.0/0"}}], "dataDir": "{state.run}/cni-addresses"}}}}]}}
"""


def node_commands(state: State) -> dict[str, list[str]]:
    """Component -> command line, in the order to start them; containerd runs already."""
    run: Path = state.run
    return {
        "kubelet": [
            "kubelet",
            f"--kubeconfig={run}/node.kubeconfig",
            f"--config={run}/kubelet.yaml",
            f"--root-dir={state.root}/kubelet",
            "--hostname-override=local",
            f"--node-ip={GATEWAY}",
        ],
        "kube-proxy": ["kube-proxy", f"--config={run}/proxy.yaml"],
        "coredns": ["coredns", "-conf", f"{run}/Corefile"],
    }
