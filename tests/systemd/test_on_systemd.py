"""The service under a booted systemd, from the installation to its removal. In the order of this file."""

import pytest
from systemd.machine import UNITS, WORKER_REQUIREMENTS, until

BROKER, FRONTEND, WORKER = UNITS
HOME = "/usr/local/lib/flux-server"


def test_nothing_is_written_beside_destdir(host):
    before = host.run("find", "/etc", "/usr", "/var/lib", "-newer", "/mnt/Makefile", "-name", "*flux*").stdout
    host.make("install", "DESTDIR=/root/staged", "COMPONENTS=broker", "TRACING=1", WORKER_REQUIREMENTS)
    after = host.run("find", "/etc", "/usr", "/var/lib", "-newer", "/mnt/Makefile", "-name", "*flux*").stdout
    assert before == after == ""
    staged = host.path("/root/staged")
    units = {file.name for file in (staged / "usr/local/lib/systemd/system").iterdir()}
    assert units == {"flux-broker.service", "flux-server.target"}
    shared = {file.name for file in (staged / "usr/local/share/flux-server").glob("*/*")}
    assert shared >= {"flux-server.rules.yml", "flux-server.json"}
    assert can_trace(f"/root/staged{HOME}", host)
    assert host.run("grep", "-rl", "/root/staged", "/root/staged", check=False).stdout == ""
    host.make("uninstall", "DESTDIR=/root/staged")
    left = host.run("find", "/root/staged", "-type", "f").stdout.split()
    assert left == ["/root/staged/etc/flux-server/broker.env"]


def test_it_installs_and_keeps_settings(installed):
    changed = installed.path("/etc/flux-server/worker.env").read_text()
    installed.make("install", WORKER_REQUIREMENTS)
    assert installed.path("/etc/flux-server/worker.env").read_text() == changed
    assert installed.run("stat", "-c", "%a %U", "/etc/flux-server/worker.env").stdout == "640 root\n"
    assert installed.run("stat", "-c", "%a %U", "/etc/flux-server/keys").stdout == "700 root\n"
    assert {installed.state(unit) for unit in UNITS} == {"inactive"}, "nothing is started unasked"
    assert not can_trace(HOME, installed)


def can_trace(home, machine):
    return any(machine.path(home).glob("lib/python3*/site-packages/opentelemetry"))


def test_it_draws_and_says_how_it_does(service):
    assert service.draw() == "image"
    assert service.draw("a stranger").startswith("UNAUTHENTICATED")
    service.until_status(BROKER, "serving: 1 worker (1 ready), 1 frontend, 0 running, 0 waiting")
    service.until_status(FRONTEND, "serving: 1 workers ready, 0 calls open")
    service.until_status(WORKER, "ready with fake on cpu; idle")
    call = service.begin(steps=20)
    service.until_drawing(call)
    assert call.outcome() == "image"


def test_processes_may_do_no_more_than_they_need(service):
    for unit, user in ((BROKER, "flux-broker"), (FRONTEND, "flux-frontend"), (WORKER, "flux-worker")):
        status = service.run("cat", f"/proc/{service.main_pid(unit)}/status").stdout
        facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2")
        assert int(facts["CapBnd"], 16) == int(facts["CapEff"], 16) == 0
        assert facts["Uid"].split()[0] == service.run("id", "-u", user).stdout.strip()
    for socket in ("frontends", "workers"):
        connect = f"import socket; socket.socket(socket.AF_UNIX).connect('/run/flux-server/{socket}')"
        stranger = service.run(
            "setpriv", "--reuid=nobody", "--clear-groups", "python3", "-c", connect, check=False
        )
        assert "PermissionError" in stranger.stderr


def test_a_worker_is_ready_only_with_its_model_however_long_that_takes(service):
    service.systemctl("stop", WORKER)
    service.drop_in(WORKER, "slow", "Environment=FLUX_WORKER_FAKE_LOAD_S=14", "TimeoutStartSec=10s")
    service.systemctl("start", "--no-block", WORKER)
    service.until_status(WORKER, "loading: pretending to load, ")
    assert service.state(WORKER) == "activating"
    assert service.draw().startswith("UNAVAILABLE")
    service.until_active(WORKER)
    assert service.restarts(WORKER) == 0, "longer than its unit allows, but it went on"
    service.until_drawn()


@pytest.mark.parametrize("unit", UNITS)
def test_a_killed_process_is_replaced(service, unit):
    pid, restarts = service.main_pid(unit), service.restarts(unit)
    service.systemctl("kill", "--kill-whom=main", "--signal=KILL", unit)
    service.until_restarted(unit, pid)
    assert service.restarts(unit) == restarts + 1
    service.until_drawn()


@pytest.mark.parametrize("unit", UNITS)
def test_a_process_that_stands_still_is_replaced(service, unit):
    service.drop_in(unit, "watchdog", "WatchdogSec=3s", "TimeoutAbortSec=2s")
    service.systemctl("restart", unit)
    service.until_active(unit)
    pid = service.main_pid(unit)
    service.systemctl("kill", "--kill-whom=main", "--signal=STOP", unit)
    service.until_restarted(unit, pid)
    assert f"{unit}: Watchdog timeout" in service.run("journalctl", "--no-pager", f"--unit={unit}").stdout
    service.until_drawn()


