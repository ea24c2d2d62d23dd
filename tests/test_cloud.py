"""The recipes in docs/cloud: their fields, and their commands, which bash runs with a stand-in for Python."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import run_bert
import tyro
import yaml

from gafreeze_jax.engine import rendezvous
from gafreeze_jax.report.folder_format import OPTIONS_OF_PROCESSES

ROOT = Path(__file__).parent.parent
FILES = {path.name: path for path in (ROOT / "docs" / "cloud").glob("*.yaml")}
SKY, JOBSETS = ("sky-gpu.yaml", "sky-tpu.yaml"), ("jobset-gpu.yaml", "jobset-tpu.yaml")
ADDRESSES = ["10.0.0.7", "10.0.0.8"]
SPOT = "cloud.google.com/gke-spot"


def read(name):
    return yaml.safe_load(FILES[name].read_text(encoding="utf-8"))


def only(items):
    (item,) = items
    return item


def job_of(jobset):
    """The job of a JobSet, its pods, and their container."""
    job = only(jobset["spec"]["replicatedJobs"])["template"]["spec"]
    pods = job["template"]["spec"]
    return job, pods, only(pods["containers"])


def options_of(script, folder, **environment):
    """What the experiment is given when bash runs a script; `exec` is the last thing in it."""
    stand_in = f"#!/bin/bash\nexec {sys.executable} -c 'import json, sys; print(json.dumps(sys.argv[1:]))' \"$@\"\n"
    for place in (folder / ".venv" / "bin" / "python", folder / "python"):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(stand_in)
        place.chmod(0o755)
    environment |= {"PATH": f"{folder}:/usr/bin:/bin"}
    script = f"set -euo pipefail\n{script}\necho not reached by exec"
    done = subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=True)
    experiment, *words = json.loads(done.stdout)
    assert (ROOT / experiment).is_file()
    assert Path(experiment).stem == run_bert.__name__
    return tyro.cli(run_bert.Options, args=words)


def processes(name, folder):
    """The options of every process of a recipe."""
    recipe = read(name)
    if name in SKY:
        num = recipe.get("num_nodes", 1)
        here = {"OUT": "gs://my-bucket/runs/first", "SKYPILOT_NUM_NODES": str(num)}
        here["SKYPILOT_NODE_IPS"] = "\n".join(ADDRESSES[:num])
        return [options_of(recipe["run"], folder, SKYPILOT_NODE_RANK=str(rank), **here) for rank in range(num)]
    job, _, container = job_of(recipe)
    assert container["command"] == ["bash", "-c"]
    script = only(container["args"])
    return [options_of(script, folder, JOB_COMPLETION_INDEX=str(index)) for index in range(job["completions"])]


def test_the_page_names_every_file():
    page = (ROOT / "docs" / "cloud.md").read_text(encoding="utf-8")
    assert set(FILES) == {*SKY, *JOBSETS}
    assert all(f"(cloud/{name})" in page for name in FILES)


@pytest.mark.parametrize("name", [*SKY, *JOBSETS])
def test_all_processes_find_each_other_and_share_a_bucket(name, tmp_path):
    given = processes(name, tmp_path)
    assert {str(options.out) for options in given} == {"gs://my-bucket/runs/first"}
    if len(given) == 1:
        assert {getattr(given[0], option) for option in OPTIONS_OF_PROCESSES[:3]} == {None}
        return
    assert [options.process_id for options in given] == list(range(len(given)))
    assert {options.num_processes for options in given} == {len(given)}
    address = rendezvous._ADDRESS.fullmatch(only({options.coordinator for options in given}))
    if name in SKY:
        assert address["host"] == ADDRESSES[0]
    else:
        jobset = read(name)
        workers = only(jobset["spec"]["replicatedJobs"])["name"]
        assert address["host"] == f"{jobset['metadata']['name']}-{workers}-0-0.{jobset['metadata']['name']}"


@pytest.mark.parametrize("name", SKY)
def test_sky_asks_for_machines_that_may_be_taken_away(name):
    task = read(name)
    assert set(task) <= {"name", "workdir", "num_nodes", "resources", "envs", "setup", "run"}
    resources = task["resources"]
    assert set(resources) <= {"infra", "accelerators", "accelerator_args", "use_spot", "job_recovery"}
    assert resources["infra"] == "gcp"
    assert resources["use_spot"] is True
    assert resources["job_recovery"]["max_restarts_on_errors"] > 0
    assert re.fullmatch(r"(L4|A100|A100-80GB|H100|H200):[1248]|tpu-(v5litepod|v5p|v6e)-[0-9]+", resources["accelerators"])
    assert task["envs"] == {"OUT": None}
    subprocess.run(["bash", "-n"], input=task["setup"], text=True, check=True)
    assert extra_of(task["setup"]) == ("tpu" if "tpu" in name else "cuda12")
    assert (ROOT / task["workdir"] / "requirements.txt").is_file()


def extra_of(setup):
    """The extra that brings JAX for a device; it exists."""
    extra = only(re.findall(r"-e '\.\[(\w+)\]'", setup))
    assert f"\n{extra} = " in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return extra


@pytest.mark.parametrize("name", JOBSETS)
def test_a_jobset_starts_all_pods_again(name):
    jobset = read(name)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    assert set(jobset["spec"]) == {"failurePolicy", "replicatedJobs"}
    assert set(only(jobset["spec"]["replicatedJobs"])) == {"name", "replicas", "template"}
    job, pods, container = job_of(jobset)
    assert job["backoffLimit"] == 0
    assert job["parallelism"] == job["completions"]
    assert pods["restartPolicy"] == "Never"
    assert pods["nodeSelector"][SPOT] == "true"  # a string: labels are
    kind = "tpu" if "tpu" in name else "cuda12"
    assert container["image"].endswith(f"/gafreeze:{kind}")


def test_a_slice_has_as_many_chips_as_its_topology():
    job, pods, container = job_of(read("jobset-tpu.yaml"))
    topology = pods["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = math.prod(map(int, topology.split("x")))
    assert chips == job["completions"] * container["resources"]["limits"]["google.com/tpu"]
    page = (ROOT / "docs" / "cloud.md").read_text(encoding="utf-8")
    assert f"--tpu-topology={topology} --num-nodes={job['completions']}\n" in page


def test_the_gpu_pods_fit_the_node_pool_of_the_page():
    job, pods, container = job_of(read("jobset-gpu.yaml"))
    page = (ROOT / "docs" / "cloud.md").read_text(encoding="utf-8")
    kind, count = pods["nodeSelector"]["cloud.google.com/gke-accelerator"], container["resources"]["limits"]["nvidia.com/gpu"]
    assert f"--accelerator=type={kind},count={count}," in page
    assert f"--machine-type=g2-standard-48 --num-nodes={job['completions']} " in page


def test_the_image_has_what_the_pods_start():
    text = (ROOT / "docs" / "cloud" / "Dockerfile").read_text(encoding="utf-8")
    images = {job_of(read(name))[2]["image"] for name in JOBSETS}
    assert only(re.findall(r"-t (\S+)", text)) in images
    assert only(re.findall(r"^ARG EXTRA=(\w+)", text, re.M)) in {image.rpartition(":")[2] for image in images}
