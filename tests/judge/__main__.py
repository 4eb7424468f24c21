"""`python -m tests.judge`: builds the judge, where Go is there or can be fetched; else says why not."""

import sys

from tests.cluster.problem import ClusterProblem
from tests.judge import build

try:
    build()
except ClusterProblem as problem:
    print(f"The tests that ask kstatus and Prometheus are skipped: {problem}", file=sys.stderr)
