"""Hosts with a real sshd on this machine, which a test reaches by `ssh`.

    with SshHosts(3) as hosts:
        subprocess.run([*hosts.ssh("ada"), "n1", "hostname"])
        hosts.off("n1")

As root, each host has namespaces, an address, accounts, homes, /run and /tmp of its own. All processes end with the
test's, even if that is killed; the next start removes the files. Three hosts start in a second.

Without root there is one host: this machine's loopback, with the caller's account. `why_not(hosts=3)` is then the
reason to skip a test of several hosts.

    hosts        the hosts of one test, and all that a test does with them
       │
       ├──▶ namespace_host, loopback_host    one host: as root, and without root
       │         └──▶ held_process           a process that ends with the test's
       │                  └──▶ first_process     the program of a host's first process, which runs sshd
       ├──▶ switch                           the network of the hosts
       ├──▶ accounts                         the accounts, and a host's /etc and homes
       ├──▶ client_folder                    keys, known_hosts and configuration of OpenSSH's client
       ├──▶ visible_paths                    how users of a host see Python and this checkout
       ├──▶ requirements                     the packages and rights that hosts need
       └──▶ remains                          folders of runs that were killed
"""

from .accounts import ACCOUNTS, HARD, PLAIN
from .hosts import SshHosts
from .remains import leftovers
from .requirements import why_not

__all__ = ["ACCOUNTS", "HARD", "PLAIN", "SshHosts", "leftovers", "why_not"]
