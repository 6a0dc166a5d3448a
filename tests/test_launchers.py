"""The launchers: their output with --dry-run, and their commands run with fake programs."""

import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

SCRIPTS = pathlib.Path(__file__).parent.parent / "scripts"
TRAIN = ("--config=configs/ar_mem.py:8b", "--config.data.clip.curriculum=((0,61),)")
NEEDED = {
    "launch_ssh.sh": ("--hosts", "a,b"),
    "launch_slurm.sh": ("--nodes", "2"),
    "launch_gke.sh": (
        "--cluster",
        "c",
        "--zone",
        "z",
        "--project",
        "p",
        "--workload",
        "w",
        "--image",
        "i",
        "--tpu-type",
        "v5p-128",
    ),
    "launch_tpu_vm.sh": ("--name", "t", "--zone", "z", "--project", "p", "--image", "i"),
}


def run(
    script: str, *arguments: str, path: pathlib.Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **environment}
    if path is not None:
        environment["PATH"] = f"{path}:{environment['PATH']}"
    return subprocess.run(
        [SCRIPTS / script, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def dry_run(script: str, *arguments: str) -> str:
    result = run(script, *NEEDED[script], *arguments, "--dry-run", "--", *TRAIN)
    assert result.returncode == 0, result.stderr
    return result.stdout


def stand_in(folder: pathlib.Path, name: str, body: str) -> None:
    """Write a fake program of this name, which a script finds first."""
    file = folder / name
    file.write_text(f"#!/usr/bin/env bash\n{body}\n")
    file.chmod(0o755)


@pytest.mark.parametrize("script", NEEDED)
def test_help_and_mistakes(script: str) -> None:
    result = run(script, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("usage: ")
    assert "--dry-run" in result.stdout
    flags = re.findall(r"^  (--[a-z-]+) +[A-Z\"]", result.stdout, re.M)
    assert flags
    mistakes = [NEEDED[script], ("--nonsense", "--dry-run"), ("-\n$(touch x)", "--dry-run")]
    mistakes += [(*NEEDED[script], flag) for flag in flags]
    mistakes += [(*NEEDED[script], flag, "--dry-run", "--", *TRAIN) for flag in flags if flag != "--sbatch"]
    numbers = {"--port", "--nodes", "--gpus", "--cpus", "--restarts", "--slices", "--grace"} & set(flags)
    mistakes += [(*NEEDED[script], flag, bad, "--", *TRAIN) for flag in numbers for bad in ("x[$(touch x)]", "-1")]
    for arguments in mistakes:
        one_sentence(run(script, *arguments))


def one_sentence(result: subprocess.CompletedProcess[str]) -> None:
    assert result.returncode == 2, result.args
    assert result.stderr.startswith("error: "), result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr


def test_ssh_commands() -> None:
    lines = dry_run("launch_ssh.sh", "--folder", "/srv/my jworld", "--port", "5000").splitlines()
    assert len(lines) == 2
    for index, (line, host) in enumerate(zip(lines, "ab", strict=True)):
        words = shlex.split(line)
        assert words[:4] == ["ssh", "-o", "ServerAliveInterval=30", host]
        assert words[5:] == ["<<<$JWORLD_TOKEN", f">>logs/{host}.log", "2>&1", "&"]
        remote = shlex.split(words[4])
        assert remote[:4] == ["cd", "--", "/srv/my jworld", "&&"]
        assert remote[-8:] == [
            ".venv/bin/python",
            "-m",
            "jworld.train",
            *TRAIN,
            "--coordinator=a:5000",
            "--num-processes=2",
            f"--process-id={index}",
        ]


def test_slurm_script(tmp_path: pathlib.Path) -> None:
    printed = dry_run("launch_slurm.sh", "--gpus", "4", "--sbatch", "--partition=x --account=y")
    assert printed.startswith(
        "mkdir -p logs\nsbatch --output=logs/%j.out --partition=x --account=y <<'EOF'\n#!/bin/bash\n#SBATCH "
    )
    for line in ("--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--requeue", "--signal=TERM@120"):
        assert f"#SBATCH {line}\n" in printed
    # The script that sbatch receives, run with a job step that ends with several exit codes.
    stand_in(tmp_path, "sbatch", f'cat > {tmp_path}/job.sh; echo "$@" > {tmp_path}/options')
    result = run(
        "launch_slurm.sh",
        "--logs",
        str(tmp_path / "logs"),
        "--sbatch",
        "--account=y",
        "--restarts",
        "3",
        "--",
        *TRAIN,
        path=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "options").read_text() == f"--output={tmp_path}/logs/%j.out --account=y\n"
    stand_in(
        tmp_path, "srun", f'printf "%s\\n" "$JWORLD_HOSTS" "$JWORLD_TOKEN" "$@" > {tmp_path}/srun.txt; exit "$CODE"'
    )
    stand_in(
        tmp_path, "scontrol", f'case $1 in show) printf "n1\\nn2\\n" ;; *) echo "$@" >> {tmp_path}/requeued ;; esac'
    )
    for code, restarts, queued in (
        (0, 0, False),
        (2, 0, False),
        (1, 0, True),
        (75, 0, True),
        (137, 2, True),
        (75, 3, False),
    ):
        (tmp_path / "requeued").unlink(missing_ok=True)
        environment = {
            **os.environ,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "CODE": str(code),
            "SLURM_JOB_ID": "7",
            "SLURM_RESTART_COUNT": str(restarts),
            "SLURM_JOB_NODELIST": "n[1-2]",
        }
        job = subprocess.run(
            ["bash", tmp_path / "job.sh"], env=environment, capture_output=True, text=True, check=False
        )
        assert job.returncode == code, job.stderr
        assert (tmp_path / "requeued").exists() == queued
    called = (tmp_path / "srun.txt").read_text().splitlines()
    assert called[0] == "n1,n2"
    assert re.fullmatch("[0-9a-f]{64}", called[1])
    assert called[-5:] == [".venv/bin/python", "-m", "jworld.train", *TRAIN]


def test_gke_command() -> None:
    words = shlex.split(dry_run("launch_gke.sh", "--slices", "2", "--storage", "bucket"))
    assert words[:3] == ["xpk", "workload", "create"]
    command = words.pop()
    assert words.pop().startswith("--env-file=<")
    assert set(words[3:]) == {
        "--cluster=c",
        "--zone=z",
        "--project=p",
        "--workload=w",
        "--docker-image=i",
        "--tpu-type=v5p-128",
        "--num-slices=2",
        "--storage=bucket",
        "--max-restarts=50",
        "--restart-on-exit-codes=1,75",
        "--termination-grace-period-seconds=120",
    }
    assert shlex.split(command.removeprefix("--command=")) == ["exec", "python", "-m", "jworld.train", *TRAIN]
    gpu = shlex.split(dry_run("launch_gke.sh", "--device-type", "h100-80gb-8", "--nodes", "2"))
    assert {"--device-type=h100-80gb-8", "--num-nodes=2"} <= set(gpu)
    assert gpu[-1].endswith("--num-processes=$NNODES --process-id=$NODE_RANK")


def test_tpu_vm_command() -> None:
    copy, command = dry_run("launch_tpu_vm.sh", "--mount", "/mnt/x").splitlines()
    assert shlex.split(copy)[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "scp"]
    assert shlex.split(copy)[-1] == "t:.jworld-token"
    words = shlex.split(command)
    assert words[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh"]
    assert {"t", "--zone=z", "--project=p", "--worker=all"} == set(words[5:-1])
    remote = shlex.split(words[-1].removeprefix("--command="))
    assert remote[remote.index("run") :] == [
        "run",
        "--env=JWORLD_TOKEN",
        "--detach",
        "--name",
        "jworld",
        "--net=host",
        "--privileged",
        "--stop-timeout=300",
        "--env=JWORLD_START_SECONDS=900",
        "--volume=/dev/shm/jworld:/dev/shm/jworld",
        "--volume=/mnt/x:/mnt/x",
        "i",
        "scripts/run_until_done.sh",
        "20",
        "python",
        "-m",
        "jworld.train",
        *TRAIN,
    ]
    place = ("--name", "t", "--zone", "z", "--project", "p", "--dry-run")
    assert "--output-directory=here" in run("launch_tpu_vm.sh", *place, "--logs", "here").stdout
    assert "docker stop --time 300 jworld" in run("launch_tpu_vm.sh", *place, "--stop").stdout


@pytest.mark.parametrize(("codes", "starts"), [("0", 1), ("75 137 0", 3), ("1 2", 2), ("75 75 75 75 75", 3)])
def test_run_until_done(tmp_path: pathlib.Path, codes: str, starts: int) -> None:
    stand_in(
        tmp_path,
        "work",
        f'echo x >> {tmp_path}/starts; set -- {codes}; shift $(($(wc -l < {tmp_path}/starts) - 1)); exit "$1"',
    )
    result = run("run_until_done.sh", "2", str(tmp_path / "work"), PAUSE_SECONDS="0")
    assert (tmp_path / "starts").read_text() == "x\n" * starts
    assert result.returncode == int(codes.split()[starts - 1])


@pytest.mark.parametrize("restarts", ["-1", "x[$(touch x)]", "", "9" * 10])
def test_run_until_done_checks_its_number(restarts: str) -> None:
    one_sentence(run("run_until_done.sh", restarts, "true"))


def test_run_until_done_forwards_sigterm(tmp_path: pathlib.Path) -> None:
    stand_in(tmp_path, "work", "trap 'echo saved; exit 75' TERM; echo up; while :; do sleep 0.1; done")
    process = subprocess.Popen(
        [SCRIPTS / "run_until_done.sh", "5", tmp_path / "work"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    printed, errors = process.communicate(timeout=20)
    assert (process.returncode, printed, errors) == (75, "saved\n", "")


def test_ssh_runs_until_all_are_done_and_stops_all(tmp_path: pathlib.Path) -> None:
    """`ssh` is replaced by a shell, the interpreter by one that waits for SIGTERM."""
    stand_in(tmp_path, "ssh", 'while [[ $1 == -o ]]; do shift 2; done; exec bash -c "$2"')
    stand_in(tmp_path, "python", "trap 'echo saved; exit 75' TERM; echo \"up $@\"; while :; do sleep 0.1; done")
    port = str(20000 + os.getpid() % 10000)
    process = subprocess.Popen(
        [
            SCRIPTS / "launch_ssh.sh",
            "--hosts",
            "here",
            "--python",
            tmp_path / "python",
            "--logs",
            tmp_path / "logs",
            "--port",
            port,
            "--folder",
            SCRIPTS.parent,
            "--",
            *TRAIN,
        ],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        text=True,
    )
    log = tmp_path / "logs" / "here.log"
    deadline = time.monotonic() + 20
    while not (log.exists() and "up -m jworld.train" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=20)
    assert process.returncode == 75
    assert "ended with exit code 75" in printed
    assert log.read_text().endswith("saved\n")
    assert f"--coordinator=here:{port}" in log.read_text()


#: Arguments that a shell would change if they were not quoted.
HOSTILE = (
    "a b",
    "it's",
    'a "b"',
    "a\nb",
    "$(touch hit)",
    "`touch hit`",
    "; touch hit",
    "$HOME",
    "*",
    "-n",
    "a\\b",
    "é",
    "#x",
    "~",
    "&",
    "!!",
    "",
)


def printing(name: str) -> str:
    """Return a fake interpreter's body that writes the arguments after -m jworld.train and the token, NUL-separated."""
    return f'shift 2; printf "%s\\0" "$JWORLD_TOKEN" "$@" > "{name}"'


def received(file: pathlib.Path) -> list[str]:
    return file.read_text().split("\0")[:-1]


def test_ssh_passes_hostile_arguments(tmp_path: pathlib.Path) -> None:
    stand_in(
        tmp_path,
        "ssh",
        f'while [[ $1 == -o ]]; do shift 2; done; printf "%s\\n" "$@" >> {tmp_path}/lines; exec bash -c "$2"',
    )
    folder = tmp_path / "a 'b' $(touch hit)\nc"
    (folder / "scripts").mkdir(parents=True)
    (folder / "scripts" / "run_until_done.sh").symlink_to(SCRIPTS / "run_until_done.sh")
    python = tmp_path / "my $(touch hit) python"
    stand_in(tmp_path, python.name, printing("received"))
    logs = tmp_path / "logs $(touch hit)"
    flags = ("--folder", str(folder), "--python", str(python), "--logs", str(logs), "--port", "9")
    result = run("launch_ssh.sh", "--hosts", "me@here", *flags, "--", *HOSTILE, path=tmp_path, JWORLD_TOKEN="se cret")
    assert result.returncode == 0, (result.stderr, (logs / "me@here.log").read_text())
    token, *arguments = received(folder / "received")
    assert token == "se cret"
    assert arguments == [*HOSTILE, "--coordinator=here:9", "--num-processes=1", "--process-id=0"]
    assert "se cret" not in (tmp_path / "lines").read_text()
    assert not list(tmp_path.rglob("hit"))
    for hosts in ("-oProxyCommand=x", "a b", "a,$(touch hit)", "a\nb", "a,,b"):
        one_sentence(run("launch_ssh.sh", "--hosts", hosts, "--", "x", path=tmp_path))


def test_slurm_passes_hostile_arguments(tmp_path: pathlib.Path) -> None:
    stand_in(tmp_path, "sbatch", f'cat > {tmp_path}/job.sh; printf "%s\\0" "$@" > {tmp_path}/options')
    stand_in(tmp_path, "scontrol", "echo n1")
    stand_in(tmp_path, "srun", 'while [[ $1 == --* ]]; do [[ $1 != --output=* ]] || echo "$1"; shift; done; exec "$@"')
    python = tmp_path / "my $(touch hit) python"
    stand_in(tmp_path, python.name, printing(f"{tmp_path}/received"))
    logs = tmp_path / "logs 100% $(touch hit)"
    flags = ("--python", str(python), "--logs", str(logs), "--sbatch", "--comment='a b' --account=$(touch_hit)")
    result = run("launch_slurm.sh", *flags, "--", *HOSTILE, path=tmp_path)
    assert result.returncode == 0, result.stderr
    pattern = str(logs).replace("%", "%%")
    assert received(tmp_path / "options") == [f"--output={pattern}/%j.out", "--comment=a b", "--account=$(touch_hit)"]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "n1"}
    job = subprocess.run(
        ["bash", tmp_path / "job.sh"], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert f"--output={pattern}/%j-%t.log" in job.stdout
    assert received(tmp_path / "received")[1:] == list(HOSTILE)
    assert not list(tmp_path.rglob("hit"))
    one_sentence(run("launch_slurm.sh", "--sbatch", "--comment='a", "--", "x", path=tmp_path))
    one_sentence(run("launch_slurm.sh", "--time", "1\n#SBATCH --x", "--", "x", path=tmp_path))


def test_tpu_vm_passes_hostile_arguments(tmp_path: pathlib.Path) -> None:
    stand_in(
        tmp_path,
        "gcloud",
        f"""printf "%s\\n" "$@" >> {tmp_path}/lines
case $4 in
  scp) cp "${{@: -2:1}}" {tmp_path}/.jworld-token; stat -c %a {tmp_path}/.jworld-token ;;
  ssh) last=${{@: -1}}; cd {tmp_path} && exec bash -c "${{last#--command=}}" ;;
esac""",
    )
    stand_in(tmp_path, "sudo", 'while [[ $1 == --* ]]; do shift; done; exec "$@"')
    stand_in(
        tmp_path,
        "docker",
        f"[[ $1 == run ]] || exit 0; shift; while [[ $1 == -* ]]; do [[ $1 != --name ]] || shift; shift; done; shift; "
        f'exec "{SCRIPTS.parent}/$1" "${{@:2}}"',
    )
    stand_in(tmp_path, "python", printing(f"{tmp_path}/received"))
    result = run("launch_tpu_vm.sh", *NEEDED["launch_tpu_vm.sh"], "--", *HOSTILE, path=tmp_path, JWORLD_TOKEN="secret")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("600\n")
    assert received(tmp_path / "received") == ["secret", *HOSTILE]
    assert "secret" not in (tmp_path / "lines").read_text()
    assert not (tmp_path / ".jworld-token").exists()
    assert not list(tmp_path.rglob("hit"))
    for flag, value in (("--name", "-x"), ("--name", "a b"), ("--mount", "relative"), ("--mount", "/a:/b")):
        one_sentence(run("launch_tpu_vm.sh", *NEEDED["launch_tpu_vm.sh"], flag, value, "--", "x", path=tmp_path))


def test_gke_passes_hostile_arguments(tmp_path: pathlib.Path) -> None:
    stand_in(
        tmp_path,
        "xpk",
        f"""printf "%s\\n" "$@" > {tmp_path}/lines
for word; do case $word in
  --env-file=*) cat "${{word#*=}}" > {tmp_path}/variables; stat -c %a "${{word#*=}}"; echo "${{word#*=}}" ;;
  --command=*) bash -c "${{word#*=}}" ;;
esac; done""",
    )
    stand_in(tmp_path, "python", printing(f"{tmp_path}/received"))
    fine = [argument for argument in HOSTILE if "\n" not in argument]
    result = run("launch_gke.sh", *NEEDED["launch_gke.sh"], "--", *fine, path=tmp_path, JWORLD_TOKEN="secret")
    assert result.returncode == 0, result.stderr
    mode, file, *_ = result.stdout.splitlines()
    assert mode == "600"
    assert not pathlib.Path(file).exists()
    assert (tmp_path / "variables").read_text() == "JWORLD_START_SECONDS=900\nJWORLD_TOKEN=secret\n"
    assert "secret" not in (tmp_path / "lines").read_text()
    assert received(tmp_path / "received")[1:] == fine
    one_sentence(run("launch_gke.sh", *NEEDED["launch_gke.sh"], "--", *HOSTILE, path=tmp_path))


def test_shellcheck() -> None:
    shellcheck = pathlib.Path(sys.executable).parent / "shellcheck"
    if not shellcheck.is_file():
        pytest.skip("shellcheck is not installed")
    scripts = sorted(str(path.relative_to(SCRIPTS.parent)) for path in SCRIPTS.glob("*.sh"))
    result = subprocess.run(
        [shellcheck, "--external-sources", *scripts], cwd=SCRIPTS.parent, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout
