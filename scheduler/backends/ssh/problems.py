"""The problems of hosts: each is one sentence with its remedy. `explain` reads the output of OpenSSH's client.

The texts are those of OpenSSH 8 to 10. A jump host prints through the same client, so a sentence takes the name of the
host from the message.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from shlex import quote
from typing import Literal

from roost.launchers.protocol.rpc import RemoteError
from roost.scheduler.backends.node_archive import advise_python
from roost.scheduler.errors import BackendUnavailable

Kind = Literal["host_key", "authentication", "unreachable", "refused", "python", "answer", "slow", "ssh"]


class HostProblem(BackendUnavailable):
    """A host that cannot be used now. The text is one sentence that names the host and says what to do.

    `kind` is what a caller decides by: "refused" and "unreachable" may pass, and "host_key" and "authentication" need a
    person. "ssh" is a problem on this side. "python" and "answer" are problems on the host.
    """

    def __init__(self, user_message: str, *, kind: Kind) -> None:
        super().__init__(user_message, kind=kind)
        self.kind: Kind = kind

    def to_remote(self) -> RemoteError:
        """Return this error as a `BackendUnavailable`, the class that clients know."""
        return RemoteError(BackendUnavailable.__name__, self.user_message, self.fields)


@dataclass(frozen=True, slots=True)
class _Complaint:
    """A message of OpenSSH, and the sentence for it. {host} and the pattern's named groups are filled in."""

    pattern: str
    kind: Kind
    sentence: str


_LOG_IN = "ssh cannot log in to {host}: "
_REACH = "ssh cannot reach {host}: "
_ONCE = "run `{ssh} {host}` once in a terminal"

_AND_RESTART = ", then run `roost restart-service`"
"""The service reads its settings only when it starts."""