def test_no_process_is_left_behind_by_a_killed_worker(service):
    def processes() -> set[str]:
        return set(service.run("pgrep", "-u", "flux-worker", check=False).stdout.split())

    before = processes()
    assert len(before) >= 3, "the worker, its forkserver, its engine process"
    service.systemctl("kill", "--kill-whom=main", "--signal=KILL", WORKER)
    until("all are gone", lambda: not before & processes())
    service.until_active(WORKER)


def test_what_is_drawn_is_finished_when_its_worker_is_stopped(service):
    call = service.begin(steps=20)
    service.until_drawing(call)
    service.systemctl("stop", WORKER)
    assert call.outcome() == "image"
    assert service.show(WORKER, "Result") == "success"


def test_a_restart_of_everything_under_load_loses_no_image(service):
    call = service.begin(steps=20)
    service.until_drawing(call)
    service.systemctl("restart", "flux-server.target")
    assert call.outcome() == "image"
    assert {service.show(unit, "Result") for unit in UNITS} == {"success"}
    service.until_drawn()


def test_a_restart_of_the_broker_under_load_loses_no_image(service):
    call = service.begin(steps=20)
    service.until_drawing(call)
    service.systemctl("restart", BROKER)
    assert call.outcome() == "image"


def test_a_bad_setting_is_no_reason_to_try_again(service):
    service.drop_in(WORKER, "bad", "Environment=FLUX_WORKER_THREADS=many")
    service.run("systemctl", "restart", WORKER, check=False)
    until("it has failed", lambda: service.state(WORKER) == "failed")
    assert (service.show(WORKER, "ExecMainStatus"), service.restarts(WORKER)) == ("78", 0)
    assert "--threads (FLUX_WORKER_THREADS): 'many'" in service.journal(WORKER)


@pytest.mark.parametrize("unit", UNITS)
def test_a_reload_ends_nothing(service, unit):
    pid = service.main_pid(unit)
    call = service.begin(steps=20)
    service.until_drawing(call)
    service.systemctl("reload", unit)
    assert call.outcome() == "image"
    assert service.main_pid(unit) == pid


def test_clients_come_and_go_without_a_restart(service):
    pid = service.main_pid(FRONTEND)
    service.write_api_keys("client1", "client3")
    service.systemctl("reload", FRONTEND)
    until("the new client is let in", lambda: service.draw("client3") == "image")
    assert service.draw("client2").startswith("UNAUTHENTICATED")
    service.write_api_keys("client1", "client2")
    service.systemctl("reload", FRONTEND)
    until("the old client is let in", lambda: service.draw("client2") == "image")
    assert service.main_pid(FRONTEND) == pid


def test_keys_come_and_go_without_a_restart(service):
    folder, public = "/etc/flux-server/keys", {}
    for name in ("broker", "frontend", "worker"):
        service.run("flux-keys", "make", name, f"--folder={folder}")
        public[name] = service.run("flux-keys", "show", f"{folder}/{name}.key_secret").stdout.split()[0]
    lines = [f"{role} {role} {public[role]}\n" for role in ("frontend", "worker")]
    authorized = service.path("/etc/flux-server/authorized_keys")
    authorized.write_text("".join(lines))
    service.path("/etc/flux-server/known_brokers").write_text(f"127.0.0.1 {public['broker']}\n")
    for_frontends, for_workers = "tcp://127.0.0.1:5560", "tcp://127.0.0.1:5561"
    endpoints = {"FLUX_BROKER_FRONTENDS_ENDPOINT": for_frontends, "FLUX_BROKER_WORKERS_ENDPOINT": for_workers}
    service.drop_in_example(BROKER, "curve-broker.conf", **endpoints)
    service.drop_in_example(FRONTEND, "curve-frontend.conf", FLUX_FRONTEND_BROKER_ENDPOINTS=for_frontends)
    service.drop_in_example(WORKER, "curve-worker.conf", FLUX_WORKER_BROKER_ENDPOINTS=for_workers)
    service.systemctl("restart", "flux-server.target")
    service.until_drawn()
    pids = [service.main_pid(unit) for unit in UNITS]

    authorized.write_text(lines[0])
    service.systemctl("reload", BROKER)
    service.until_status(BROKER, "0 workers (0 ready), 1 frontend")
    assert service.draw().startswith("UNAVAILABLE")
    authorized.write_text("nonsense\n")
    service.systemctl("reload", BROKER)
    until("the journal says so", lambda: f"{authorized.name}: line 1: " in service.journal(BROKER))
    authorized.write_text("".join(lines))
    service.systemctl("reload", BROKER)
    service.until_drawn()
    assert [service.main_pid(unit) for unit in UNITS] == pids


def test_after_a_reboot_it_serves_again(service):
    service.reboot()
    for unit in UNITS:
        service.until_active(unit)
    service.until_drawn()


def test_an_uninstallation_leaves_settings_and_models(service):
    model = service.path("/var/lib/flux-server/hub/a-model")
    model.write_text("weights")
    service.make("uninstall")
    assert service.run("pgrep", "-f", HOME, check=False).stdout == ""
    assert model.read_text() == "weights"
    assert "client1" in service.path("/etc/flux-server/api_keys.toml").read_text()
    left = service.run("find", "/usr", "/etc/systemd", "-name", "*flux*").stdout
    assert left == ""
    assert service.show(BROKER, "LoadState") == "not-found"
