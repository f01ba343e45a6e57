"""OpenSSH's messages as kinds and sentences."""

from __future__ import annotations

import pickle
import re

import pytest

from kit.machine.cases import find_wrong
from roost.scheduler.backends.ssh.problems import HostProblem, explain, explain_end, explain_python
from roost.scheduler.errors import BackendUnavailable, from_remote

_CHANGED = """\
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!
Someone could be eavesdropping on you right now (man-in-the-middle attack)!
It is also possible that a host key has just been changed.
The fingerprint for the ED25519 key sent by the remote host is
SHA256:o5DVtcRyRNaQ4RxgfiqxsIRPxOnhZpVnFmXx0DqbHbA.
Please contact your system administrator.
Add correct host key in /home/ada/.ssh/known_hosts to get rid of this message.
Offending ECDSA key in /home/ada/.ssh/known_hosts:7
  remove with:
  ssh-keygen -f "/home/ada/.ssh/known_hosts" -R "n1.example.org"
Host key for n1.example.org has changed and you have requested strict checking.
Host key verification failed.
"""

MESSAGES = [
    # tests/clusters/ssh/test_ssh_contact.py has the most usual ones, from OpenSSH itself.
    # Host keys. OpenSSH prints the third line without strict checking when it cannot ask.
    (_CHANGED, "host_key", "`ssh-keygen -f /home/ada/.ssh/known_hosts -R n1.example.org`, then `ssh n1`"),
    (
        (
            "Offending ECDSA key in /a b/known_hosts:7\n"
            "ED25519 host key for [::1]:2222 has changed and you have requested strict checking."
        ),
        "host_key",
        "`ssh-keygen -f '/a b/known_hosts' -R '[::1]:2222'`",
    ),
    ("Host key verification failed.", "host_key", "run `ssh n1` once"),
    ("Certificate invalid: expired\nHost key verification failed.", "host_key", "is not valid (expired)"),
    # Names and addresses.
    (
        (
            "ssh: Could not resolve hostname login: Temporary failure in name resolution\n"
            "Connection closed by UNKNOWN port 65535"
        ),
        "unreachable",
        "there is no host login",
    ),
    ("ssh: connect to host n1 port 22: No route to host", "unreachable", "n1, port 22: No route to host"),
    (
        "ssh: connect to host fe80::1%eth0 port 22: Network is unreachable",
        "unreachable",
        "fe80::1%eth0, port 22",
    ),
    (
        "ssh: connect to host n1 port 22: Connection timed out",
        "unreachable",
        "Connection timed out: check that",
    ),
    ("ssh: connect to host n1 port 22: Operation timed out", "unreachable", "Operation timed out"),
    ("Connection timed out during banner exchange", "unreachable", "sends nothing"),
    ("Connection to 10.0.0.1 port 22 timed out", "unreachable", "sends nothing"),
    ("Timeout, server n1 not responding.", "unreachable", "n1 does not answer any more"),
    # Many logins at once, and bans. Newer servers send a line before they close.
    ("kex_exchange_identification: Connection closed by remote host", "refused", "closed the connection"),
    (
        "kex_exchange_identification: read: Connection reset by peer\nConnection reset by 10.0.0.1 port 22",
        "refused",
        "closed the connection",
    ),
    ("ssh_exchange_identification: Connection closed by remote host", "refused", "closed the connection"),
    (
        "Connection closed by 10.0.0.1 port 22",
        "refused",
        "too many logins at once or after failed ones: wait",
    ),
    (
        (
            "kex_exchange_identification: banner line 0: Not allowed at this time\n"
            "kex_exchange_identification: Connection closed by remote host"
        ),
        "refused",
        "has banned this address",
    ),
    ("banner line 0: Exceeded MaxStartups\nConnection closed by 10.0.0.1 port 22", "refused", "MaxStartups"),
    # Key exchange.
    (
        "Unable to negotiate with 10.0.0.1 port 22: no matching host key type found. Their offer: ssh-rsa,ssh-dss",
        "ssh",
        "no matching host key type found, and 10.0.0.1 offers ssh-rsa,ssh-dss: allow one",
    ),
    (
        (
            "kex_exchange_identification: banner line contains invalid characters\n"
            "banner exchange: Connection to 10.0.0.1 port 80: invalid format"
        ),
        "ssh",
        "not of an ssh server: check Port",
    ),
    (
        "Bad packet length 1349676916.\nssh_dispatch_run_fatal: Connection to n1: Connection corrupted",
        "ssh",
        "Port",
    ),
    # Logins.
    ("Permission denied (publickey).", "authentication", "n1 accepts no credential"),
    ("ada@n1: Permission denied (gssapi-with-mic,password).", "authentication", "run `kinit`"),
    (
        "ada@n1: Permission denied (publickey,gssapi-keyex,gssapi-with-mic).",
        "authentication",
        "`ssh-add` or `kinit`",
    ),
    ("ada@n1: Permission denied (keyboard-interactive).", "authentication", "keep a connection open"),
    (
        "Your account has expired; please contact your system administrator.\nConnection closed by 10.0.0.1 port 22",
        "authentication",
        "Your account has expired; please contact your system administrator: ask the operator",
    ),
    (
        (
            "Access denied by pam_slurm_adopt: you have no active jobs on this node\n"
            "Connection closed by 10.0.0.1 port 22"
        ),
        "authentication",
        "you have no active jobs on this node: it admits only users of its own jobs",
    ),
    (
        (
            "System is booting up. Unprivileged users are not permitted to log in yet. Please come back later.\n"
            "Connection closed by 10.0.0.1 port 22"
        ),
        "unreachable",
        "not permitted to log in yet",
    ),
    # Jump hosts.
    (
        (
            "channel 0: open failed: administratively prohibited: open failed\nstdio forwarding failed\n"
            "Connection closed by UNKNOWN port 65535"
        ),
        "ssh",
        "its jump host forbids connections to it",
    ),
    (
        (
            "channel 0: open failed: connect failed: No route to host\nstdio forwarding failed\n"
            "Connection closed by UNKNOWN port 65535"
        ),
        "unreachable",
        "its jump host reports: No route to host",
    ),
    (
        "channel 0: open failed: connect failed: Connection refused\nstdio forwarding failed",
        "refused",
        "its jump host reports: Connection refused",
    ),
    (
        "ada@login: Permission denied (publickey).\nConnection closed by UNKNOWN port 65535",
        "authentication",
        "ada@login accepts no credential",
    ),
    (
        "Connection closed by 10.0.0.9 port 22\r\nConnection closed by UNKNOWN port 65535\r\n",
        "refused",
        "the sshd of its jump host 10.0.0.9 closed the connection",
    ),
    ("Connection closed by UNKNOWN port 65535", "refused", "check ProxyJump and ProxyCommand"),
    # Sessions.
    (
        "mux_client_request_session: session request failed: Session open refused by peer",
        "refused",
        "MaxSessions",
    ),
    ("exec request failed on channel 0", "refused", "no more sessions"),
    (
        (
            "mux_client_request_session: session request failed: Session open refused by peer\n"
            "ControlSocket /run/ada/n1 already exists, disabling multiplexing\nada@n1: Permission denied (password)."
        ),
        "unreachable",
        "the open connection has no free session",
    ),
    # This side.
    (
        "/etc/ssh/ssh_config line 9: Bad yes/no argument: perhaps",
        "ssh",
        "/etc/ssh/ssh_config, line 9: Bad yes/no",
    ),
    ("/home/ada/.ssh/config line 2: missing argument.", "ssh", "line 2: missing argument: correct"),
    (
        "/home/ada/.ssh/config line 2: keyword port extra arguments at end of line",
        "ssh",
        "line 2: keyword port extra arguments",
    ),
    (
        (
            "@         WARNING: UNPROTECTED PRIVATE KEY FILE!          @\n"
            "Permissions 0644 for '/home/ada/.ssh/key' are too open.\n"
            "It is required that your private key files are NOT accessible by others.\n"
            "This private key will be ignored.\n"
            'Load key "/home/ada/.ssh/key": bad permissions\n'
            "ada@10.249.1.11: Permission denied (publickey)."
        ),
        "authentication",
        "run `chmod 600 /home/ada/.ssh/key`",
    ),
    ("Bad owner or permissions on /home/ada/.ssh/config", "ssh", "run `chmod go-w /home/ada/.ssh/config`"),
    ("something new", "ssh", "ssh to n1 failed: something new: try `ssh n1` in a terminal"),
    ("", "ssh", "it gave no reason"),
]