_COMPLAINTS = (
    # Host keys.
    _Complaint(
        r"REVOKED HOST KEY DETECTED|[Hh]ost key (?P<what>.*?)(?:is )?(?:marked as )?revoked",
        "host_key",
        _LOG_IN + "its host key is revoked: ask the operator of that host",
    ),
    _Complaint(
        r"Certificate invalid: (?P<what>.*)(?s:.*)Host key verification failed",
        "host_key",
        _LOG_IN + "its host certificate is not valid ({what}): ask the operator of that host",
    ),
    _Complaint(
        r"No (?P<type>\S+) host key is known for (?P<name>\S+)",
        "host_key",
        _LOG_IN + "the host key of {name} is not known here: " + _ONCE + ", and check the key that it shows",
    ),
    _Complaint(
        r"Host key verification failed",
        "host_key",
        _LOG_IN + "its host key is not known here: " + _ONCE + ", and check the key that it shows",
    ),
    # Names and addresses, also of jump hosts.
    _Complaint(
        r"Could not resolve hostname (?P<name>[^:\s]+): (?P<what>.*)",
        "unreachable",
        _REACH + "there is no host {name} ({what}): correct the name, or its HostName in ~/.ssh/config",
    ),
    _Complaint(
        r"open failed: administratively prohibited",
        "ssh",
        _REACH + "its jump host forbids connections to it: ask for AllowTcpForwarding there, "
        "or use another ProxyJump",
    ),
    _Complaint(
        r"channel \d+: open failed: connect failed: (?P<what>Connection refused)",
        "refused",
        _REACH + "its jump host reports: {what}: check that sshd runs there, and Port in ~/.ssh/config",
    ),
    _Complaint(
        r"channel \d+: open failed: connect failed: (?P<what>.*)",
        "unreachable",
        _REACH + "its jump host reports: {what}: check that the host is up, and that the name means it there",
    ),
    _Complaint(
        r"connect to host (?P<name>\S+) port (?P<port>\S+): Connection refused",
        "refused",
        _REACH
        + "nobody listens at {name}, port {port}: check that sshd runs there, and Port in ~/.ssh/config",
    ),
    _Complaint(
        r"connect to host (?P<name>\S+) port (?P<port>\S+): (?P<what>.*)",
        "unreachable",
        _REACH + "{name}, port {port}: {what}: check that the host is up, and the network to it",
    ),
    _Complaint(
        r"Connection timed out during banner exchange|[Cc]onnection to .* timed out",
        "unreachable",
        _REACH + "its sshd accepts a connection and sends nothing: check the load of that host",
    ),
    # Key exchange.
    _Complaint(
        r"Not allowed at this time",
        "refused",
        _LOG_IN + "its sshd has banned this address for some minutes: wait, and find the failed logins",
    ),
    _Complaint(
        r"Exceeded MaxStartups",
        "refused",
        _REACH + "its sshd has too many logins under way: try again, or ask for a higher MaxStartups",
    ),
    _Complaint(
        r"Unable to negotiate with (?P<name>\S+) port \S+: (?P<what>no matching [^.]*)\. Their offer: (?P<offer>\S*)",
        "ssh",
        _LOG_IN + "{what}, and {name} offers {offer}: allow one of them in ~/.ssh/config",
    ),
    _Complaint(
        r"banner exchange: .*: invalid format|Bad packet length|message authentication code incorrect",
        "ssh",
        _LOG_IN + "an answer there is not of an ssh server: check Port and ProxyCommand in ~/.ssh/config",
    ),
    # Logins.
    _Complaint(
        r"Session open refused by peer(?s:.*)Permission denied",
        "unreachable",  # it passes without a new credential
        _LOG_IN
        + "the open connection has no free session, and a new one needs an answer of yours: close a session",
    ),
    _Complaint(
        r"Too many authentication failures",
        "authentication",
        _LOG_IN
        + "ssh offers more keys than it accepts: set IdentityFile and IdentitiesOnly in ~/.ssh/config",
    ),
    _Complaint(
        r"(?P<what>[^\n]*no active jobs on this node[^\n]*)",
        "authentication",
        _LOG_IN + "{what}: it admits only users of its own jobs, so leave it out of the hosts",
    ),
    _Complaint(
        r"(?P<what>[^\n]*[Aa]ccount (?:has )?(?:expired|is locked|is disabled)[^\n]*)",
        "authentication",
        _LOG_IN + "{what}: ask the operator of that host",
    ),
    _Complaint(
        r"[Pp]assword (?:has )?expired|change your password|Password change required",
        "authentication",
        _LOG_IN + "the password there has expired: " + _ONCE + " to change it",
    ),
    _Complaint(
        r"(?P<what>[^\n]*not permitted to log in[^\n]*|[^\n]*[Ll]ogins? (?:are|is) (?:currently )?disabled[^\n]*)",
        "unreachable",
        _LOG_IN + "{what}: wait until it admits users again",
    ),
    _Complaint(
        r"Permissions \d+ for '(?P<file>[^'\n]+)' are too open(?s:.*)Permission denied",
        "authentication",
        _LOG_IN + "ssh ignores the key {file}, because others may read it: run `chmod 600 {file}`",
    ),
    _Complaint(
        r"(?:(?P<name>\S+): )?Permission denied \((?P<what>[^)]*)\)",
        "authentication",
        _LOG_IN + "{name} accepts no credential that needs no question ({what}): {credential}",
    ),
    # Sessions.
    _Complaint(
        r"This account is currently not available|sftp connections only",
        "authentication",
        _LOG_IN + "the login shell of this account refuses commands: ask the operator for another one",
    ),
    _Complaint(
        r"(?:Session open refused by peer|(?:exec|shell) request failed|open failed: (?:connect|resource))",
        "refused",
        _LOG_IN + "it opens no more sessions for this user: close some, or ask for a higher MaxSessions",
    ),
    _Complaint(
        r"(?P<what>[^\n]*(?:No space left on device|[Dd]isk quota exceeded)[^\n]*)",
        "answer",
        "{host} has no room: {what}: remove files there",
    ),
    # The client itself.
    _Complaint(
        r"(?P<file>\S+?):? line (?P<line>\d+): "
        r"(?P<what>(?:Bad|Missing|missing|[Ii]nvalid|[Uu]nsupported|keyword|no argument|Error|garbage).*)",
        "ssh",
        "ssh cannot read its configuration: {file}, line {line}: {what}: correct that line",
    ),
    _Complaint(
        r"Bad owner or permissions on (?P<file>\S+)",
        "ssh",
        "ssh does not trust {file}: run `chmod go-w {file}`, and let it belong to you",
    ),
    # Connections that end early, last: the lines above may stand before these.
    _Complaint(
        r"Connection (?:closed|reset) by (?P<name>(?!UNKNOWN)\S+) port \d+\s(?s:.*)UNKNOWN port 65535",
        "refused",
        _REACH
        + "the sshd of its jump host {name} closed the connection, as it does with too many logins at once "
        "or after failed ones: wait some minutes, or ask its operator",
    ),
    _Complaint(
        r"UNKNOWN port 65535",
        "refused",
        _REACH + "the command on the way to it has ended: check ProxyJump and ProxyCommand in ~/.ssh/config",
    ),
    _Complaint(
        r"(?:Connection (?:closed|reset) by|Connection reset|closed by remote host|Broken pipe)",
        "refused",
        _LOG_IN
        + "its sshd closed the connection, as it does with too many logins at once or after failed ones: "
        "wait some minutes, or ask its operator",
    ),
    _Complaint(
        r"Timeout, server (?P<name>\S+) not responding",
        "unreachable",
        _REACH + "{name} does not answer any more: check the network to it",
    ),
)


