"""The node's network: one bridge, and rules that let nothing of the cluster off the machine."""

import socket
import subprocess
from pathlib import Path

from tests.cluster.packages import SEARCH_PATH
from tests.cluster.problem import ClusterProblem

BRIDGE = "finetune0"
GATEWAY = "10.244.0.1"
"""The node's address: the bridge's, which exists on every machine alike and is seen from nowhere else."""
NODE_PODS = "10.244.0.0/24"
PODS = "10.244.0.0/16"
SERVICES = "10.96.0.0/16"

RULES = f"""\
table inet finetune_cluster
delete table inet finetune_cluster
table inet finetune_cluster {{
  chain forward {{ type filter hook forward priority -10; iifname "{BRIDGE}" oifname != "{BRIDGE}" drop; }}
  chain out {{ type filter hook postrouting priority 0;
    ip daddr {{ {SERVICES}, {PODS} }} oifname != {{ "{BRIDGE}", "lo" }} drop; }}
}}
"""
"""Pods have no way out, and a packet for a pod or a Service that nobody answers for dies here. `table` before `delete`
makes the deletion work whether the table is there or not."""

OURS = "ip_forward"
"""The file in `run` that says that interface and rules are ours; it holds what forwarding was before."""

FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")


def tool(*command: str, stdin: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs a system program. Raises ClusterProblem with its own words when it fails and `check` is set."""
    done = subprocess.run(
        list(command), input=stdin, capture_output=True, text=True, check=False, env={"PATH": SEARCH_PATH}
    )
    if check and done.returncode != 0:
        raise ClusterProblem(f"`{' '.join(command)}` failed: {(done.stderr or done.stdout).strip()}")
    return done


def refuse_strangers() -> None:
    """Raises ClusterProblem when the bridge or kube-proxy's rules are there though no cluster of ours is up.

    There is one of each on a machine, and to take them over would break whoever made them.
    """
    if BRIDGE in (name for _, name in socket.if_nameindex()):
        raise ClusterProblem(
            f"The interface {BRIDGE} belongs to another local cluster: take that one down (with the XDG_CACHE_HOME "
            f"that it was started with), or, if its folder is gone, type: sudo ip link delete {BRIDGE}"
        )
    if tool("nft", "list", "table", "ip", "kube-proxy", check=False).returncode == 0:
        raise ClusterProblem(
            "Another kube-proxy has its rules on this machine: stop that Kubernetes node first, or, if it is gone, "
            "type: sudo nft delete table ip kube-proxy"
        )


def set_up(run: Path) -> None:
    """Rules first, before anything runs, then the bridge with the node's address, then forwarding."""
    # First of all, for it marks interface and rules as ours: `tear_down` then knows that it may.
    (run / OURS).write_text(FORWARDING.read_text())
    tool("nft", "-f", "-", stdin=RULES)
    tool("ip", "link", "add", BRIDGE, "type", "bridge")
    tool("ip", "address", "add", f"{GATEWAY}/24", "dev", BRIDGE)
    tool("ip", "link", "set", BRIDGE, "up")
    if FORWARDING.read_text().strip() != "1":
        FORWARDING.write_text("1\n")


def tear_down(run: Path) -> None:
    """Takes away bridge, rules and kube-proxy's tables, and sets forwarding to what it was; only if we made them."""
    if not (run / OURS).exists():
        return
    for family in ("ip", "ip6"):
        tool("nft", "delete", "table", family, "kube-proxy", check=False)
    tool("ip", "link", "delete", BRIDGE, check=False)
    tool("nft", "delete", "table", "inet", "finetune_cluster", check=False)
    FORWARDING.write_text((run / OURS).read_text())
    (run / OURS).unlink()
