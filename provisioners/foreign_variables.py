"""Variables of Enterprise Gateway (EG_), Gateway and Remote Provisioners (GP_, RP_) in a kernelspec's env.

They are settings of a server of these projects. roost reads the launch timeout, and names the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_PREFIXES = ("EG_", "GP_", "RP_")
_TIMEOUTS = ("KERNEL_LAUNCH_TIMEOUT", "LAUNCH_TIMEOUT")
_NAMED = 5
"""At most this many settings are named."""
_SETTINGS = (
    "ALLOWED_KERNELS", "ALLOW_CREDENTIALS", "ALLOW_HEADERS", "ALLOW_METHODS", "ALLOW_ORIGIN", "ALT_YARN_ENDPOINT",
    "APP_NAME", "AUTHORIZED_ORIGIN", "AUTHORIZED_USERS", "AUTHORIZER_CLASS", "AUTH_TOKEN", "AUTH_TYPE",
    "AVAILABILITY_MODE", "BASE_URL", "CERTFILE", "CLIENT_CA", "CLIENT_ENVS", "CONDUCTOR_ENDPOINT", "CULL_CONNECTED",
    "CULL_IDLE_TIMEOUT", "CULL_INTERVAL", "DEFAULT_KERNEL_NAME", "DEFAULT_KERNEL_SERVICE_ACCOUNT_NAME",
    "DOCKER_LOG_LEVEL", "DOCKER_MODE", "DOCKER_NETWORK", "DYNAMIC_CONFIG_INTERVAL", "ENABLE_TUNNELING",
    "ENV_PROCESS_WHITELIST", "ENV_WHITELIST", "EXECUTOR_IMAGE_NAME", "EXPOSE_HEADERS", "HOST_IP", "IMAGE_NAME",
    "IMPERSONATION_ENABLED", "INHERITED_ENVS", "IP", "KERNELSPEC_CACHE_ENABLED", "KERNEL_CLUSTER_ROLE",
    "KERNEL_EXECUTOR_IMAGE", "KERNEL_HEADERS", "KERNEL_IMAGE", "KERNEL_INFO_TIMEOUT", "KERNEL_LOG_DIR",
    "KERNEL_SESSION_LOCATION", "KERNEL_SESSION_PERSISTENCE", "KERNEL_WHITELIST", "KEYFILE", "KUBERNETES_LOG_LEVEL",
    "LIST_KERNELS", "LOAD_BALANCING_ALGORITHM", "LOG_LEVEL", "MAX_AGE", "MAX_KERNELS", "MAX_KERNELS_PER_USER",
    "MAX_POLL_ATTEMPTS", "MAX_PORT_RANGE_RETRIES", "MIN_PORT_RANGE_SIZE", "MIRROR_WORKING_DIRS", "NAMESPACE",
    "PERSISTENCE_ROOT", "POD_TEMPLATE_DIR", "POLL_INTERVAL", "PORT", "PORT_RANGE", "PORT_RETRIES", "PROHIBITED_GIDS",
    "PROHIBITED_LOCAL_IPS", "PROHIBITED_UIDS", "PUBLIC_KEY", "REDACTION_MASK", "REMOTE_GSS_SSH", "REMOTE_HOSTS",
    "REMOTE_PWD", "REMOTE_USER", "REMOVE_CONTAINER", "RESPONSE_ADDRESS", "RESPONSE_ADDR_ANY", "RESPONSE_IP",
    "RESPONSE_PORT", "RESPONSE_PORT_RETRIES", "RESTART_STATUS_POLL_INTERVAL", "SENSITIVE_ENV_KEYS",
    "SHARED_NAMESPACE", "SOCKET_TIMEOUT", "SSH_LOG_LEVEL", "SSH_PORT", "SSL_VERSION", "TRUST_XHEADERS",
    "TUNNEL_MAX_KEEP_ALIVE", "UNAUTHORIZED_USERS", "USE_INCLUSTER_CONFIG", "WEBHOOK_PASSWORD", "WEBHOOK_URL",
    "WEBHOOK_USERNAME", "WS_PING_INTERVAL_SECS", "YARN_CERT_BUNDLE", "YARN_ENDPOINT",
    "YARN_ENDPOINT_SECURITY_ENABLED", "YARN_LOG_LEVEL", "YARN_MUTUAL_AUTHENTICATION", "YARN_SHUTDOWN_WAIT_TIME",
    "ZMQ_IO_THREADS", "ZMQ_MAX_SOCKETS",
)  # fmt: skip
"""The names of the other settings, without the prefix."""


_reported: set[str] = set()
"""The sentences that this process has logged. Each is logged once."""


def add_timeout(options: Mapping[str, Any], spec_env: Mapping[str, str]) -> Mapping[str, Any]:
    """Return a kernelspec's options with the launch timeout of its env, if its options have none."""
    names = (prefix + each for each in _TIMEOUTS for prefix in _PREFIXES)
    text = next(filter(None, (spec_env.get(name, "").strip() for name in names)), "")
    return {**options, "launch_timeout": text} if text and not options.get("launch_timeout") else options


def describe_unread(spec_env: Iterable[str]) -> str:
    """Return which settings in a kernelspec's env roost does not read, and what to do, as a sentence.

    Return an empty text if there are none.
    """
    unread = sorted(name for name in spec_env if name[:3] in _PREFIXES and name[3:] in _SETTINGS)
    if not unread:
        return ""
    more = f" and {len(unread) - _NAMED} more" if len(unread) > _NAMED else ""
    return (
        f"roost does not read the settings {', '.join(unread[:_NAMED])}{more} in the kernelspec's env: set their "
        "equivalents in jupyter_roost_config.py, and remove them."
    )


def is_new(sentence: str) -> bool:
    """True if this process has not reported the sentence yet. The next call with it returns False."""
    if sentence in _reported:
        return False
    _reported.add(sentence)
    return True