def explain(host: str, code: int | None, errors: str, noise: str = "", *, ssh: str = "ssh") -> HostProblem:
    """Return the problem of an ssh process that ended with `code` before roost's program began.

    `errors` is the end of its standard error, and `noise` the end of its standard output. `ssh` is the command by
    which a person reaches the host as roost does.
    """
    if code is not None and code < 0:
        return HostProblem(f"ssh to {host} was ended by signal {-code}: try again", kind="ssh")
    # Only ssh itself exits with 255. Otherwise a program of the host wrote these texts.
    is_own = code == 255
    if is_own and (changed := _explain_changed_key(host, errors, ssh)) is not None:
        return changed
    kinds: Sequence[Kind] | None = None if is_own else ("authentication", "answer")
    if (problem := _find_complaint(host, errors if is_own else f"{errors}\n{noise}", kinds, ssh)) is not None:
        return problem
    last = last_line(errors) or ("bytes that are no text" if "\ufffd" in noise else last_line(noise))
    if is_own:
        text = f"ssh to {host} failed: {last or 'it gave no reason'}: try `{ssh} {host}` in a terminal"
        return HostProblem(text, kind="ssh")
    if last:
        text = f"{host} ran something else than roost's program ({last}): let its login shell run commands"
        return HostProblem(text, kind="answer")
    text = f"the login shell of {host} ended with code {code} and no word: ask the operator for another shell"
    return HostProblem(text, kind="authentication" if code == 1 else "answer")


def explain_end(host: str, code: int | None, errors: str) -> HostProblem:
    """Return the problem of a program of roost that has ended without an answer."""
    if code is None or code < 0:
        return explain(host, code, errors)
    if code == 255:
        reason = last_line(errors) or "no reason is given"
        text = (
            f"the connection to {host} was lost ({reason}): check that the host is up, and the network to it"
        )
        return HostProblem(text, kind="unreachable")
    if (problem := _find_complaint(host, errors, ("answer",), "ssh")) is not None:
        return problem
    reason = last_line(errors) or f"exit code {code}"
    return HostProblem(f"roost's program on {host} ended without an answer: {reason}", kind="answer")


