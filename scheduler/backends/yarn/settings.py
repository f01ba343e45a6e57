"""The settings of the backend `yarn`."""

from __future__ import annotations

from traitlets import Enum, Float, Int, List, Unicode

from roost.scheduler.config.section import Memory
from roost.scheduler.config.shared_sections import PortSettings


class RoostYarnBackend(PortSettings):
    """`c.RoostYarnBackend`: the YARN cluster, and what users may ask of their containers."""

    address = Unicode(
        "",
        help="Web addresses of the ResourceManagers, separated by commas (http://rm1:8088,http://rm2:8088), or a "
        "folder with yarn-site.xml; empty: HADOOP_CONF_DIR, else /etc/hadoop/conf. An address with a path stands "
        "for /ws, as at a Knox gateway: https://knox:8443/gateway/default/resourcemanager.",
    )
    schedulers = List(
        Unicode(),
        help="host:port of the ResourceManagers' scheduler addresses; empty: as yarn-site.xml or the ResourceManager "
        "says.",
    )
    authentication = Enum(
        ["simple", "kerberos", "basic"],
        "simple",
        help="How roost shows who it is: by name alone, by a Kerberos ticket (kinit), or by name and password.",
    )
    user = Unicode(
        "",
        help="The user of YARN; empty: the user of this service. With kerberos the ticket decides: set this only if "
        "YARN knows the ticket by another name than that of this service's user.",
    )
    password_file = Unicode("", help="A file that only you can read, with the password for basic.")
    ca_file = Unicode(
        "", help="A file with the certificate authority of https addresses; empty: the system's."
    )
    queue = Unicode("default", help="The queue of kernels that name none.")
    allowed_queues = List(Unicode(), ["*"], help="Patterns of the queues that kernels may name (fnmatch).")
    python = Unicode(
        "python3", help="The Python on the nodes that runs roost's agent and application master."
    )
    archive = Unicode(
        "",
        help="An archive with Python and ipykernel (venv-pack, conda-pack), which YARN copies to the nodes. Its "
        "bin/python then takes the place of `python`. webhdfs://namenode:9870/…, or file:///… on a shared disk.",
    )
    memory = Memory("1GiB", help="The memory of kernels that ask for none.")
    gpu_resource = Unicode("yarn.io/gpu", help="The name of the GPUs' resource.")
    gpus_per_node = Int(
        None,
        allow_none=True,
        min=0,
        help="The number of GPUs of each node, for nodes without NVIDIA's driver; None: as the driver says.",
    )
    agent_ports = Unicode("20000-30000", help="The ports of the agents on the nodes, lowest-highest.")
    master_memory = Memory("256MiB", help="The memory of roost's application master.")
    manager_grace_s = Float(
        300.0,
        min=0.0,
        help="How long the application master lives on when the ResourceManagers do not know it: another cluster has "
        "their addresses.",
    )
    identity_file = Unicode(
        "",
        help="The service's key pair. A service without it cannot reach the kernels of an earlier one, so it must "
        "survive restarts. Empty: roost/yarn-identity.json in XDG_STATE_HOME.",
    )