def test_messages_of_the_client() -> None:
    def check(case: tuple[str, str, str]) -> None:
        errors, kind, part = case
        problem = explain("n1", 255, errors)
        print(problem)
        assert problem.kind == kind
        assert part in str(problem)
        assert "n1" in str(problem) or "config" in str(problem)
        assert "\n" not in str(problem)
        assert not re.search(r"[{}]", str(problem))

    assert find_wrong(MESSAGES, check) == []


@pytest.mark.parametrize(
    ("code", "errors", "noise", "kind", "part"),
    [
        (1, "", "This account is currently not available.\n", "authentication", "refuses commands"),
        (1, "", "This service allows sftp connections only.\n", "authentication", "refuses commands"),
        (1, "", "", "authentication", "ended with code 1 and no word"),
        (139, "", "", "answer", "ended with code 139"),
        (0, "", "menu:\n 1) mail\n", "answer", "something else than roost's program (1) mail)"),
        (
            1,
            "Your password has expired.\nPassword change required but no TTY available.",
            "",
            "authentication",
            "ssh n1",
        ),
        (1, "cat: /etc/motd: Connection refused", "", "answer", "(cat: /etc/motd: Connection refused)"),
        (
            1,
            "sh: No space left on device",
            "",
            "answer",
            "n1 has no room: sh: No space left on device: remove files",
        ),
        (1, "mktemp: /home/ada: Disk quota exceeded", "", "answer", "n1 has no room"),
    ],
)
def test_words_of_the_host(code: int, errors: str, noise: str, kind: str, part: str) -> None:
    problem = explain("n1", code, errors, noise)
    assert problem.kind == kind
    assert part in str(problem)


