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

FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")


def tool(*command: str, stdin: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs a system program. Raises ClusterProblem with its own words when it fails and `check` is set."""
    done = subprocess.run(
        list(command), input=stdin, capture_output=True, text=True, check=False, env={"PATH": SEARCH_PATH}
    )
    if check and done.returncode != 0:
        raise ClusterProblem(f"`{' '.join(command)}` failed: {(done.stderr or done.stdout).strip()}")
    return done


def set_up(run: Path) -> None:
    """Rules first, before anything runs, then the bridge with the node's address, then forwarding."""
    tool("nft", "-f", "-", stdin=RULES)
    if BRIDGE not in (name for _, name in socket.if_nameindex()):
        tool("ip", "link", "add", BRIDGE, "type", "bridge")
        tool("ip", "address", "add", f"{GATEWAY}/24", "dev", BRIDGE)
    tool("ip", "link", "set", BRIDGE, "up")
    before = run / "ip_forward"
    if not before.exists():
        before.write_text(FORWARDING.read_text())
    if FORWARDING.read_text().strip() != "1":
        FORWARDING.write_text("1\n")


def tear_down(run: Path) -> None:
    """Takes away bridge, rules and kube-proxy's tables, and sets forwarding to what it was. Nothing to do is fine."""
    for family in ("ip", "ip6"):
        tool("nft", "delete", "table", family, "kube-proxy", check=False)
    tool("ip", "link", "delete", BRIDGE, check=False)
    tool("nft", "delete", "table", "inet", "finetune_cluster", check=False)
    before = run / "ip_forward"
    if before.exists():
        FORWARDING.write_text(before.read_text())
        before.unlink()