def explain_python(host: str, python: str, found: Sequence[str]) -> HostProblem:
    """Return the problem of a host without a good Python.

    `python` is the option. `found` names a Python that is too old, then one without the packages; "-" for none.
    """
    old, bare = (*found, "-", "-")[:2]
    if bare != "-":
        advice = advise_python("No module named 'zmq'") + _AND_RESTART
        text = f"{bare} on {host} cannot run roost's agent (it lacks zmq or psutil): {advice}"
        return HostProblem(text, kind="python")
    remedy = "set the option python to a Python 3.10 or newer that has ipykernel" + _AND_RESTART
    if python:
        why = "is older than Python 3.10" if old != "-" else "is no program that runs there"
        return HostProblem(f"{python} on {host} {why}: {remedy}", kind="python")
    is_old = f", and {old} is older" if old != "-" else ""
    return HostProblem(f"{host} has no Python 3.10 or newer in its PATH{is_old}: {remedy}", kind="python")


def explain_silence(host: str, deadline_s: float, *, has_shell: bool, ssh: str = "ssh") -> HostProblem:
    """Return the problem of a host that has not answered in time. `has_shell`: its shell has answered."""
    if has_shell:
        text = (
            f"{host} let ssh log in, and gave no answer within {deadline_s:g} s: check its load and its disks"
        )
    else:
        text = (
            f"ssh could not log in to {host} within {deadline_s:g} s: try `{ssh} {host} true` in a terminal, "
            "which must end by itself"
        )
    return HostProblem(text, kind="slow")


def _find_complaint(host: str, text: str, kinds: Sequence[Kind] | None, ssh: str) -> HostProblem | None:
    """Return the problem for the first complaint in `text` of these kinds; `None`: of any kind."""
    for complaint in _COMPLAINTS:
        if kinds is not None and complaint.kind not in kinds:
            continue
        if (found := re.search(complaint.pattern, text)) is not None:
            groups = {name: clean(part or "") for name, part in found.groupdict().items()}
            return HostProblem(complaint.sentence.format_map(_fill(host, groups, ssh)), kind=complaint.kind)
    return None


def last_line(text: str) -> str:
    """Return the last line of a text that is not blank, cleaned and shortened."""
    lines = [line for line in text.splitlines() if line.strip()]
    return clean(lines[-1]) if lines else ""


def clean(text: str, most: int = 200) -> str:
    """Return one line of printable characters, at most `most`, without its last full stop or colon."""
    shown = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(shown.split())[:most].rstrip(".:")


def _fill(host: str, groups: Mapping[str, str], ssh: str) -> Mapping[str, str]:
    """Return the values for a sentence. A host that a message does not name is `host`."""
    what = groups.get("what", "")
    return {
        **groups,
        "host": host,
        "name": groups.get("name") or host,
        "ssh": ssh,
        "credential": _advise_login(host, what, ssh),
    }


def _advise_login(host: str, methods: str, ssh: str) -> str:
    """Return what helps a person whose credentials are not accepted. `methods` are the methods that the host takes."""
    names = methods.split(",")
    if any(name.startswith("gssapi") for name in names) and "publickey" not in names:
        return "run `kinit`"
    if "publickey" not in names:
        return f"keep a connection open with `{ssh} -fNM {host}`, and set ControlPath in ~/.ssh/config"
    kerberos = " or `kinit`" if any(name.startswith("gssapi") for name in names) else ""
    return f"run `ssh-add`{kerberos} in your session, then `roost restart-service`"


def _explain_changed_key(host: str, errors: str, ssh: str) -> HostProblem | None:
    if "HOST IDENTIFICATION HAS CHANGED" not in errors and "has changed and you have requested" not in errors:
        return None
    name = re.search(r"[Hh]ost key for (\S+) has changed", errors)
    place = re.search(r"Offending \S+ key in (.+):(\d+)", errors)
    changed = clean(name.group(1)) if name else host
    file = f"-f {quote(clean(place.group(1)))} " if place else ""
    return HostProblem(
        f"ssh cannot log in to {host}: the host key of {changed} has changed: ask its operator; if that is right, "
        f"run `ssh-keygen {file}-R {quote(changed)}`, then `{ssh} {host}`",
        kind="host_key",
    )