@pytest.mark.parametrize(
    "errors", ["No ED25519 host key is known for n1", _CHANGED, "", "Password has expired"]
)
def test_a_person_reaches_the_host_by_the_same_command(errors: str) -> None:
    assert "`ssh -F /lab n1`" in str(explain("n1", 255, errors, ssh="ssh -F /lab"))


def test_the_end_of_the_program() -> None:
    assert "ValueError: ssh: connect to host x port 1: Connection refused" in str(
        explain_end("n1", 1, "Traceback\nValueError: ssh: connect to host x port 1: Connection refused")
    )
    assert str(explain_end("n1", -9, "")) == "ssh to n1 was ended by signal 9: try again"
    assert explain_end("n1", 255, "Timeout, server n1 not responding.").kind == "unreachable"
    assert explain_end("n1", 1, "OSError: [Errno 28] No space left on device").user_message.startswith(
        "n1 has no room"
    )


@pytest.mark.parametrize(
    ("python", "found", "part"),
    [
        ("", ["-", "-"], "n1 has no Python 3.10 or newer in its PATH: set the option python"),
        ("", ["python3", "-"], "in its PATH, and python3 is older: set the option python"),
        (
            "",
            ["python3", "python3.12"],
            "python3.12 on n1 cannot run roost's agent (it lacks zmq or psutil): install",
        ),
        ("/opt/python", ["-", "-"], "/opt/python on n1 is no program that runs there"),
        ("/opt/python", ["/opt/python", "-"], "/opt/python on n1 is older than Python 3.10"),
        ("/opt/python", ["-", "/opt/python"], "/opt/python on n1 cannot run roost's agent"),
    ],
)
def test_hosts_without_a_good_python(python: str, found: list[str], part: str) -> None:
    problem = explain_python("n1", python, found)
    assert problem.kind == "python"
    assert part in str(problem)
    assert str(problem).endswith("then run `roost restart-service`")


def test_text_of_a_host_cannot_change_the_terminal() -> None:
    problem = explain(
        "n1", 255, "\x1b[2Jssh: Could not resolve hostname n1: \x1b]0;title\x07 " + "x" * 10_000
    )
    assert str(problem).isprintable()
    assert len(str(problem)) < 400


def test_a_problem_crosses_pickles_and_the_socket() -> None:
    problem = HostProblem("ssh cannot reach n1: why", kind="refused")
    again = pickle.loads(pickle.dumps(problem))
    assert (type(again), again.kind, str(again)) == (HostProblem, "refused", str(problem))
    remote = from_remote(problem.to_remote())
    assert type(remote) is BackendUnavailable
    assert (str(remote), remote.fields) == (str(problem), {"kind": "refused"})
