"""Waits until so many nodes have joined the Ray cluster that RAY_ADDRESS names: wait_for_ray.py NODES SECONDS."""

import logging
import os
import sys
import time

import ray


def main(nodes: int, seconds: float) -> int:
    """Exit code: 0 when all are there, 71 (another start may work) when they are not within the time."""
    deadline, there = time.monotonic() + seconds, 0
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
        while there < nodes and time.monotonic() < deadline:
            there = sum(node["Alive"] for node in ray.nodes())
            time.sleep(0.2)
    except Exception as error:  # Ray's own, of many kinds, while a cluster comes up or goes down
        print(f"curate: the Ray cluster at {os.environ['RAY_ADDRESS']} does not answer: {error}", file=sys.stderr)
        return 71
    if there < nodes:
        print(f"curate: {there} of {nodes} nodes joined the Ray cluster within {seconds:g} s", file=sys.stderr)
        return 71
    resources = ray.cluster_resources()
    print(
        f"curate: Ray on {nodes} nodes, {resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs", flush=True
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2])))
