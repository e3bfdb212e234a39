"""A random campaign of faults on hosts of their own: `tox -e campaign -- --faults 1000 --jobs 5000 --seed 1`.

Needs root, `ip`, `tc` and `nft`, as `tox -e hosts`. The ledger is judged by a program of its own at the end.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from campaign.runner import Campaign, Plan
from campaign.service import ALL_HOSTS, PREFIX, Service
from hosts.cluster import CLIENTS, TOOLS, Cluster
from hosts.network import Network


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="campaign")
    parser.add_argument("--faults", type=int, default=1000, help="proved ones, at least")
    parser.add_argument("--jobs", type=int, default=5000, help="at least")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--burst", type=int, default=40, help="faults between two calms")
    parser.add_argument("--folder", type=Path, help="for ledger and logs, made; by default one in /tmp")
    return parser.parse_args()


def main() -> int:
    given = _arguments()
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if os.geteuid() != 0 or missing:
        print(f"campaign: needs root and {', '.join(TOOLS)}; missing: {missing or 'root'}", file=sys.stderr)
        return 2
    if given.folder is not None and given.folder.exists():
        print(f"campaign: --folder: {given.folder} is there already: name a new one", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="campaign-")) if given.folder is None else given.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    plan = Plan(jobs=given.jobs, faults=given.faults, seed=given.seed, burst=given.burst)
    with (
        Network(ALL_HOSTS, PREFIX) as network,
        network.inside(CLIENTS),
        Cluster(network, folder) as cluster,
    ):
        service = Service.on_hosts(cluster, folder, given.seed)
        cluster.start()
        ledger = Campaign(service, plan, folder).run()
    print(f"ledger: {ledger}", flush=True)
    return subprocess.run([sys.executable, "-m", "campaign.judge", str(ledger)], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
